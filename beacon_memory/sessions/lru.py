"""Values on hand by digest, the least recently used leaving first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class LRUCache(Generic[T]):
    """Values that are equal where their digests are, kept while there is room; any thread may use it.

    >>> hot = LRUCache[str](limit=2)
    >>> hot.put("a", "one", 1); hot.put("b", "two", 2)
    >>> hot.get("a"), hot.get("b")
    (None, 'two')
    """

    def __init__(self, limit: int) -> None:
        """`limit` in bytes, as `put` counts them."""
        self._limit = limit
        self._bytes = 0
        self._values: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, digest: str) -> T | None:
        """The value, when it is on hand."""
        with self._lock:
            if digest not in self._values:
                return None
            self._values.move_to_end(digest)
            return self._values[digest][0]

    def take(self, digest: str) -> T | None:
        """The value, when it is on hand, which it then is no more: for one that its user changes."""
        with self._lock:
            value, nbytes = self._values.pop(digest, (None, 0))
            self._bytes -= nbytes
            return value

    def put(self, digest: str, value: T, nbytes: int) -> None:
        """Have a value on hand, as far as there is room."""
        with self._lock:
            self._bytes += nbytes - self._values.pop(digest, (value, 0))[1]
            self._values[digest] = value, nbytes
            while self._bytes > self._limit:
                self._bytes -= self._values.popitem(last=False)[1][1]
