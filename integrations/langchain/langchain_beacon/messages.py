"""LangChain's messages as a session remembers them, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage

from beacon_memory.errors import InputError
from beacon_memory.talk.tools import Call, Said, read_said, write_said

_IGNORED = ("tool_use", "tool_call", "reasoning", "thinking", "redacted_thinking", "non_standard")  # of the assistant's


def to_plain(messages: Sequence[BaseMessage]) -> tuple[str | None, list[dict[str, Any]]]:
    """The system prompt, and the other messages as ours. Raises InputError for a content block that is not text."""
    system, plain = [], []
    for message in messages:
        text = text_of(message)
        if isinstance(message, SystemMessage):
            system.append(text)
            continue
        if isinstance(message, AIMessage):
            calls = tuple(Call(call["name"], call["args"]) for call in message.tool_calls)
            found: dict[str, Any] = {"role": "assistant", "content": write_said(Said(text, calls))}
            if calls:
                found["tool_calls"] = [dict(call) for call in message.tool_calls]
        elif isinstance(message, ToolMessage):
            found = {"role": "tool", "content": text or "(nothing)", "tool_call_id": message.tool_call_id}
        elif isinstance(message, HumanMessage):
            found = {"role": "user", "content": text}
        elif isinstance(message, ChatMessage):
            found = {"role": message.role, "content": text}
        else:
            raise InputError(f"a {type(message).__name__} cannot be read: write a human, ai, tool or system message")
        if found["role"] == "assistant" and not found["content"]:
            continue  # an answer in which nothing was said
        plain.append(
            found | ({"id": message.id} if message.id else {}) | ({"name": message.name} if message.name else {})
        )
    return "\n\n".join(system) or None, plain


def text_of(message: BaseMessage) -> str:
    """A message's text. Raises InputError for a block that is neither text nor about tools."""
    if isinstance(message.content, str):
        return message.content
    parts = []
    for block in message.content:
        kind = "text" if isinstance(block, str) else str(block.get("type"))
        if kind == "text":
            parts.append(block if isinstance(block, str) else str(block["text"]))
        elif not (isinstance(message, AIMessage) and kind in _IGNORED):
            raise InputError(
                f"a content block of type {kind!r} cannot be read: this model reads text alone "
                f"(in a {message.type} message)"
            )
    return "".join(parts)


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
