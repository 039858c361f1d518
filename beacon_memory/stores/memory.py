"""Sessions in this process's memory: for tests, notebooks and servers that may forget."""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from beacon_memory.stores.base import Head, StateStore, check_session, conflict, missing, not_found


class MemoryStore(StateStore):
    """A store that lives and ends with this object.

    >>> store = MemoryStore()
    >>> store.commit("alice", Head(b"hello", ("d1",)), {"d1": b"slots"}, expected=0)
    1
    >>> store.load("alice")
    (Head(body=b'hello', digests=('d1',)), 1)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heads: dict[str, tuple[Head, int]] = {}
        self._blobs: dict[str, bytes] = {}
        self._refs: defaultdict[str, set[str]] = defaultdict(set)  # digest -> the sessions that name it
        # One counter for all sessions: a session created again never comes back to an old version.
        self._versions = itertools.count(1)

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

    def commit(self, session: str, head: Head, blobs: Mapping[str, bytes], *, expected: int) -> int:
        check_session(session)
        with self._lock:
            old, version = self._heads.get(session, (Head(b""), 0))
            if version != expected:
                raise conflict(session, version, expected=expected)
            for digest in head.digests:
                if digest not in blobs and digest not in self._blobs:
                    raise missing(digest)
            for digest in head.digests:
                if digest in blobs:
                    self._blobs[digest] = bytes(blobs[digest])
                self._refs[digest].add(session)
            self._drop(session, set(old.digests) - set(head.digests))
            version = next(self._versions)
            self._heads[session] = head, version
            return version

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
        """Take the session's name off the blobs, and remove those that nobody names any more."""
        for digest in digests:
            self._refs[digest].discard(session)
            if not self._refs[digest]:
                del self._refs[digest]
                self._blobs.pop(digest, None)
