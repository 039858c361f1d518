"""What two versions of a head have in common, so that a turn sends what is new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

SMALL = 1024  # bytes that are sent whole
START = 64  # bytes at a body's start that differ each time: a frame's checksum stands there (docs/format.md)


@dataclass(frozen=True)
class Patch:
    """New bytes as `start`, then the old ones from `first` to `last` (counted from 1, as Lua does), then `rest`, then
    the old ones from `again` to the end.

    >>> patch = Patch(b"new", 4, 7, b"!", 9)
    >>> patch.applied(b"old same")
    b'new sam!'
    """

    start: bytes
    first: int
    last: int
    rest: bytes
    again: int

    def applied(self, old: bytes) -> bytes:
        """The new bytes."""
        return self.start + old[self.first - 1 : self.last] + self.rest + old[self.again - 1 :]


def shared(old: bytes, new: bytes, *, start: int = START) -> Patch:
    """The patch that makes `new` of `old`.

    >>> shared(b"a" * 2000, b"a" * 1990 + b"b", start=0).rest
    b'b'
    """
    if len(new) <= SMALL or len(old) <= start:
        return Patch(b"", 1, 0, new, len(old) + 1)
    shorter = min(len(old), len(new))
    low = _longest(start, shorter, lambda low, middle: old[low:middle] == new[low:middle])
    end = _longest(
        0, shorter - low, lambda low, n: old[len(old) - n : len(old) - low] == new[len(new) - n : len(new) - low]
    )
    return Patch(new[:start], start + 1, low, new[low : len(new) - end], len(old) - end + 1)


def _longest(low: int, high: int, same: Callable[[int, int], bool]) -> int:
    """The furthest from `low` to which everything is the same."""
    # Halving: comparing slices is far faster than comparing bytes one by one.
    while low < high:
        middle = (low + high + 1) // 2
        if same(low, middle):
            low = middle
        else:
            high = middle - 1
    return low
