"""What a template can render whole, a memory holds piece by piece: over templates that do what the public ones do."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_memory.errors import InputError
from beacon_memory.talk.messages import check_message
from beacon_memory.talk.transcript import Transcript
from tests.talk.public import PUBLIC

PAGE = (Path(__file__).parents[2] / "docs" / "templates.md").read_text()
QUESTION = {"role": "user", "content": "Where do I live?"}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "now", "arguments": {"city": "Lyon"}}}
CALLING = [
    QUESTION,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "noon", "tool_call_id": "abcdefghi", "name": "now"},
    {"role": "assistant", "content": "At noon."},
    {"role": "user", "content": "And my dog?"},
]
# Letters, digits and marks of the languages that the tiny vocabulary has, with white space inside but not around.
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=30).map(str.strip)
TALKS = st.lists(WORDS.filter(bool), min_size=1, max_size=7)
EVERY = pytest.mark.parametrize("name", PUBLIC)


@cache
def read(name: str) -> tuple[Any, Transcript]:
    tokenizer = PUBLIC[name].tokenizer()
    return tokenizer, Transcript(tokenizer)


def pieces(ours: Transcript, talk: list[dict[str, Any]], system: str | None = None) -> list[int]:
    return [*ours.system(system), *(i for message in talk for i in ours.turn(message)), *ours.header()]


def whole(name: str, talk: list[dict[str, Any]], system: str | None = None) -> list[int]:
    """The ids of the template's own text, without the opening token that our pieces leave to the stream."""
    tokenizer, ours = read(name)
    told = [{"role": "system", "content": system}] if system else []
    if tokenizer.chat_template is None:
        lines = [f"{m['role'].capitalize()}: {m['content']}\n" for m in talk]
        text = (f"{system}\n\n" if system else "") + "".join(lines) + "Assistant:"
    else:
        text = tokenizer.apply_chat_template([*told, *talk], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    opened = ours.start and ids[: len(ours.start)] == ours.start and pieces(ours, talk)[: len(ours.start)] != ours.start
    return ids[len(ours.start) :] if opened else ids


def said(words: list[str]) -> list[dict[str, Any]]:
    return [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(words)]


@EVERY
@settings(max_examples=25, deadline=None)
@given(words=TALKS)
def test_the_pieces_ids_are_the_wholes(name, words):
    talk = said(words if len(words) % 2 else words[:-1])
    assert pieces(read(name)[1], talk) == whole(name, talk)


@EVERY
@settings(max_examples=10, deadline=None)
@given(words=TALKS, system=WORDS.filter(bool))
def test_a_system_prompt_stands_where_the_template_puts_it_or_in_front_as_text(name, words, system):
    ours, talk = read(name)[1], said(words if len(words) % 2 else words[:-1])
    if row(name)["system prompt"] == "in front":
        assert pieces(ours, talk, system) == whole(name, talk, system)
    else:
        assert ours.system(system)[:1] != ours.start
        assert read(name)[0].decode(ours.system(system)) == f"{system}\n\n"


@EVERY
@settings(max_examples=10, deadline=None)
@given(words=TALKS)
def test_the_ids_of_more_messages_start_with_the_ids_of_fewer(name, words):
    ours, talk = read(name)[1], said(words)
    for n in range(len(talk)):
        fewer = [i for message in talk[:n] for i in ours.turn(message)]
        assert [i for message in talk[: n + 1] for i in ours.turn(message)][: len(fewer)] == fewer


@EVERY
def test_tool_calls_are_held_as_the_template_shows_them_or_in_our_words(name):
    tokenizer, ours = read(name)
    text = tokenizer.decode(pieces(ours, CALLING))
    if row(name)["tool calls"] == "its own":
        assert pieces(ours, CALLING) == whole(name, CALLING)
    else:
        assert '<tool_call>\n{"name": "now", "arguments": {"city": "Lyon"}}\n</tool_call>' in text
    assert all(text.count(word) == 1 for word in ("noon.", '"city"', "And my dog?"))
    assert ("<tool_response>\nnoon\n</tool_response>" in text) == (row(name)["tool results"] == "in a question")


@EVERY
@pytest.mark.parametrize("arguments", ['{"city": "Lyon"}', {"city": "Lyon"}])
def test_arguments_may_come_as_text_or_as_an_object(name, arguments):
    ours = read(name)[1]
    function = {"name": "now", "arguments": arguments}
    message = {"role": "assistant", "content": None, "tool_calls": [{"id": "abcdefghi", "function": function}]}
    assert ours.turn(message) == ours.turn(CALLING[1])


@EVERY
@pytest.mark.parametrize("answer", ["In Lyon.", "At home, in <think> of it."])
@pytest.mark.parametrize("thought", ["<think>\nHm.\n</think>\n\n", "<think></think>", "<thinking>a\nb</thinking>\n"])
def test_thoughts_are_not_remembered(name, thought, answer):
    ours = read(name)[1]
    plain = {"role": "assistant", "content": answer}
    assert ours.turn({"role": "assistant", "content": thought + answer}) == ours.turn(plain)


@pytest.mark.parametrize("text", ["<think>\nThe user asks", "<think>", "[THINK]Hm", "  <thinking>so"])
def test_a_thought_that_was_cut_off_is_an_answer_in_which_nothing_was_said(text):
    with pytest.raises(InputError, match="empty assistant"):
        check_message({"role": "assistant", "content": text})
    assert read("qwen3")[1].spoken(text) == ""


def test_an_answer_that_begins_within_a_thought_is_what_comes_behind_it():
    ours = read("deepseek-r1-distill")[1]
    assert ours.spoken("Hm, Lyon?\n</think>\n\nIn Lyon.") == "In Lyon."
    assert ours.spoken("Hm, Lyon?") == ""


def row(name: str) -> dict[str, str]:
    """What docs/templates.md says of a template."""
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line[:1] == "|"]
    found = next(cells for cells in table if name in [one.strip(" `") for one in cells[0].split(",")])
    return dict(zip(table[0], found, strict=True))
