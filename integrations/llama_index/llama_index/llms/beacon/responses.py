"""Replies as LlamaIndex's responses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)

from beacon_memory.sessions.looking.plain import text_looked
from beacon_memory.sessions.memory import BeaconMemory
from beacon_memory.sessions.reply import Reply
from beacon_memory.sessions.turn import stream_answer
from beacon_memory.state.state import BeaconState


def chat_pieces(reply: Reply, *, model: str) -> Iterator[ChatResponse]:
    """A reply as it comes; the last response is the whole, with its calls and what it took."""
    text = ""
    try:
        for piece in reply:
            text += piece
            yield ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text), delta=piece)
    finally:
        reply.close()
    yield chat_response(reply, model=model)


def chat_response(reply: Reply, *, model: str) -> ChatResponse:
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


def _raw(reply: Reply, model: str) -> dict[str, Any]:
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


def completion_pieces(
    memory: BeaconMemory,
    prompt: str,
    *,
    contexts: Sequence[str | BeaconState],
    ratio: int | None,
    recall_tokens: int | None,
    model: str,
    **sampling: Any,
) -> Iterator[CompletionResponse]:
    """The answer to a prompt that is formatted already, as it comes; the last response is the whole."""
    ids = memory.model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    start = memory.transcript.start
    ids = ids[len(start) :] if start and ids[: len(start)] == start else ids
    answer = int(sampling.get("max_new_tokens", 256))
    how: dict[str, Any] = {"contexts": contexts, "ratio": ratio, "recall_tokens": recall_tokens}
    read = text_looked(memory, ids, answer=answer, **how)
    stream, text = stream_answer(memory, read, **sampling), ""
    try:
        for piece in stream:
            text += piece
            yield CompletionResponse(text=text, delta=piece)
    finally:
        stream.close()
    assert stream.answer is not None
    usage = {
        "prompt_tokens": read.tokens,
        "completion_tokens": stream.answer.tokens,
        "total_tokens": read.tokens + stream.answer.tokens,
    }
    about = {"model": model, "finish_reason": stream.answer.finish, "usage": usage}
    if read.sources:
        about["beacon"] = {"sources": [source.to_dict() for source in read.sources]}
    yield CompletionResponse(text=text, delta="", raw=about, additional_kwargs=usage)
