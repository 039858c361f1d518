"""A memory for agents and chat engines: whatever was said is folded, and read by the LLM with every question."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Self, Unpack

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory.types import BaseMemory
from llama_index.llms.beacon.messages import from_plain, to_plain
from llama_index.llms.beacon.reference import Reference, take_reference
from llama_index.memory.beacon.engines import engine_of
from pydantic import ConfigDict, Field

from beacon_memory.errors import ConfigError, InputError, SessionNotFound
from beacon_memory.serving.engine import Engine
from beacon_memory.serving.engines import Where
from beacon_memory.state.info import DOCUMENT

if TYPE_CHECKING:
    from beacon_memory.client.session import RemoteSession
    from beacon_memory.sessions.session import Session


class BeaconMemory(BaseMemory):
    """A session as LlamaIndex's memory, for a `BeaconLLM`. It holds names alone, so another process makes it anew of
    the session's id and the store.

    `get` gives what was said since the user last spoke, behind a reference to everything before; `get_all` the whole
    transcript.

    >>> from beacon_memory.testing import scripted_engine
    >>> from llama_index.llms.beacon import BeaconLLM
    >>> llm = BeaconLLM(engine=scripted_engine(lambda seen: "Rex!" if "called Rex" in seen else "Who?"))
    >>> memory = BeaconMemory.from_defaults(session_id="ada", llm=llm)
    >>> memory.put(ChatMessage("My dog is called Rex."))
    >>> memory.put(ChatMessage("What is he called?"))
    >>> llm.chat(memory.get()).message.content
    'Rex!'
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    session_id: str = Field(description="The session that is remembered.")
    engine: Engine = Field(exclude=True, repr=False, description="The model that folds, and the store.")
    beacon_ratio: int | None = Field(default=None, description="Raw tokens a slot stands for, from now on.")
    budget: int | None = Field(default=None, description="The most slots the session may keep.")

    @classmethod
    def class_name(cls) -> str:
        return "BeaconMemory"

    @classmethod
    def from_defaults(  # type: ignore[override]
        cls,
        session_id: str | None = None,
        llm: Any = None,
        chat_history: list[ChatMessage] | None = None,
        *,
        beacon_ratio: int | None = None,
        budget: int | None = None,
        **where: Unpack[Where],
    ) -> Self:
        """The memory of a session, kept in the LLM's store or in one named here (`Where`).

        Without an LLM its model is named: BEACON_MODEL, else "smollm2". Nothing is loaded before it is needed. Raises
        ConfigError.
        """
        engine = engine_of(llm, **where)
        session_id = session_id or str(uuid.uuid4())
        if llm is not None and llm.session_id == session_id:
            raise ConfigError(
                f"the LLM remembers session {session_id!r} by itself, which would write it twice: make the LLM "
                f"without session_id, or leave the memory out"
            )
        memory = cls(session_id=session_id, engine=engine, beacon_ratio=beacon_ratio, budget=budget)
        if chat_history:
            memory.set(chat_history)
        return memory

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Refused, so that a workflow's context leaves the memory out, as it does with LlamaIndex's own, and takes the
        one that is given to the next run. Raises ConfigError.
        """
        raise ConfigError(
            f"a memory is not written down: make it anew by BeaconMemory.from_defaults({self.session_id!r}, llm=…)"
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.to_dict()

    @property
    def _session(self) -> Session | RemoteSession:
        return self.engine.session(self.session_id, ratio=self.beacon_ratio, budget=self.budget)

    def get(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:
        try:
            before, newest = self._session.newest()
        except SessionNotFound:
            return []
        reference = Reference(self.engine, self.session_id, before)
        return [reference.message(), *(from_plain(message) for message in newest if message["role"] != DOCUMENT)]

    def get_all(self) -> list[ChatMessage]:
        try:
            messages = self._session.messages()
        except SessionNotFound:
            return []
        return [from_plain(message) for message in messages if message["role"] != DOCUMENT]

    def put(self, message: ChatMessage) -> None:
        self.put_messages([message])

    def put_messages(self, messages: list[ChatMessage]) -> None:
        if plain := _plain(messages):
            self._session.add(plain)

    def set(self, messages: list[ChatMessage]) -> None:
        """Make these all that was said: what is held already is not read again. Where they stand behind this memory's
        own reference, as `get` gave them, what it stands for stays. Raises InputError for another memory's.
        """
        reference, messages = take_reference(messages)
        if reference is not None and reference.session_id != self.session_id:
            raise InputError(
                f"these messages stand behind another memory, of {reference.session_id!r}: its get_all() gives them all"
            )
        held = [] if reference is None else self._session.messages()[: reference.messages]
        if plain := [*(message for message in held if message["role"] != DOCUMENT), *_plain(messages)]:
            self._session.set(plain)
        else:
            self.reset()

    def reset(self) -> None:
        """Forget the session, every byte of it."""
        try:
            self._session.forget()
        except SessionNotFound:
            return

    async def aget(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:
        return await self.engine.run(lambda: self.get(input, **kwargs))

    async def aget_all(self) -> list[ChatMessage]:
        return await self.engine.run(self.get_all)

    async def aput(self, message: ChatMessage) -> None:
        await self.engine.run(lambda: self.put(message))

    async def aput_messages(self, messages: list[ChatMessage]) -> None:
        await self.engine.run(lambda: self.put_messages(messages))

    async def aset(self, messages: list[ChatMessage]) -> None:
        await self.engine.run(lambda: self.set(messages))

    async def areset(self) -> None:
        await self.engine.run(self.reset)


def _plain(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as a session remembers them, checked before anything is written. Raises InputError."""
    plain = to_plain(messages)
    if plain.system is not None:
        raise InputError(
            "a system prompt is not remembered: it may change with every question; give it to the agent or engine "
            "(system_prompt=), not to the memory"
        )
    return plain.messages
