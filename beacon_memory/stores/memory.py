"""Sessions in this process's memory: for tests, notebooks and servers that may lose them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace

from beacon_memory.locks import Lock
from beacon_memory.stores.base import Head, StateStore, check_session, conflict, differs, missing, not_found
from beacon_memory.stores.chain import drawn, grown


class MemoryStore(StateStore):
    """A store that lives and ends with this object.

    >>> store = MemoryStore()
    >>> version = store.commit("alice", Head(b"hello", ("d1",)), {"d1": b"slots"}, expected=0)
    >>> store.load("alice") == (Head(b"hello", ("d1",)), version)
    True
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._heads: dict[str, tuple[Head, int]] = {}
        self._blobs: dict[str, bytes] = {}
        self._refs: defaultdict[str, set[str]] = defaultdict(set)  # digest -> the sessions that name it

    def load(self, session: str) -> tuple[Head, int]:
        check_session(session)
        with self._lock:
            if session not in self._heads:
                raise not_found(session)
            return self._heads[session]

    def read(self, digests: Sequence[str]) -> list[bytes]:
        with self._lock:
            for digest in digests:
                if digest not in self._blobs:
                    raise missing(digest)
            return [self._blobs[digest] for digest in digests]

    def commit(
        self,
        session: str,
        head: Head,
        blobs: Mapping[str, bytes],
        *,
        expected: int,
        damaged: Container[str] = (),
    ) -> int:
        check_session(session)
        with self._lock:
            old, version = self._heads.get(session, (Head(b""), 0))
            if version != expected:
                raise conflict(session, version, expected=expected)
            for digest in head.digests:
                if digest not in blobs and digest not in self._blobs:
                    raise missing(digest)
                if (
                    digest in blobs
                    and digest not in damaged
                    and self._blobs.get(digest, blobs[digest]) != blobs[digest]
                ):
                    raise differs(digest)
            for digest in head.digests:
                if digest in blobs:
                    self._blobs[digest] = bytes(blobs[digest])
                self._refs[digest].add(session)
            self._drop(session, set(old.digests) - set(head.digests))
            self._heads[session] = replace(head, past=grown(old.past, version)), drawn(version)
            return self._heads[session][1]

    def delete(self, session: str) -> None:
        check_session(session)
        with self._lock:
            if session not in self._heads:
                raise not_found(session)
            head, _ = self._heads.pop(session)
            self._drop(session, set(head.digests))

    def sessions(self) -> list[str]:
        with self._lock:
            return sorted(self._heads)

    def touch(self, session: str) -> None:
        self.load(session)

    def _drop(self, session: str, digests: Iterable[str]) -> None:
        """Remove the session's name from the blobs, then those blobs that no session names."""
        for digest in digests:
            self._refs[digest].discard(session)
            if not self._refs[digest]:
                del self._refs[digest]
                self._blobs.pop(digest, None)
