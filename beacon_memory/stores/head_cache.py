"""Heads on hand: what a worker has read or written last, so that it need not read it again."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from beacon_memory.locks import Lock
from beacon_memory.stores.base import Head


@dataclass(frozen=True)
class CachedHead:
    """A session's head at one version."""

    version: int
    head: Head
    digests: bytes  # as they are stored


class HeadCache:
    """Heads on hand by session, the least recently used leaving first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._heads: OrderedDict[str, CachedHead] = OrderedDict()
        self._lock = Lock()

    def get(self, session: str) -> CachedHead | None:
        """The head on hand; whether it is still the newest, the store says."""
        with self._lock:
            if session in self._heads:
                self._heads.move_to_end(session)
            return self._heads.get(session)

    def put(self, session: str, cached: CachedHead) -> None:
        """Have this head on hand."""
        with self._lock:
            self._remove(session)
            self._heads[session] = cached
            self._bytes += _size(cached)
            while self._bytes > self._limit and self._heads:
                self._remove(next(iter(self._heads)))

    def drop(self, session: str) -> None:
        """Have none of this session."""
        with self._lock:
            self._remove(session)

    def _remove(self, session: str) -> None:
        if cached := self._heads.pop(session, None):
            self._bytes -= _size(cached)


def _size(cached: CachedHead) -> int:
    return 256 + len(cached.head.body) + 2 * len(cached.digests)
