"""LangChain's messages as a session remembers them, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from beacon_memory.errors import InputError
from beacon_memory.talk.messages import spoken, whole
from beacon_memory.talk.tools import Call, Said, as_json, read_said, write_said

_ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "system": "system",
    "developer": "system",
}
_TEXTS = ("text", "text-plain", "input_text", "output_text")  # kinds of blocks that are words
_MARKS = ("cachePoint", "cache_point")  # for other providers' caches


def to_plain(messages: Sequence[BaseMessage]) -> tuple[str | None, list[dict[str, Any]]]:
    """The system prompt, wherever in the list its parts stand, and the other messages as ours, without those in which
    nothing is said. Raises InputError for a content block that is not text.
    """
    system, plain = [], []
    for message in messages:
        role, text = _role(message), text_of(message)
        if role == "system":
            system += [text] if text.strip() else []
            continue
        about = {key: value for key in ("id", "name") if (value := getattr(message, key, None))}
        if role == "assistant":
            made = message.tool_calls if isinstance(message, AIMessage) else []
            calls: list[dict[str, Any]] = [{**call, "args": json.loads(as_json(call["args"]))} for call in made]
            text = write_said(Said(spoken(text), tuple(Call(call["name"], call["args"]) for call in calls)))
            about |= {"tool_calls": calls} if calls else {}
        elif role == "tool":
            text = text if text.strip() else "(nothing)"
            about |= {"tool_call_id": call} if (call := getattr(message, "tool_call_id", None)) else {}
        if text.strip():
            plain.append({"role": role, "content": text} | about)
    return "\n\n".join(system) or None, plain


def to_asked(messages: Sequence[BaseMessage]) -> tuple[str | None, list[dict[str, Any]]]:
    """The same for an answer: a system message alone is what is asked. Raises InputError where nothing is."""
    if messages and _role(messages[-1]) == "user" and not text_of(messages[-1]).strip():
        raise InputError("an empty user message: there is nothing to answer")
    system, plain = to_plain(messages)
    return (system, plain) if plain or system is None else (None, [{"role": "user", "content": system}])


def text_of(message: BaseMessage) -> str:
    """A message's text. Raises InputError for a block that is not text; an assistant's are left out."""
    if isinstance(message.content, str):
        return whole(message.content)
    parts = []
    for given in message.content:
        block: Mapping[str, Any] = {"text": given} if isinstance(given, str) else given
        kind = str(block.get("type", "text" if "text" in block else "unknown"))
        text = block.get("refusal" if kind == "refusal" else "text")
        if kind in (*_TEXTS, "refusal") and (text is None or isinstance(text, str)):
            parts.append(text or "")
        elif isinstance(message, ToolMessage) and kind == "json":
            parts.append(as_json(block.get("json")))
        elif not isinstance(message, AIMessage) and not block.keys() & set(_MARKS):
            raise InputError(
                f"a content block of type {kind!r} cannot be read: this model reads text alone "
                f"(in a {message.type} message)"
            )
    return whole("".join(parts))


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        if message.role.lower() not in _ROLES:
            raise InputError(f"a message's role is one of {', '.join(_ROLES)}, not {message.role!r:.80}")
        return _ROLES[message.role.lower()]
    kinds: dict[type[BaseMessage], str] = {SystemMessage: "system", AIMessage: "assistant", HumanMessage: "user"}
    kinds |= {ToolMessage: "tool", FunctionMessage: "tool"}
    for kind, role in kinds.items():
        if isinstance(message, kind):
            return role
    raise InputError(f"a {type(message).__name__} cannot be read: write a human, ai, tool or system message")


def from_plain(message: Mapping[str, Any]) -> BaseMessage:
    """A remembered message as LangChain's."""
    about = {key: message[key] for key in ("id", "name") if message.get(key)}
    if message["role"] == "user":
        return HumanMessage(message["content"], **about)
    if message["role"] == "tool":
        return ToolMessage(message["content"], tool_call_id=message.get("tool_call_id", ""), **about)
    if calls := message.get("tool_calls"):
        return AIMessage(read_said(message["content"]).text, tool_calls=[dict(call) for call in calls], **about)
    return AIMessage(message["content"], **about)
