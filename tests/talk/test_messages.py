"""Whatever a caller sends is read as one kind of message, or refused with one clear error."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_memory.errors import InputError
from beacon_memory.talk.messages import check_message, read_message, read_messages, spoken, whole
from beacon_memory.talk.tools import Call, Said, read_said, write_said

TEXT = st.text(max_size=12) | st.sampled_from(
    ["", " ", "\ud83d", "\ude00", "\x00", "<think>", "</think>", "<tool_call>"]
)
SCALAR = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.binary(max_size=3), st.just({1, 2}))
VALUE = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
BLOCK = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            ["text", "input_text", "output_text", "refusal", "image", "image_url", "thinking", "video"]
        )
    },
    optional={"text": TEXT | st.none() | st.integers(), "refusal": TEXT, "image_url": VALUE, "signature": TEXT},
)
FUNCTION = st.fixed_dictionaries({}, optional={"name": TEXT | st.none(), "arguments": VALUE, "args": VALUE})
CALL = st.fixed_dictionaries(
    {}, optional={"id": SCALAR, "type": TEXT, "function": FUNCTION, "name": TEXT, "args": VALUE}
)
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "tool", "system", "developer", "USER", "", None, 3, ["user"]]),
        "content": st.one_of(TEXT, st.none(), st.lists(BLOCK, max_size=3), VALUE),
        "tool_calls": st.none() | st.lists(CALL, max_size=2) | VALUE,
        "name": VALUE,
        "tool_call_id": VALUE,
        "extra": VALUE,
    },
)


def check_read(message) -> None:
    try:
        found = read_message(message)
    except InputError:
        return
    if found is None:
        assert message["role"] == "assistant"
        return
    assert found["content"].strip()
    json.dumps(found, ensure_ascii=False).encode()  # what a store writes
    assert read_message(found) == found  # a stored message is read as it stands


@settings(max_examples=150, deadline=None)
@given(message=MESSAGE | VALUE)
def test_whatever_is_sent_is_read_or_refused_by_one_error(message):
    check_read(message)


@pytest.mark.long
@settings(max_examples=20_000, deadline=None)
@given(message=MESSAGE | VALUE)
def test_whatever_20000_callers_send_is_read_or_refused_by_one_error(message):
    check_read(message)


THOUGHTS = st.lists(
    st.sampled_from(["<think>", "</think>", "<thinking>", "[/THINK]", "\n", " ", "Hm.", "In Lyon.", "<tool_call> {"]),
    max_size=9,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=THOUGHTS, thinking=st.booleans())
def test_what_was_spoken_has_no_thoughts_left(text, thinking):
    """The newest answer is read once as it came and once as the caller sends it back: both are the same message."""
    once = spoken(text, thinking=thinking)
    assert spoken(once, thinking=thinking) == once
    if not thinking and "<" not in text.replace("</think>", "") and "[" not in text:
        assert once == text  # a bare end is an ordinary word


@pytest.mark.parametrize(
    ("content", "read"),
    [
        ([{"type": "text", "text": "In "}, {"type": "text", "text": "Lyon."}], "In Lyon."),
        ([{"text": "In Lyon."}], "In Lyon."),
        ([{"type": "input_text", "text": "In Lyon."}], "In Lyon."),
        ("half \ud83d", "half \ufffd"),
        ("\ud83d\ude00", "😀"),
    ],
)
def test_content_is_text_however_it_is_written(content, read):
    assert check_message({"role": "user", "content": content})["content"] == read


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "user", "content": None}, "an empty user message"),
        ({"role": "user"}, "an empty user message"),
        ({"role": "tool", "content": []}, "an empty tool message"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, "type 'image_url' cannot be read"),
        ({"role": "user", "content": 7}, "content is text, not 7"),
        ({"role": "user", "content": "Hi", "seen": {1}}, "made of JSON values"),
        ({"role": "system", "content": "Be brief."}, "pass it as system="),
        ({"role": "robot", "content": "Hi"}, "role is one of user, assistant, tool"),
        ("Hi", "a message is a mapping"),
        ({"role": "assistant", "content": "", "tool_calls": [{"name": "f", "args": "{"}]}, "no JSON object"),
        ({"role": "assistant", "content": "", "tool_calls": "f"}, "a list of calls"),
        ({"role": "assistant", "content": "", "tool_calls": [{"function": {}}]}, "has a name and arguments"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(message, says):
    with pytest.raises(InputError, match=says):
        check_message(message)


@pytest.mark.parametrize("content", [None, "", " \n", [], [{"type": "image", "data": "x"}]])
def test_an_answer_in_which_nothing_was_said_is_no_message(content):
    assert read_messages([{"role": "assistant", "content": content}]) == []


def test_a_list_of_messages_is_a_list():
    for messages in ("Hi", {"role": "user", "content": "Hi"}, 7, None):
        with pytest.raises(InputError, match="a list of mappings"):
            read_messages(messages)


@pytest.mark.parametrize(
    "call",
    [
        {"id": "1", "type": "function", "function": {"name": "pay", "arguments": {"sum": Decimal("1.50")}}},
        {"id": "1", "type": "function", "function": {"name": "pay", "arguments": '{"sum": "1.50"}'}},
        {"id": "1", "name": "pay", "args": {"sum": "1.50"}, "type": "tool_call"},
    ],
)
def test_calls_of_every_shape_are_the_same_words(call):
    found = check_message({"role": "assistant", "content": None, "tool_calls": [call]})
    assert read_said(found["content"]).calls == (Call("pay", {"sum": "1.50"}),)


def test_a_date_or_a_decimal_in_an_argument_is_written_as_text():
    said = Said("", (Call("book", {"day": datetime.date(2026, 11, 26), "sum": Decimal("1.50")}),))
    assert read_said(write_said(said)).calls == (Call("book", {"day": "2026-11-26", "sum": "1.50"}),)


ARGUMENT = st.recursive(
    st.one_of(
        st.none(), st.integers(), st.text(max_size=8), st.sampled_from(["</tool_call>", "<tool_call>", '"}', "\\"])
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
)


@settings(max_examples=200, deadline=None)
@given(calls=st.lists(st.dictionaries(st.text(max_size=6), ARGUMENT, max_size=3), min_size=1, max_size=3))
def test_whatever_stands_in_arguments_calls_are_read_as_they_were_written(calls):
    """A closing mark within an argument ended the call."""
    said = Said("Let me see.", tuple(Call("f", arguments) for arguments in calls))
    assert read_said(write_said(said)) == said


def test_halves_of_letters_are_joined_or_marked():
    assert whole("\ud83d\ude00 \ud83d") == "😀 \ufffd"
