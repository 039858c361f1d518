"""A store whose operations are timed."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from beacon_memory.server.operations.metrics import Metrics
from beacon_memory.stores.base import Head, StateStore
from beacon_memory.stores.queue import Queue


class TimedStore(StateStore):
    """Another store, each of whose operations is counted by its name."""

    def __init__(self, store: StateStore, metrics: Metrics) -> None:
        self._store, self._timed = store, metrics.timed

    def load(self, session: str) -> tuple[Head, int]:
        with self._timed("load"):
            return self._store.load(session)

    def read(self, digests: Sequence[str]) -> list[bytes]:
        with self._timed("read"):
            return self._store.read(digests)

    def stream(self, digests: Sequence[str]) -> Iterator[bytes]:
        # What reads it may pause: its parts are not timed.
        return self._store.stream(digests)

    def commit(
        self,
        session: str,
        head: Head,
        blobs: Mapping[str, bytes],
        *,
        expected: int,
        damaged: Container[str] = (),
    ) -> int:
        with self._timed("commit"):
            how: dict[str, Any] = {"damaged": damaged} if damaged else {}
            return self._store.commit(session, head, blobs, expected=expected, **how)

    def queue(self) -> Queue | None:
        return self._store.queue()

    def delete(self, session: str) -> None:
        with self._timed("delete"):
            self._store.delete(session)

    def sessions(self) -> list[str]:
        with self._timed("sessions"):
            return self._store.sessions()

    def touch(self, session: str) -> None:
        with self._timed("touch"):
            self._store.touch(session)

    def version(self, session: str) -> int:
        with self._timed("version"):
            return self._store.version(session)

    def turn(self, session: str) -> AbstractContextManager[None]:
        return self._store.turn(session)

    def fork(self, session: str, new: str) -> int:
        with self._timed("fork"):
            return self._store.fork(session, new)

    def gc(self) -> int:
        return self._store.gc()

    def mend(self, session: str) -> None:
        self._store.mend(session)

    def reseal(self, *, batch: int = 100) -> int:
        return self._store.reseal(batch=batch)

    def scrub(self) -> list[str]:
        with self._timed("scrub"):
            return self._store.scrub()

    def close(self) -> None:
        self._store.close()
