"""A block for LlamaIndex's own `Memory`: what leaves its queue is folded. And a memory whose reset clears both."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import Memory
from llama_index.core.memory.memory import BaseMemoryBlock
from llama_index.core.storage.chat_store.base_db import MessageStatus
from llama_index.llms.beacon.messages import to_plain
from llama_index.llms.beacon.reference import Reference, take_reference
from llama_index.memory.beacon.engines import engine_of
from pydantic import ConfigDict, Field

from beacon_memory.errors import InputError, SessionNotFound
from beacon_memory.serving.engine import Engine
from beacon_memory.serving.engines import Where


class BeaconMemoryBlock(BaseMemoryBlock[list[ChatMessage]]):
    """What `Memory` flushes from its queue is folded into a session, and stands in front of the queue, for `BeaconLLM`.

    The session is named as the memory is, or by `session_id`. System messages are not remembered: they belong to the
    agent. The block is never truncated: its slots are not the tokens that `token_limit` counts.

    LlamaIndex's `Memory.reset()` and `set()` empty its queue and tell no block of it: `FoldingMemory` does.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    name: str = Field(default="beacon", description="The block's name.")
    priority: int = Field(default=0, description="0: it is never truncated.")
    session_id: str | None = Field(default=None, description="The session; the memory's when None.")
    engine: Engine = Field(exclude=True, repr=False, description="The model that folds, and the store.")
    beacon_ratio: int | None = Field(default=None, description="Raw tokens a slot stands for, from now on.")
    budget: int | None = Field(default=None, description="The most slots the session may keep.")

    def __init__(
        self,
        llm: Any = None,
        *,
        engine: Engine | None = None,
        **fields: Any,
    ) -> None:
        """A block over the LLM's store or one named here, as `BeaconMemory.from_defaults`. Raises ConfigError."""
        where = Where(**{name: fields.pop(name) for name in Where.__annotations__ if name in fields})  # type: ignore[typeddict-item]
        engine = engine or engine_of(llm, **where)
        super().__init__(**fields | {"engine": engine})

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> list[ChatMessage]:
        named = self.named(block_kwargs.get("session_id"))

        def read() -> list[ChatMessage]:
            try:
                held = self.engine.session(named).info().messages
            except SessionNotFound:
                return []
            return [Reference(self.engine, named, held).message()]

        return await self.engine.run(read)

    async def aput(
        self, messages: list[ChatMessage], from_short_term_memory: bool = False, session_id: str | None = None
    ) -> None:
        # LlamaIndex writes the session's id into the messages; one that came in a message would be anybody's.
        if not from_short_term_memory or self.accept_short_term_memory:
            await self._write(messages, self.named(session_id))

    async def _aput(self, messages: list[ChatMessage]) -> None:
        await self._write(messages, self.named(None))

    async def _write(self, messages: list[ChatMessage], session_id: str) -> None:
        said = to_plain(messages).messages
        session = {"ratio": self.beacon_ratio, "budget": self.budget}
        if said:
            await self.engine.run(lambda: self.engine.session(session_id, **session).add(said))

    async def atruncate(self, content: list[ChatMessage], tokens_to_truncate: int) -> list[ChatMessage] | None:
        return content

    def reset(self, session_id: str | None = None) -> None:
        """Forget what was folded, every byte of it; the queue is not the block's."""
        try:
            self.engine.session(self.named(session_id)).forget()
        except SessionNotFound:
            return

    async def areset(self, session_id: str | None = None) -> None:
        await self.engine.run(lambda: self.reset(session_id))

    def named(self, session_id: Any = None) -> str:
        """The session of a memory of this id. Raises InputError where neither names one."""
        found = self.session_id or session_id
        if not found:
            raise InputError("a block remembers a session: give the block or the call a session_id")
        return str(found)


class FoldingMemory(Memory):
    """LlamaIndex's `Memory` with a `BeaconMemoryBlock` in its `memory_blocks`: `reset` and `set` clear the block too.

    It is made as `Memory` is: `FoldingMemory.from_defaults("ada", memory_blocks=[BeaconMemoryBlock(llm)])`.
    """

    async def areset(self, status: MessageStatus | None = None) -> None:
        """Forget the queue and what was folded; with `status`, the queue (ACTIVE) or what left it (ARCHIVED)."""
        if status is not MessageStatus.ACTIVE:
            await self._empty_blocks()
        await super().areset(status)

    async def aset(self, messages: list[ChatMessage]) -> None:
        """Put these messages in the place of all that was said, of what was folded too; that stays where its own
        message, as `get` gave it, is among them. Raises InputError for another memory's.
        """
        reference, queue = take_reference(messages)
        if reference is not None and reference.session_id not in [block.named(self.session_id) for block in self._ours]:
            raise InputError(f"these messages stand behind another memory, of {reference.session_id!r}: get them here")
        await super().aset(queue)
        if reference is None:
            await self._empty_blocks()

    @property
    def _ours(self) -> list[BeaconMemoryBlock]:
        return [block for block in self.memory_blocks if isinstance(block, BeaconMemoryBlock)]

    async def _empty_blocks(self) -> None:
        for block in self._ours:
            await block.areset(self.session_id)
