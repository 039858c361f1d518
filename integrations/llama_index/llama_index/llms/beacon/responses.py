"""Replies as LlamaIndex's responses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)

if TYPE_CHECKING:
    from beacon_memory.client.reply import RemoteReply, RemoteText
    from beacon_memory.serving.engine import Engine
    from beacon_memory.sessions.reply import Reply, TextReply


def chat_pieces(reply: Reply | RemoteReply, *, engine: Engine) -> Iterator[ChatResponse]:
    """A reply as it comes; the last response is the whole, with its calls and what it took."""
    text = ""
    try:
        for piece in reply:
            text += piece
            yield ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text), delta=piece)
    finally:
        reply.close()
    yield chat_response(reply, model=str(engine.name))


def chat_response(reply: Reply | RemoteReply, *, model: str) -> ChatResponse:
    """A whole reply, once it has been read."""
    said = reply.said
    text = "\n".join([said.text, *said.broken]) if said.broken else said.text
    calls = [
        ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=call.arguments) for call in reply.calls
    ]
    blocks = [*([TextBlock(text=text)] if text or not calls else []), *calls]
    raw = _raw(reply, model)
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks),
        raw=raw,
        delta="",
        additional_kwargs=raw["usage"],
    )


def completion(response: ChatResponse) -> CompletionResponse:
    """A chat's response as a completion's."""
    return CompletionResponse(
        text=response.message.content or "",
        delta=response.delta,
        raw=response.raw,
        additional_kwargs=response.additional_kwargs,
    )


def _raw(reply: Reply | RemoteReply, model: str) -> dict[str, Any]:
    """What a response tells beside its words: tokens as the user counts them, and what they cost."""
    usage = reply.usage
    return {
        "model": model,
        "finish_reason": reply.finish,
        "usage": {
            "prompt_tokens": usage.tokens,
            "completion_tokens": usage.answer,
            "total_tokens": usage.tokens + usage.answer,
            "prompt_tokens_details": {"cached_tokens": usage.read, "cache_write_tokens": usage.folded},
        },
        "beacon": reply.physical,
    }


def completion_pieces(pieces: TextReply | RemoteText, *, engine: Engine) -> Iterator[CompletionResponse]:
    """The answer to a prompt that is formatted already, as it comes; the last response is the whole."""
    text = ""
    try:
        for piece in pieces:
            text += piece
            yield CompletionResponse(text=text, delta=piece)
    finally:
        pieces.close()
    whole = pieces.completion
    usage = {
        "prompt_tokens": whole.tokens,
        "completion_tokens": whole.answer,
        "total_tokens": whole.tokens + whole.answer,
    }
    about: dict[str, Any] = {"model": str(engine.name), "finish_reason": whole.finish, "usage": usage}
    if whole.sources:
        about["beacon"] = {"sources": list(whole.sources)}
    yield CompletionResponse(text=text, delta="", raw=about, additional_kwargs=usage)
