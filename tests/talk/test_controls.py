"""What anyone says is never a control token, whatever template it is shown in."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from public import PUBLIC

from beacon_memory.models.loading import plain_ids
from beacon_memory.talk.transcript import Transcript

EVERY = pytest.mark.parametrize("name", PUBLIC)
TOKENS = sorted({token for one in PUBLIC.values() for token in one.tokens})


@cache
def opened(name):
    tokenizer = PUBLIC[name].tokenizer()
    return tokenizer, Transcript(tokenizer), set(tokenizer.added_tokens_decoder)


def question(text):
    return {"role": "user", "content": text}


def answer(text):
    return {"role": "assistant", "content": f"I say {text} again"}


def assistant(text):
    return {"role": "assistant", "content": text}


def result(text):
    return {"role": "tool", "content": text, "tool_call_id": "call00001", "name": "now"}


def named(text):
    return {"role": "tool", "content": "noon", "tool_call_id": text, "name": text}


def about(text):
    return {"role": "user", "content": "Hi", "name": text, "id": text}


def call(text):
    function = {"name": "now", "arguments": {"city": text}}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": "call00001", "function": function}]}


def called(text):
    """A tool of that name, its argument of that name, and words beside the call."""
    function = {"name": f"f{text}", "arguments": {text: 1}}
    return {"role": "assistant", "content": text, "tool_calls": [{"id": text, "function": function}]}


def tool(text):
    field = {"type": "string", "description": text, "enum": [text]}
    parameters = {"type": "object", "properties": {text: field}}
    return {"type": "function", "function": {"name": text, "description": text, "parameters": parameters}}


def controls(name, ids):
    return [i for i in ids if i in opened(name)[2]]


def check_said(name, text):
    """Wherever a text stands, the control tokens around it are those that stand around a word."""
    tokenizer, transcript, _ = opened(name)
    assert not controls(name, plain_ids(tokenizer, text)), text
    for make in (question, answer, result, named, about, call, called):
        said, plain = (transcript.turn(make(words)) for words in (text, "word"))
        assert controls(name, said) == controls(name, plain), (make, text)
    for tools in (False, True):
        told = [transcript.system(words, tools=[tool(words)] if tools else ()) for words in (text, "word")]
        assert controls(name, told[0]) == controls(name, told[1]), text
    asked = [
        transcript.prompt([], behind=True, opens=False, asked=[question(words)], system=words)
        for words in (text, "word")
    ]
    assert controls(name, asked[0]) == controls(name, asked[1]), text


@EVERY
def test_no_added_token_is_one_when_it_is_said(name):
    tokens = [token.content for token in opened(name)[0].added_tokens_decoder.values()]
    assert tokens
    for token in tokens:
        for text in (token, f"a{token}b", f"{token}\n{token}"):
            check_said(name, text)


def texts():
    """Texts of tokens, of halves of tokens, and of what templates branch on."""
    halves = [part for token in TOKENS for part in (token[: len(token) // 2], token[len(token) // 2 :])]
    others = ["a", " ", "\n", "<", "|", "é", "{{ messages }}", "{% raw %}", "</think>", "<tool_response>\n", "1" * 30]
    words = st.sampled_from([*TOKENS, *map(str.upper, TOKENS), *halves, *others])
    # A letter at each end: an answer of white space or of a thought alone is no message.
    return st.lists(words, max_size=8).map(lambda found: f"x{''.join(found)}x")


@EVERY
@settings(max_examples=4, deadline=None)
@given(text=texts())
def test_no_text_is_a_control_token(name, text):
    check_said(name, text)


@pytest.mark.long
@EVERY
@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=texts())
def test_none_of_2000_texts_is_a_control_token(name, text):
    check_said(name, text)


@EVERY
def test_what_stands_side_by_side_makes_no_control_token(name):
    """Two halves of a token, each said by another, or one said and one written."""
    _, transcript, _ = opened(name)
    made = [(question, assistant), (assistant, question), (result, question)]
    plain = [[controls(name, transcript.turn(make("word"))) for make in pair] for pair in made]
    for token in PUBLIC[name].tokens:
        for at in {1, len(token) // 2, len(token) - 1}:
            for pair, expected in zip(made, plain, strict=True):
                halves = (f"x{token[:at]}", f"{token[at:]}x")
                ids = [transcript.turn(make(half)) for make, half in zip(pair, halves, strict=True)]
                assert [controls(name, one) for one in ids] == expected, halves
                assert controls(name, [i for one in ids for i in one]) == [i for one in expected for i in one]
