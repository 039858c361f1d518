"""LlamaIndex's messages as a session remembers them, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.llms.beacon.reference import KEY

from beacon_memory.errors import InputError
from beacon_memory.talk.messages import spoken, whole
from beacon_memory.talk.tools import Call, Said, as_json, read_said, write_said

_ROLES = {
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}
_SILENT = (CachePoint, ThinkingBlock, ToolCallBlock)  # blocks of the assistant's that are no words
_SYSTEM = (MessageRole.SYSTEM, MessageRole.DEVELOPER)


@dataclass(frozen=True)
class Plain:
    """Messages in the core's words."""

    system: str | None
    messages: list[dict[str, Any]]
    folded: int  # of the messages, how many stand before the last cache point


def to_plain(messages: Sequence[ChatMessage]) -> Plain:
    """Messages in the core's words, without those in which nothing is said. Raises InputError for a content block that
    is not text, and for what stands in the place of messages (`reference`).
    """
    if any(KEY in message.additional_kwargs for message in messages):
        raise InputError(
            "these messages are a memory's newest alone, behind a reference to all before: its get_all() gives those "
            "that can be written down"
        )
    system: list[str] = []
    plain: list[dict[str, Any]] = []
    folded = 0
    for message in messages:
        text = text_of(message)
        if message.role in _SYSTEM:
            system += [text] if text.strip() else []
        elif (found := _plain(message, text)) is not None:
            plain.append(found)
        if any(isinstance(block, CachePoint) for block in message.blocks):
            folded = len(plain)
    return Plain("\n\n".join(system) or None, plain, folded)


def to_asked(messages: Sequence[ChatMessage]) -> Plain:
    """The same for an answer: a system message alone is what is asked. Raises InputError where nothing is."""
    if messages and _ROLES.get(messages[-1].role) == "user" and not text_of(messages[-1]).strip():
        raise InputError("an empty user message: there is nothing to answer")
    plain = to_plain(messages)
    if plain.messages or plain.system is None:
        return plain
    return Plain(None, [{"role": "user", "content": plain.system}], 0)


def text_of(message: ChatMessage) -> str:
    """A message's text. Raises InputError for a block that is neither text nor about tools."""
    parts: list[str] = []
    for block in message.blocks:
        if isinstance(block, TextBlock):
            parts.append(block.text or "")
        elif isinstance(block, CitableBlock):
            parts += [_only_text(inner, message).text for inner in block.content]
        elif not isinstance(block, _SILENT if _ROLES.get(message.role) == "assistant" else CachePoint):
            _only_text(block, message)
    return whole("\n".join(parts))


def from_plain(message: Mapping[str, Any]) -> ChatMessage:
    """A remembered message as LlamaIndex's."""
    if message["role"] == "tool":
        about = {"tool_call_id": message["tool_call_id"]} if message.get("tool_call_id") else {}
        return ChatMessage(role=MessageRole.TOOL, content=message["content"], additional_kwargs=about)
    if message["role"] == "user" or not message.get("tool_calls"):
        return ChatMessage(role=MessageRole(message["role"]), content=message["content"])
    calls = [
        ToolCallBlock(tool_call_id=call.get("id"), tool_name=call["name"], tool_kwargs=dict(call["args"]))
        for call in message["tool_calls"]
    ]
    text = read_said(message["content"]).text
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=[*([TextBlock(text=text)] if text else []), *calls])


def _plain(message: ChatMessage, text: str) -> dict[str, Any] | None:
    """One message, or None for one in which nothing was said."""
    role = _ROLES[message.role]
    if role == "tool":
        about = {"tool_call_id": str(found)} if (found := message.additional_kwargs.get("tool_call_id")) else {}
        return {"role": "tool", "content": text if text.strip() else "(nothing)"} | about
    if role == "user":
        return {"role": "user", "content": text} if text.strip() else None
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)] or _older_calls(message)
    arguments = [call_arguments(block) for block in blocks]
    said = Said(
        spoken(text), tuple(Call(block.tool_name, given) for block, given in zip(blocks, arguments, strict=True))
    )
    if not (content := write_said(said)):
        return None
    calls = [
        {"name": block.tool_name, "args": given, "id": block.tool_call_id, "type": "tool_call"}
        for block, given in zip(blocks, arguments, strict=True)
    ]
    return {"role": "assistant", "content": content} | ({"tool_calls": calls} if calls else {})


def _older_calls(message: ChatMessage) -> list[ToolCallBlock]:
    """Calls as LlamaIndex kept them before it had blocks of them, and may have written them down: in OpenAI's words.
    Raises InputError for what is none.
    """
    found = []
    for given in message.additional_kwargs.get("tool_calls") or ():
        try:
            call = dict(given)
            named = dict(call["function"])
            arguments = named.get("arguments") or {}
            found.append(ToolCallBlock(tool_call_id=call.get("id"), tool_name=named["name"], tool_kwargs=arguments))
        except (KeyError, TypeError, ValueError) as exc:
            raise InputError(f"tool_calls in additional_kwargs are calls in OpenAI's words, not {given!r:.80}") from exc
    return found


def call_arguments(block: ToolCallBlock) -> dict[str, Any]:
    """The arguments of a call. Raises InputError for what is no JSON object."""
    given = block.tool_kwargs
    try:
        return dict(json.loads(as_json(given) if isinstance(given, dict) else given or "{}"))
    except (ValueError, TypeError) as exc:
        raise InputError(f"a call of {block.tool_name!r} has arguments that are no JSON object: {exc}") from exc


def _only_text(block: Any, message: ChatMessage) -> TextBlock:
    if isinstance(block, TextBlock):
        return block
    raise InputError(
        f"a content block of type {block.block_type!r} cannot be read: this model reads text alone "
        f"(in a {message.role.value} message)"
    )
