"""Documents that a server keeps under a name: what `sessions.documents` does in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from beacon_memory.client.connection import Connection, part
from beacon_memory.client.session import info_of, sources_of
from beacon_memory.errors import InputError, SessionNotFound
from beacon_memory.models.given import given_list
from beacon_memory.state.info import DOCUMENT, Document, DocumentInfo, SessionInfo, Written
from beacon_memory.state.source import Source
from beacon_memory.stores.base import retrying
from beacon_memory.stores.names import context_name
from beacon_memory.talk.messages import says, whole

T = TypeVar("T")


class RemoteDocuments:
    """The documents of a name, on a server. It holds names alone: every call reads the newest version."""

    def __init__(
        self, connection: Connection, name: str, *, ratio: int | None = None, budget: int | None = None
    ) -> None:
        context_name(name)
        self.name = name
        self._connection = connection
        self._expected: int | None = None  # the version that `alone` has seen
        self._how = {name: value for name, value in (("ratio", ratio), ("budget", budget)) if value is not None}

    def put(
        self,
        documents: Sequence[Document],
        *,
        new: bool = False,
        delete_missing: bool = False,
        keep: Iterable[str] = (),
        progress: Callable[[int], None] | None = None,
    ) -> Written:
        """Add documents at the end, or in place of those of the same key; equal ones stay as they are. All of them or
        none. `new`, `delete_missing` and `keep` as `Documents.put` has them; `progress` is told nothing. Raises
        InputError, SessionConflict, StoreError.
        """
        given = given_list(documents, "documents")
        if not all(isinstance(one, Document) for one in given):
            raise InputError(f"documents are a list of Document(key, text), not {documents!r:.80}")
        listed = [{"key": d.key, "text": d.text, "metadata": d.about, "hash": d.hash} for d in given]
        body: dict[str, Any] = {"documents": listed, "new": new, "delete_missing": delete_missing, "keep": list(keep)}
        if self._expected is not None:
            body["expected"] = str(self._expected)
        told = self._connection.json("POST", self._path("documents"), {**body, **self._how}, again=not new)
        if self._expected is not None:
            self._expected = int(told["version"])
        changed = set(told["changed"])
        return Written(tuple(whole(one.key) in changed for one in given), int(told["windows"]))

    def remove(self, *keys: str) -> None:
        """Take documents out, all or none. Raises SessionNotFound, InputError for a key that is not there."""
        self._connection.json("POST", self._path("documents", "remove"), {"keys": list(keys)}, again=False)

    def info(self) -> list[DocumentInfo]:
        """The documents, in the order in which they are read. Raises SessionNotFound."""
        return [DocumentInfo(one["key"], one["hash"], one["tokens"], one["slots"]) for one in self._listed()]

    def about(self) -> dict[str, dict[str, Any]]:
        """What is kept beside each document, by key. Raises SessionNotFound."""
        return {one["key"]: one["metadata"] for one in self._listed()}

    def texts(self) -> dict[str, str]:
        """The text of each document, by key. Raises SessionNotFound."""
        return {one["key"]: one["text"] for one in self._listed(texts=True)}

    @property
    def version(self) -> int:
        """A number that grows with each change, 0 while nothing of this name was written."""
        try:
            return self.context().info().version
        except SessionNotFound:
            return 0

    def alone(self, act: Callable[[], T]) -> T:
        """The result of `act`. What it reads of these documents, no one else changes before it has written: else it is
        done again. Raises SessionConflict where others write all the time.
        """

        def once() -> T:
            self._expected = self.version
            try:
                return act()
            finally:
                self._expected = None

        return retrying(once)

    def rename(self, name: str) -> RemoteDocuments:
        """The same documents under another name; the old one is gone. Raises SessionExists, SessionNotFound."""
        context_name(name)
        self._connection.json("POST", self._path("rename"), {"id": name})
        made = RemoteDocuments(self._connection, name)
        made._how = self._how
        return made

    def forget(self) -> list[str]:
        """Forget all documents of this name; gives what is left to do there. Raises SessionNotFound."""
        return [str(left) for left in self._connection.json("DELETE", self._path())["left_to_do"]]

    def context(self) -> RemoteContext:
        """The same documents as a session that holds nothing else."""
        return RemoteContext(self._connection, self)

    def _listed(self, *, texts: bool = False) -> list[Mapping[str, Any]]:
        params = {"texts": "true"} if texts else None
        return list(self._connection.json("GET", self._path("documents"), params=params)["data"])

    def _path(self, *parts: str) -> str:
        return "/".join(("/v1/contexts", part(self.name), *map(part, parts)))


class RemoteContext:
    """Documents of a server, asked in the words of a session: what was read is its messages."""

    def __init__(self, connection: Connection, documents: RemoteDocuments) -> None:
        self.id = context_name(documents.name)
        self._connection, self._documents = connection, documents

    def add(self, messages: Any) -> NoReturn:
        """Refused. Raises InputError."""
        raise InputError(f"{self.id!r} holds documents: a message goes into a session")

    def add_text(self, text: str, *, name: str) -> None:
        """Read a text as a document of this name. Raises InputError."""
        self._documents.put([Document(name, text)])

    def info(self) -> SessionInfo:
        """What the documents cost. Raises SessionNotFound."""
        return info_of(self._connection.json("GET", self._path()), self.id)

    def messages(self, *, query: str = "") -> list[dict[str, Any]]:
        """A note of each document. Raises SessionNotFound."""
        notes = [{"role": DOCUMENT, "content": one.key, "tokens": one.tokens} for one in self._documents.info()]
        return [note for note in notes if says(note, query)]

    def delete(self, message: str | int) -> None:
        """Take a document out, by its name or place. Raises InputError, SessionNotFound."""
        if isinstance(message, int):
            there = self.messages()
            if not 0 <= message < len(there):
                raise InputError(f"{self.id!r} holds {len(there)} documents: there is none at {message}")
            message = str(there[message]["content"])
        self._documents.remove(message)

    def search(self, text: str, *, limit: int = 5) -> list[Source]:
        """The passages that a question is about, the best first. Raises SessionNotFound, ConfigError."""
        asked = {"query": text, "limit": limit}
        return sources_of(self._connection.json("POST", self._path("search"), asked, again=True))

    def forget(self) -> list[str]:
        """Forget the documents. Raises SessionNotFound."""
        return self._documents.forget()

    def _path(self, *parts: str) -> str:
        return "/".join(("/v1/contexts", part(self._documents.name), *parts))
