"""A chat history for `RunnableWithMessageHistory`: plain text out, folded memory in the model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage

from beacon_memory.errors import SessionNotFound
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.serving.engines import Where, engine_for
from beacon_memory.sessions.reply import ANSWER
from beacon_memory.sessions.session import Session
from beacon_memory.state.head import DOCUMENT
from langchain_beacon.errors import translated
from langchain_beacon.messages import from_plain, to_plain


class BeaconChatMessageHistory(BaseChatMessageHistory):
    """A session's transcript, for code that still uses `RunnableWithMessageHistory`.

    Legacy: LangChain has deprecated this interface; new code gives `ChatBeacon` a session, or an agent the middleware.
    Messages come out as plain text and go in once: what a `ChatBeacon` of the same session has remembered by itself
    is not added again.

    >>> from beacon_memory.testing import scripted_engine
    >>> history = BeaconChatMessageHistory("ada", engine=scripted_engine(lambda seen: ""))
    >>> history.add_user_message("I live in Lyon.")
    >>> [message.text for message in history.messages]
    ['I live in Lyon.']
    """

    def __init__(
        self,
        session_id: str,
        *,
        engine: BeaconEngine | None = None,
        **where: Unpack[Where],
    ) -> None:
        """A session of a chat model's engine (`llm.engine`), or of a model and a store by name (`Where`). Raises
        ConfigError."""
        with translated():
            self.engine = engine_for(engine, environ=os.environ, **where)
        self.session_id = session_id

    @property
    def _session(self) -> Session:
        return self.engine.session(self.session_id)

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]
        with translated():
            return [from_plain(message) for message in self._said()]

    def _said(self) -> list[dict[str, Any]]:
        try:
            return [message for message in self._session.messages() if message["role"] != DOCUMENT]
        except SessionNotFound:
            return []

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        with translated():
            _, plain = to_plain(messages)
            if not plain:
                return
            if plain := plain[_remembered(self._said(), plain) :]:
                self._session.add(plain)

    def clear(self) -> None:
        with translated():
            try:
                self._session.forget()
            except SessionNotFound:
                return

    async def aget_messages(self) -> list[BaseMessage]:
        return await self.engine.run(lambda: self.messages)

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        await self.engine.run(lambda: self.add_messages(messages))

    async def aclear(self) -> None:
        await self.engine.run(self.clear)


def _remembered(stored: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]]) -> int:
    """How many of the first messages a model of this session has remembered by itself: its own answer, known by its id,
    and what came before it. Behind a parser that gives text, an answer has no id: then the newest words tell.
    """
    ids = {m["id"] for m in stored if m["role"] == "assistant" and m.get("id")}
    if known := [n for n, m in enumerate(plain) if m["role"] == "assistant" and m.get("id") in ids]:
        return known[-1] + 1
    if not stored or not str(stored[-1].get("id", "")).startswith(ANSWER):
        return 0
    words = [(m["role"], m["content"].strip()) for m in stored]
    given = [(m["role"], m["content"].strip()) for m in plain]
    return max((n for n in range(2, len(given) + 1) if words[-n:] == given[:n]), default=0)
