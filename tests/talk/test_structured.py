"""Answers of a given form: valid whatever the model would rather say, however few tokens it has."""

from __future__ import annotations

import json
import re

import pytest

from beacon_memory.errors import ConfigError, InputError
from beacon_memory.talk.structured import Grammar, tools_grammar
from beacon_memory.talk.tools import read_said
from beacon_memory.testing import ScriptedModel, tiny_model

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 5},
        "tags": {"type": "array", "items": {"type": "string"}},
        "kind": {"enum": ["cat", "dog", "cow"]},
        "home": {"$ref": "#/$defs/Home"},
    },
    "required": ["name", "age", "tags", "kind", "home"],
    "additionalProperties": False,
    "$defs": {
        "Home": {"type": "object", "properties": {"city": {"type": "string", "minLength": 3}}, "required": ["city"]}
    },
}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.mark.parametrize("limit", [120, 200])
@pytest.mark.parametrize("seed", range(3))
def test_an_untrained_model_always_writes_json_of_the_schema(model, seed, limit):
    [answer] = model.answers(
        [model.encode("Who?")], max_new_tokens=limit, temperature=1.5, seed=seed, constraint=Grammar.json(PERSON)
    )
    value = json.loads(answer.text)
    assert answer.finish == "stop"
    assert list(value) == PERSON["required"]
    assert value["age"] >= 5
    assert value["kind"] in ("cat", "dog", "cow")
    assert len(value["home"]["city"]) >= 3


@pytest.mark.parametrize("schema", [{"type": "object"}, {"type": "array"}, {"type": "string"}, {}])
@pytest.mark.parametrize("seed", range(2))
def test_even_free_json_comes_to_an_end(model, schema, seed):
    text = model.generate(
        [model.encode("{")], max_new_tokens=40, temperature=2.0, seed=seed, constraint=Grammar.json(schema)
    )[0]
    json.loads(text)


def test_a_batch_and_a_stream_write_what_one_alone_writes(model):
    how = {"max_new_tokens": 100, "constraint": Grammar.json(PERSON)}
    prompts = [model.encode("Who?"), model.encode("And who is that over there?")]
    alone = [model.generate([prompt], **how)[0] for prompt in prompts]
    assert model.generate(prompts, **how) == alone
    assert ["".join(model.stream(prompt, **how)) for prompt in prompts] == alone


TOOLS = {
    "add": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    "now": {"type": "object", "properties": {}},
}


@pytest.mark.parametrize("seed", range(3))
def test_a_call_that_must_be_made_is_made(model, seed):
    grammar = Grammar.calls(TOOLS, text=False, many=False)
    text = model.generate([model.encode("?")], max_new_tokens=90, temperature=1.5, seed=seed, constraint=grammar)[0]
    body = text.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    call = json.loads(body)
    assert call["name"] in TOOLS
    assert isinstance(call["arguments"], dict)


def test_a_model_makes_up_no_argument_that_a_tool_does_not_name():
    """SmolLM2 gave a tool without parameters a "time", which no function took."""
    wanted = '<tool_call>\n{"name": "now", "arguments": {"time": "noon"}}\n</tool_call>'
    model = ScriptedModel(lambda seen: wanted)
    for parameters, given in ((None, {}), ({"type": "object", "additionalProperties": {"type": "string"}}, None)):
        tool = {"type": "function", "function": {"name": "now", "parameters": parameters}}
        constraint = tools_grammar([tool], "any")
        text = model.generate([model.encode("?")], max_new_tokens=160, constraint=constraint)[0]
        assert read_said(text).calls[0].arguments == ({"time": "noon"} if given is None else given)


BODY = '{"name": "add", "arguments": {"a": 7}}\n</tool_call>'


@pytest.mark.parametrize(
    ("wanted", "limit", "expected"),
    [
        ("Let me add <b>.", 200, None),
        ("<tool_call>\n" + BODY, 200, None),
        ("Let me add. <tool_call>\n" + BODY, 200, None),
        ("a < b <tool_call>\n" + BODY + "\n<tool_call>\n" + BODY, 300, None),
        # What it would rather write than a call is no call; nothing follows one.
        ("Now: <tool_call>\nno JSON, ever " + "<b> " * 99, 200, r"Now: <tool_call>\n.*\n</tool_call>"),
        ("Now: <tool_call>\n" + BODY + " And then?", 200, r"Now: <tool_call>\n.*\n</tool_call>"),
    ],
)
def test_a_call_may_come_anywhere_in_an_answer_and_is_valid(wanted, limit, expected):
    """Only a call that opened the answer was held to its schema."""
    model = ScriptedModel(lambda seen: wanted)
    grammar = Grammar.calls(TOOLS, text=True, many=True)
    [answer] = model.answers([[5]], max_new_tokens=limit, constraint=grammar)
    assert answer.finish == "stop"
    assert re.fullmatch(re.escape(wanted) if expected is None else expected, answer.text, re.DOTALL)
    said = read_said(answer.text)
    assert not said.broken
    assert all(call.name in TOOLS for call in said.calls)
    assert len(said.calls) == (wanted.count(BODY) if expected is None else 1)


@pytest.mark.parametrize("before", range(0, 120, 7))
def test_a_call_that_cannot_be_ended_is_not_begun(before):
    wanted = "x" * before + "<tool_call>\n" + BODY + " and so on" * 50
    [answer] = ScriptedModel(lambda seen: wanted).answers(
        [[5]], max_new_tokens=130, constraint=Grammar.calls(TOOLS, text=True, many=False)
    )
    said = read_said(answer.text)
    assert not said.broken
    assert [call.name for call in said.calls] in ([], ["add"])
    assert bool(said.calls) == (before < 30)
    if not said.calls:
        assert (answer.tokens, answer.finish) == (130, "length")  # what is no call is not cut short


@pytest.mark.parametrize("seed", range(6))
def test_whatever_an_untrained_model_says_with_tools_at_hand_its_calls_are_valid(model, seed):
    grammar = Grammar.calls(TOOLS, text=True, many=True)
    prompt = model.encode("<tool_call>" * 3)
    text = model.generate([prompt], max_new_tokens=90, temperature=1.5, seed=seed, constraint=grammar)[0]
    assert not read_said(text).broken


def test_what_cannot_be_held_to_is_refused_by_name(model):
    with pytest.raises(InputError, match="banana"):
        Grammar.json({"type": "banana"})
    with pytest.raises(InputError, match="'add'"):
        Grammar.calls({"add": {"type": "object", "properties": 5}}, text=True, many=True)
    with pytest.raises(ConfigError, match="shortest answer"):
        model.generate([[5]], max_new_tokens=10, constraint=Grammar.json(PERSON))


def test_with_tools_at_hand_the_answer_may_be_text_or_json_of_a_schema():
    """A tool's own schema once took the place of the answer's."""
    said = {}
    model = ScriptedModel(lambda seen: said["now"])
    for said["now"], schema in (("Just words, <b>bold</b>.", None), ('{"age": 7}', {"type": "object"})):
        grammar = Grammar.calls(TOOLS, text=True, many=True, schema=schema)
        assert model.generate([[5]], max_new_tokens=90, constraint=grammar) == [said["now"]]
