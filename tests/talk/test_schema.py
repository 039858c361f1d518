"""Schemas as answers are held to them: what is written is of the class the schema was made of."""

from __future__ import annotations

import datetime
import enum
import json
import logging
import math
import uuid
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from pydantic import AnyUrl, BaseModel, Field, HttpUrl, TypeAdapter, ValidationError

from beacon_memory.errors import InputError
from beacon_memory.talk.schema import FORMATS, held
from beacon_memory.talk.structured import Grammar
from beacon_memory.testing import tiny_model

BYTES = LLTokenizer("byte")


def takes(schema, text):
    """Whether an answer that is held to a schema may be this."""
    matcher = LLMatcher(BYTES, Grammar.json(schema).text)
    data = list(text.encode())
    return matcher.consume_tokens(data) and matcher.is_accepting()


class Colour(enum.Enum):
    RED, GREEN = "red", "green"


class Tree(BaseModel):
    name: Annotated[str, Field(max_length=6)]
    branches: list[Tree] = []


KINDS = {
    "Decimal": Decimal,
    "float": float,
    "dict of floats": dict[Literal["x", "y"], float],
    "HttpUrl": HttpUrl,
    "AnyUrl": AnyUrl,
    "set of an enum": set[Colour],
    "date": datetime.date,
    "datetime": datetime.datetime,
    "time": datetime.time,
    "timedelta": datetime.timedelta,
    "UUID": uuid.UUID,
    "itself": Tree,
    "one of": Literal["a", 1, None],
    "or None": Decimal | None,
}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.mark.parametrize("kind", KINDS)
def test_what_random_weights_write_is_of_the_class(model, kind):
    class Form(BaseModel):
        value: KINDS[kind]

    grammar = Grammar.json(Form.model_json_schema())
    for seed in range(4):
        how = {"temperature": 1.5, "seed": seed, "max_new_tokens": 150, "constraint": grammar}
        (text,) = model.generate([model.encode("Go.")], **how)
        found = Form.model_validate_json(text)
        assert not isinstance(found.value, float) or math.isfinite(found.value)


@pytest.mark.parametrize(
    ("of", "strategy"),
    [
        ("date", st.dates(datetime.date(1000, 1, 1), datetime.date(2999, 12, 31)).map(str)),
        (
            "date-time",
            st.datetimes(datetime.datetime(1000, 1, 1), datetime.datetime(2999, 12, 31)).map(
                lambda t: t.isoformat()[:19] + "Z"
            ),
        ),
        ("time", st.times().map(lambda t: t.isoformat()[:8] + "+02:00")),
    ],
)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_every_day_of_the_calendar_can_be_written(of, strategy, data):
    text = data.draw(strategy)
    leap = "-02-29" in text  # it depends on the year whether there is such a day
    assert takes({"type": "string", "format": of}, json.dumps(text)) != leap


@pytest.mark.parametrize(
    "text", ['"2026-02-30T10:00:00Z"', '"2026-01-01T10:00:60Z"', '"2026-01-01"', '"0032-05-20T1:30:6z"']
)
def test_no_day_or_second_that_is_none(text):
    assert not takes({"type": "string", "format": "date-time"}, text)


def test_numbers_are_finite():
    """1e999 was read as infinity."""
    for schema in ({"type": "number"}, {"type": "number", "exclusiveMinimum": 0}):
        assert not takes(schema, "1e999")
        assert not takes(schema, "9" * 400)
        assert takes(schema, "12.5")
    assert takes({"type": "number", "maximum": 1e300}, "-3")


# Objects that name their keys, and how they stand within each other.
CLOSED = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("schema", "text", "taken"),
    [
        (CLOSED, '{"a": 1}', True),
        (CLOSED, '{"a": 1, "b": 2}', False),
        ({"type": "array", "items": CLOSED}, '[{"a": 1, "b": 2}]', False),
        ({"anyOf": [CLOSED, {"type": "null"}]}, '{"a": 1, "b": 2}', False),
        ({"$defs": {"C": CLOSED}, "$ref": "#/$defs/C"}, '{"a": 1, "b": 2}', False),
        ({"type": "object", "properties": {"properties": CLOSED}}, '{"properties": {"a": 1}}', True),
        ({"type": "object", "properties": {"properties": CLOSED}}, '{"properties": {"a": 1, "b": 1}}', False),
        ({**CLOSED, "additionalProperties": True}, '{"a": 1, "b": 2}', True),
        ({**CLOSED, "additionalProperties": {"type": "null"}}, '{"a": 1, "b": null}', True),
        ({"allOf": [CLOSED, {"properties": {"b": {"type": "integer"}}}]}, '{"a": 1, "b": 2}', True),
        ({"type": "object"}, '{"b": 2}', True),
        ({**CLOSED, "default": {"type": "number"}}, '{"a": 1}', True),
    ],
)
def test_keys_that_are_named_are_all_there_are(schema, text, taken):
    assert takes(schema, text) == taken


@pytest.mark.parametrize(
    ("pattern", "taken", "refused"),
    [
        (r"^(?=.*\d).{3,8}$", ["abc1"], ["ab"]),
        (r"^(?!admin)[a-z]+$", ["user"], ["User"]),
        (r"^a(?<!b)c$", ["ac"], ["abc"]),
        (r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$", ["12.5", "-3"], ["", "+", ".", "a"]),
        (r"^(?!^[-+.]*$)[+-]?0*(?:\d{0,4}|(?=[\d.]{1,7}0*$)\d{0,4}\.\d{0,2}0*$)", ["12.5"], ["12345", "1.234"]),
        (r"^\d{3}-[a-z]+$", ["123-ab"], ["12-ab"]),
    ],
)
def test_of_a_pattern_that_looks_around_the_rest_is_kept(pattern, taken, refused, caplog):
    """Such a schema could not be bound at all."""
    schema = {"type": "string", "pattern": pattern}
    with caplog.at_level(logging.WARNING):
        assert [takes(schema, json.dumps(text)) for text in taken] == [True] * len(taken)
    assert [takes(schema, json.dumps(text)) for text in refused] == [False] * len(refused)
    assert bool(caplog.records) == ("(?" in pattern and "[-+.]" not in pattern)


def test_what_no_answer_can_be_of_is_refused_by_our_own_error():
    loop: dict[str, Any] = {"type": "object", "properties": {}}
    loop["properties"]["again"] = loop
    for schema in (
        {"type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]},
        {"$ref": "https://example.com/a.json"},
        {"type": "object", "properties": {"a": {"default": Decimal(1)}}},
        loop,
    ):
        with pytest.raises(InputError):
            Grammar.json(schema)


def test_the_formats_are_what_pydantic_takes():
    for of, kind in (("date", datetime.date), ("date-time", datetime.datetime), ("duration", datetime.timedelta)):
        assert held({"type": "string", "format": of}, lambda pattern: True) == {
            "type": "string",
            "pattern": FORMATS[of],
        }
        with pytest.raises(ValidationError):
            TypeAdapter(kind).validate_python("P2Y62053800M019D")
