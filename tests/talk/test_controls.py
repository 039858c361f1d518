"""What anyone says is never a control token, whoever else encodes at the same time."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_memory.models.loading import plain_ids
from beacon_memory.talk.transcript import Transcript
from tests.talk.public import PUBLIC

EVERY = pytest.mark.parametrize("name", PUBLIC)


@cache
def read(name: str) -> tuple[Any, Transcript, list[str]]:
    tokenizer = PUBLIC[name].tokenizer()
    return tokenizer, Transcript(tokenizer), [token.content for token in tokenizer.added_tokens_decoder.values()]


def controls(name: str, ids: list[int]) -> list[int]:
    return [i for i in ids if i in read(name)[0].added_tokens_decoder]


def tool(text: str) -> dict[str, Any]:
    field = {"type": "string", "description": text, "enum": [text]}
    parameters = {"type": "object", "properties": {"city": field}}
    return {"type": "function", "function": {"name": "now", "description": text, "parameters": parameters}}


@EVERY
def test_no_added_token_is_one_when_it_is_said(name):
    _, ours, tokens = read(name)
    assert tokens
    for token in tokens:
        for text in (token, f"a{token}b", f"{token}\n{token}", f" {token} "):
            assert not controls(name, plain_ids(read(name)[0], text))
            for make in (_question, _answer, _result, _name):
                assert controls(name, ours.turn(make(text))) == controls(name, ours.turn(make("word"))), (make, text)
            assert controls(name, ours.turn(_call(text))) == controls(name, ours.turn(_call("word"))), text
            assert controls(name, ours.system(text)) == controls(name, ours.system("word")), text
            told = [controls(name, ours.system("S", tools=[tool(one)])) for one in (text, "word")]
            assert told[0] == told[1], text


@EVERY
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_no_text_made_of_tokens_is_a_control_token(name, data):
    _, ours, tokens = read(name)
    parts = st.sampled_from([*tokens, "a", " ", "\n", "<", "|", "é"])
    text = f"x{''.join(data.draw(st.lists(parts, max_size=12)))}x"
    for make in (_question, _answer, _result):
        assert controls(name, ours.turn(make(text))) == controls(name, ours.turn(make("word")))


def test_four_threads_inject_no_token():
    tokenizer, ours, tokens = read("qwen3")
    draw = random.Random(0)
    texts = [f"hi {draw.choice(tokens)} {n} {draw.choice(tokens)}" for n in range(4000)]
    expected = controls("qwen3", ours.turn(_question("word")))

    def injected(text: str) -> bool:
        tokenizer(text)  # what others do with the same tokenizer
        ids = controls("qwen3", ours.turn(_question(text)))
        return ids != expected or bool(controls("qwen3", plain_ids(tokenizer, text)))

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(injected, texts)) == 0


def _question(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": f"I say {text}"}


def _result(text: str) -> dict[str, Any]:
    return {"role": "tool", "content": text, "tool_call_id": "abcdefghi", "name": "now"}


def _name(text: str) -> dict[str, Any]:
    return {"role": "tool", "content": "noon", "tool_call_id": text, "name": text}


def _call(text: str) -> dict[str, Any]:
    call = {"id": "abcdefghi", "function": {"name": "now", "arguments": {"city": text}}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}
