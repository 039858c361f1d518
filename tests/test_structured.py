"""Answers of a given form: valid whatever the model would rather say, however few tokens it has."""

from __future__ import annotations

import json

import pytest

from beacon_memory.errors import ConfigError, InputError
from beacon_memory.structured import Grammar
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


@pytest.mark.parametrize("seed", range(2))
def test_where_text_is_allowed_a_call_that_is_begun_is_still_valid(model, seed):
    grammar = Grammar.calls(TOOLS, text=True, many=True)
    text = model.generate([model.encode("?")], max_new_tokens=90, temperature=1.5, seed=seed, constraint=grammar)[0]
    if text.startswith("<to"):
        assert text.endswith("</tool_call>")


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
