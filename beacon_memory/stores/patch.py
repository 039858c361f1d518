"""What two versions of a head have in common, so that a turn sends what is new."""

from __future__ import annotations

from dataclasses import dataclass

SMALL = 1024  # bytes that are sent whole
START = 64  # bytes at a body's start that differ each time: a frame's checksum stands there (docs/format.md)


@dataclass(frozen=True)
class Patch:
    """New bytes as `start`, then the old ones from `first` to `last` (counted from 1, as Lua does), then `rest`.

    >>> patch = Patch(b"new", 4, 7, b"!")
    >>> patch.applied(b"old same")
    b'new sam!'
    """

    start: bytes
    first: int
    last: int
    rest: bytes

    def applied(self, old: bytes) -> bytes:
        """The new bytes."""
        return self.start + old[self.first - 1 : self.last] + self.rest


def shared(old: bytes, new: bytes, *, start: int = START) -> Patch:
    """The patch that makes `new` of `old`.

    >>> shared(b"a" * 2000, b"a" * 1990 + b"b", start=0).rest
    b'b'
    """
    if len(new) <= SMALL or len(old) <= start:
        return Patch(b"", 1, 0, new)
    low, high = start, min(len(old), len(new))
    # Halving: comparing slices is far faster than comparing bytes one by one.
    while low < high:
        middle = (low + high + 1) // 2
        if old[low:middle] == new[low:middle]:
            low = middle
        else:
            high = middle - 1
    return Patch(new[:start], start + 1, low, new[low:])
