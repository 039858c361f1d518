"""Replies as LangChain's messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from langchain_beacon.citations import PROVIDER

if TYPE_CHECKING:
    from beacon_memory.client.reply import RemoteReply
    from beacon_memory.serving.engine import Engine
    from beacon_memory.sessions.reply import Reply


class Talk:
    """A reply as LangChain's messages."""

    def __init__(self, reply: Reply | RemoteReply, *, engine: Engine) -> None:
        self.reply, self._engine = reply, engine

    def whole(self) -> ChatResult:
        """The answer, read to its end."""
        for _ in self.reply:
            pass
        return self.result()

    def result(self) -> ChatResult:
        """The whole answer, once it has been read."""
        metadata, said = self._metadata(), self.reply.said
        message = AIMessage(
            said.text,
            id=self.reply.id,
            tool_calls=[tool_call(name=call.name, args=call.arguments, id=call.id) for call in self.reply.calls],
            invalid_tool_calls=[
                invalid_tool_call(name=None, args=broken, id=None, error="not JSON of a call") for broken in said.broken
            ],
            usage_metadata=self._usage(),
            response_metadata=metadata,
        )
        info = {"finish_reason": metadata["finish_reason"]}
        return ChatResult(generations=[ChatGeneration(message=message, generation_info=info)])

    def chunks(self) -> Iterator[ChatGenerationChunk]:
        """The answer in pieces; the last one tells what it took."""
        reply = self.reply
        try:
            for text in reply:
                yield ChatGenerationChunk(message=AIMessageChunk(content=text, id=reply.id))
        finally:
            reply.close()
        calls = [
            tool_call_chunk(name=call.name, args=_json(call.arguments), id=call.id, index=n)
            for n, call in enumerate(reply.calls)
        ]
        calls += [
            tool_call_chunk(name=None, args=broken, id=None, index=len(calls) + n)
            for n, broken in enumerate(reply.said.broken)
        ]
        metadata = self._metadata()
        last = AIMessageChunk(
            content="",
            id=reply.id,
            tool_call_chunks=calls,
            usage_metadata=self._usage(),
            response_metadata=metadata,
            chunk_position="last",
        )
        yield ChatGenerationChunk(message=last, generation_info={"finish_reason": metadata["finish_reason"]})

    def _usage(self) -> UsageMetadata:
        usage = self.reply.usage
        return UsageMetadata(
            input_tokens=usage.tokens,
            output_tokens=usage.answer,
            total_tokens=usage.tokens + usage.answer,
            input_token_details={"cache_read": usage.read, "cache_creation": usage.folded},
        )

    def _metadata(self) -> dict[str, Any]:
        return {
            "model_name": str(self._engine.name),
            "model_provider": PROVIDER,
            "finish_reason": self.reply.finish,
            "beacon": self.reply.physical,
        }


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), ensure_ascii=False)
