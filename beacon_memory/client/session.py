"""A session that a server keeps: what `sessions.session` does in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from beacon_memory.client.connection import Connection, part
from beacon_memory.errors import InputError
from beacon_memory.models.given import given_list
from beacon_memory.state.info import Branch, SessionInfo
from beacon_memory.state.source import Source
from beacon_memory.stores.names import check_talk
from beacon_memory.talk.messages import Message, read_messages, says
from beacon_memory.talk.sources import check_text, read_source

PAGE = 1000  # messages, or names, that are asked for at once


class RemoteSession:
    """A session by its id, on a server. It holds names alone: every call reads the session's newest version."""

    def __init__(
        self, connection: Connection, session_id: str, *, ratio: int | None = None, budget: int | None = None
    ) -> None:
        self.id = check_talk(session_id)
        self._connection = connection
        self._how = {name: value for name, value in (("ratio", ratio), ("budget", budget)) if value is not None}

    def add(self, messages: str | Message | Sequence[Message]) -> None:
        """Remember one or several messages, all of them or none. Text alone is a user's. Raises InputError."""
        if isinstance(messages, str):
            messages = {"role": "user", "content": messages}
        many = [messages] if isinstance(messages, Mapping) else given_list(messages, "messages")
        if not many:
            raise InputError("no message to add")
        if found := read_messages(many):
            self._post("messages", {"messages": found, **self._how})

    def set(self, messages: Sequence[Message]) -> None:
        """Replace the conversation by these messages; their common beginning is not read again. Raises InputError."""
        self._connection.json("PUT", self._path("messages"), {"messages": read_messages(messages), **self._how})

    def add_text(self, text: str, *, name: str) -> None:
        """Read a text as a document of this name. Raises InputError."""
        check_text(text)
        self._post("documents", {"name": name, "text": text, **self._how})

    def add_document(self, source: str | Path, *, name: str | None = None) -> None:
        """Read a document: the path of a UTF-8 text file of this machine, or the text itself. Raises InputError."""
        text, found = read_source(source)
        self.add_text(text, name=name or found)

    def info(self) -> SessionInfo:
        """What the session holds and what it costs. Raises SessionNotFound."""
        return info_of(self._connection.json("GET", self._path()), self.id)

    def messages(self, *, query: str = "") -> list[dict[str, Any]]:
        """The transcript, oldest first; a document stands in it as a note. With `query`, the messages whose text
        contains it. Raises SessionNotFound.
        """
        if not isinstance(query, str):
            raise InputError(f"query is text that a message contains, not {query!r:.80}")
        found = list[dict[str, Any]]()
        page: dict[str, Any] = {"has_more": True, "last_place": -1}
        while page["has_more"]:
            params = {"limit": PAGE, "after": page["last_place"]}
            page = self._connection.json("GET", self._path("messages"), params=params)
            found += [{name: said for name, said in one.items() if name != "place"} for one in page["data"]]
        return [message for message in found if says(message, query)]

    def newest(self) -> tuple[int, list[dict[str, Any]]]:
        """How many messages stand before the user's newest one, documents counted, and the messages from it on.

        Raises SessionNotFound.
        """
        found = self._connection.json("GET", self._path("newest"))
        return int(found["before"]), list(found["data"])

    def delete(self, message: str | int) -> None:
        """Forget one message, by its id or place, or one document by its name. Raises InputError, SessionNotFound."""
        self._connection.json("DELETE", self._path("messages", str(message)))

    def edit(self, message: str | int, text: str) -> None:
        """Give one message another text; it keeps its place, role and id. Raises as `delete` does."""
        self._connection.json("PATCH", self._path("messages", str(message)), {"content": text})

    def search(self, text: str, *, limit: int = 5) -> list[Source]:
        """The passages that a question is about, the best first. Raises SessionNotFound, ConfigError without a
        finder.
        """
        return sources_of(self._post("search", {"query": text, "limit": limit}, again=True))

    def fork(self, new: str) -> RemoteSession:
        """A new session that begins where this one stands. Raises SessionExists, SessionNotFound, InputError."""
        self._post("fork", {"id": check_talk(new)})
        made = RemoteSession(self._connection, new)
        made._how = self._how
        return made

    def rewind(self, messages: int) -> None:
        """Go back to the session's first so many messages. Raises InputError, SessionNotFound."""
        self._post("rewind", {"messages": messages}, again=True)

    def branches(self) -> list[Branch]:
        """The session's other branches, oldest first. Raises SessionNotFound."""
        found = self._connection.json("GET", self._path("branches"))["data"]
        return [Branch(one["id"], tuple(one["messages"])) for one in found]

    def checkout(self, name: str) -> None:
        """Go back to a branch. Raises InputError, SessionNotFound."""
        self._post("checkout", {"branch": name})

    def export(self, path: str | Path) -> None:
        """The whole session in one file. Raises SessionNotFound."""
        self._connection.download(self._path("export"), Path(path))

    def forget(self) -> list[str]:
        """Forget the session; gives what is left to do there, in sentences. Raises SessionNotFound."""
        return [str(left) for left in self._connection.json("DELETE", self._path())["left_to_do"]]

    def _path(self, *parts: str) -> str:
        return "/".join(("/v1/sessions", part(self.id), *map(part, parts)))

    def _post(self, act: str, body: Mapping[str, Any], *, again: bool = False) -> dict[str, Any]:
        return self._connection.json("POST", self._path(act), body, again=again)


def info_of(told: Mapping[str, Any], session: str) -> SessionInfo:
    """What a server tells of a session, or of documents."""
    numbers = ("messages", "documents", "tokens", "slots", "tail", "ratio", "budget", "bytes", "raw_bytes")
    return SessionInfo(
        session=session,
        version=int(told["version"]),
        ratios={int(ratio): tokens for ratio, tokens in told["ratios"].items()},
        **{name: told[name] for name in numbers},
    )


def sources_of(told: Mapping[str, Any]) -> list[Source]:
    """Passages as a server lists them."""
    return [Source(**{name: value for name, value in one.items() if name != "object"}) for one in told["data"]]
