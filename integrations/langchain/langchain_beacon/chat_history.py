"""A chat history for `RunnableWithMessageHistory`: plain text out, folded memory in the model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage

from beacon_memory.errors import SessionNotFound
from beacon_memory.serving.engine import Engine
from beacon_memory.serving.engines import Where, engine_for
from beacon_memory.state.info import DOCUMENT
from beacon_memory.talk.tools import ANSWER
from langchain_beacon.errors import translated
from langchain_beacon.messages import from_plain, to_plain

if TYPE_CHECKING:
    from beacon_memory.client.session import RemoteSession
    from beacon_memory.sessions.session import Session


class BeaconChatMessageHistory(BaseChatMessageHistory):
    """A session's transcript, for code that still uses `RunnableWithMessageHistory`.

    Legacy: LangChain has deprecated this interface; new code gives `ChatBeacon` a session, or an agent the middleware.
    Messages come out as plain text and go in once: what a `ChatBeacon` of the same session has remembered by itself
    since the messages were read is not added again, also where a parser has made text of the answer.

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
        engine: Engine | None = None,
        **where: Unpack[Where],
    ) -> None:
        """A session of a chat model's engine (`llm.engine`), or of a model and a store by name (`Where`). Raises
        ConfigError."""
        with translated():
            self.engine = engine_for(engine, environ=os.environ, **where)
        self.session_id = session_id
        self._read: list[dict[str, Any]] | None = None  # what was given out last

    @property
    def _session(self) -> Session | RemoteSession:
        return self.engine.session(self.session_id)

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]
        with translated():
            self._read = self._said()
            return [from_plain(message) for message in self._read]

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
            if new := _new(plain, self._said(), self._read):
                self._session.add(new)
            self._read = None

    def clear(self) -> None:
        self._read = None
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


Message = Mapping[str, Any]


def _new(given: Sequence[Message], stored: Sequence[Message], read: Sequence[Message] | None) -> list[Message]:
    """The given messages without those at their front that a model of this session has remembered by itself.

    Its answer has the same id, and what stands before it is what it answered. Behind a parser an answer is text
    without one: then words tell, among what the session has gained since it was read. A question may stand there within
    a prompt. From the first message on that is not found, all are new.
    """
    ids = {message["id"] for message in stored if message["role"] == "assistant" and message.get("id")}
    known = max((n + 1 for n, m in enumerate(given) if m["role"] == "assistant" and m.get("id") in ids), default=0)
    gained, at = [] if known else _gained(stored, read), 0
    for message in given[known:]:
        place = next((n for n in range(at, len(gained)) if _tells(gained[n], message)), None)
        if place is None:
            break
        known, at = known + 1, place + (message["role"] != "user")  # a prompt may hold several
    return list(given[known:])


def _gained(stored: Sequence[Message], read: Sequence[Message] | None) -> list[Message]:
    """What came to the session, up to a model's answer, since it was read; the newest answer alone where it was not
    read, or had it then.
    """
    newest = [n for n, message in enumerate(stored) if _is_answer(message)]
    if not newest:
        return []
    same = 0
    for one, other in zip(stored, read or (), strict=False):
        if not _same(one, other):
            break
        same += 1
    if read is None or newest[-1] < same:
        return [stored[-1]] if newest[-1] == len(stored) - 1 else []
    return list(stored[same : newest[-1] + 1])


def _is_answer(message: Message) -> bool:
    return message["role"] == "assistant" and str(message.get("id", "")).startswith(ANSWER)


def _tells(stored: Message, given: Message) -> bool:
    """Whether a stored message tells what a given one does."""
    if stored["role"] != given["role"]:
        return False
    words, there = given["content"].strip(), stored["content"].strip()
    return words in there if given["role"] == "user" else words == there


def _same(one: Message, other: Message) -> bool:
    return bool(one["role"] == other["role"] and one["content"].strip() == other["content"].strip())
