"""Which session a call belongs to: what the chat model and the text model share."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from langchain_core.messages import BaseMessage, SystemMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config

from beacon_memory.errors import SessionNotFound
from beacon_memory.stores.names import kind_of
from langchain_beacon.errors import translated
from langchain_beacon.settings import BeaconSettings

NO_SESSION = (
    "a graph's messages were answered without memory: its thread_id names no session, since calls within tools and "
    "nodes have it too. Add BeaconMemoryMiddleware, or call with session_id=…; session_id=None asks without memory in "
    "so many words"
)


class BeaconSessions(BeaconSettings):
    """The session of a call: `session_id=`, else `config["configurable"]["session_id"]`, else the constructor's; with
    `session_from_thread`, a graph's `thread_id` where nothing else names one.
    """

    session_id: str | None = None
    session_from_thread: bool = False
    """Whether a graph's thread_id names the session of every call under it, those within tools and nodes included."""
    budget: int | None = None
    """The most slots a session may keep."""

    if not TYPE_CHECKING:  # their types are those of the class behind this one

        def invoke(self, input, config=None, **kwargs):
            return super().invoke(input, config, **self._lifted(config, kwargs, input))

        async def ainvoke(self, input, config=None, **kwargs):
            return await super().ainvoke(input, config, **self._lifted(config, kwargs, input))

        def stream(self, input, config=None, **kwargs):
            yield from super().stream(input, config, **self._lifted(config, kwargs, input))

        async def astream(self, input, config=None, **kwargs):
            async for chunk in super().astream(input, config, **self._lifted(config, kwargs, input)):
                yield chunk

    def _lifted(self, config: RunnableConfig | None, kwargs: dict[str, Any], input: Any = None) -> dict[str, Any]:
        """The call's words with its session: what a config says never reaches `_generate` by itself."""
        if "session_id" in kwargs:
            return kwargs
        if (named := self._configured(config)) is not None:
            return kwargs | {"session_id": named}
        if self.session_id is None and self.opened.keeps_sessions and _is_state(input):
            found = ensure_config(config).get("configurable") or {}
            nested = "|" in str(found.get("checkpoint_ns"))  # a graph within another one's tool or node
            if found.get("thread_id") is not None and not nested:
                warnings.warn(NO_SESSION, stacklevel=3)
        return kwargs

    def _configured(self, config: RunnableConfig | None) -> str | None:
        found = ensure_config(config).get("configurable") or {}
        if found.get("session_id") is not None:
            return str(found["session_id"])
        if self.session_id is None and self.session_from_thread and self.opened.keeps_sessions:
            return None if found.get("thread_id") is None else str(found["thread_id"])
        return None

    def _session_id(self, kwargs: Mapping[str, Any]) -> str | None:
        """The session of a call, or None."""
        if "session_id" in kwargs:
            return None if kwargs["session_id"] is None else str(kwargs["session_id"])
        return self._configured(None) or self.session_id

    def _asked(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What an answer of a session is asked with, but for its words and how it is drawn."""
        return {
            "session_id": self._session_id(kwargs),
            "ratio": self.beacon_ratio,
            "budget": kwargs.get("budget", self.budget),
            "context_id": kwargs.get("context_id", self.context_id),
            "recall_tokens": self._recall(kwargs),
        }

    def delete_thread(self, thread_id: str) -> None:
        """Forget a thread's memory, every byte of it; one that is not there is forgotten already."""
        if kind_of(thread_id):
            return  # a name of documents, which no thread can have
        with translated():
            try:
                self.opened.session(thread_id).forget()
            except SessionNotFound:
                return

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Begin a thread's memory where another one's stands. Raises SessionNotFound, SessionExists."""
        with translated():
            self.opened.session(source_thread_id).fork(target_thread_id)

    async def adelete_thread(self, thread_id: str) -> None:
        """As `delete_thread`."""
        await self.opened.run(lambda: self.delete_thread(thread_id))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """As `copy_thread`."""
        await self.opened.run(lambda: self.copy_thread(source_thread_id, target_thread_id))

    def _uncached(self, kwargs: Mapping[str, Any]) -> Self:
        """What LangChain's cache has no part in: it knows messages, not sessions, would give yesterday's answer, and
        remember nothing.
        """
        if self._session_id(kwargs) is None and kwargs.get("context_id", self.context_id) is None:
            return self
        return self.model_copy(update={"cache": False})


def _is_state(input: Any) -> bool:
    """Whether these are the messages of a graph, which gives each an id; a prompt that was made in a node has none."""
    said = [m for m in input if not isinstance(m, SystemMessage)] if isinstance(input, list) else []
    return bool(said) and all(isinstance(m, BaseMessage) and m.id is not None for m in said)
