"""Tools in words: how a model is told of them, and how its calls are read. The words are Hermes', which Qwen speaks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from beacon_memory.errors import InputError

Tool = Mapping[str, Any]  # {"type": "function", "function": {"name", "description", "parameters"}}

CALL_OPEN, CALL_CLOSE = "<tool_call>\n", "\n</tool_call>"
ANSWER = "beacon-"  # the id of an answer that a model of this package gave begins so
_OPEN, _CLOSE = CALL_OPEN.strip(), CALL_CLOSE.strip()


@dataclass(frozen=True)
class Call:
    """One call as a model wrote it."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class NamedCall:
    """A call with the id under which its result comes back."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Said:
    """An answer, taken apart."""

    text: str
    calls: tuple[Call, ...] = ()
    broken: tuple[str, ...] = ()  # what began as a call and is none


def tools_prompt(tools: Sequence[Tool]) -> str:
    """What a model whose template says nothing about tools is told of them."""
    listed = "\n".join(as_json(dict(tool)) for tool in tools)
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{listed}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
        "</tool_call>"
    )


def schema_prompt(schema: Mapping[str, Any]) -> str:
    """What a model is told of the form its answer will have."""
    return f"Answer with JSON of this schema, and nothing else:\n{as_json(schema)}"


def tools_choice(choice: str | Mapping[str, Any] | bool | None, names: Sequence[str]) -> str | None:
    """Which tools may be called, in OpenAI's words or bare: "auto", "none", "any", a tool's name, or None for "auto".

    Raises InputError for a tool that is not there.
    """
    if isinstance(choice, Mapping):
        choice = str(choice.get("function", choice).get("name", choice.get("type")))
    if choice is None or choice is False:
        return None
    if choice is True or choice == "required":
        return "any"
    if choice not in ("auto", "none", "any", *names):
        raise InputError(f"tool_choice {choice!r} is not a bound tool; there are {', '.join(names) or 'none'}")
    return str(choice)


def write_said(said: Said) -> str:
    """An answer in the words in which it is remembered.

    >>> write_said(Said("", (Call("now", {}),)))
    '<tool_call>\\n{"name": "now", "arguments": {}}\\n</tool_call>'
    """
    calls = [CALL_OPEN + as_json({"name": c.name, "arguments": dict(c.arguments)}) + CALL_CLOSE for c in said.calls]
    return "\n".join([*([said.text.strip()] if said.text.strip() else []), *calls])


def read_said(text: str) -> Said:
    """An answer's text and calls.

    >>> read_said('Let me see. <tool_call>{"name": "now", "arguments": {}}</tool_call>')
    Said(text='Let me see.', calls=(Call(name='now', arguments={}),), broken=())
    """
    words, calls, broken, at = [], list[Call](), list[str](), 0
    while (begin := text.find(_OPEN, at)) >= 0:
        words.append(text[at:begin])
        body, at = _body(text, begin + len(_OPEN))
        try:
            value = json.loads(body)
            calls.append(Call(str(value["name"]), dict(value["arguments"])))
        except (ValueError, TypeError, KeyError, RecursionError):
            broken.append(body.strip())
    words.append(text[at:])
    return Said("".join(words).strip() if calls or broken else text, tuple(calls), tuple(broken))


def as_json(value: Any) -> str:
    """A value as the model reads it; what JSON has no word for (a date, a Decimal) in its own words. Raises InputError.

    >>> import datetime
    >>> as_json({"day": datetime.date(2026, 11, 26)})
    '{"day": "2026-11-26"}'
    """
    try:
        return json.dumps(value, ensure_ascii=False, default=_plainly)
    except (TypeError, ValueError, RecursionError) as exc:
        raise InputError(f"calls and tools are made of JSON values: {exc}") from exc


def _plainly(value: Any) -> Any:
    if callable(dump := getattr(value, "model_dump", None)):
        return dump(mode="json")
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    return list(value) if isinstance(value, Mapping | tuple) else str(value)


def _body(text: str, at: int) -> tuple[str, int]:
    """What stands within a call's marks, and where the text goes on: a closing mark within a string is the string's."""
    begin = len(text) - len(text[at:].lstrip())
    try:
        _, end = json.JSONDecoder().raw_decode(text, begin)
    except (ValueError, RecursionError):
        end = text.find(_CLOSE, at)
        return (text[at:], len(text)) if end < 0 else (text[at:end], end + len(_CLOSE))
    close = text.find(_CLOSE, end)
    if close < 0:
        return text[at:], len(text)
    return text[at:close], close + len(_CLOSE)
