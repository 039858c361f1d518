"""The difference of two versions of a head, so that a turn sends only what is new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

SMALL = 1024  # bodies of at most so many bytes are sent whole
START = 64  # bytes at a body's start that always differ: they hold the frame's checksum (docs/format.md)
NEAR = 1024  # bytes in which the first change must end for a second one to be looked for
PROBE = 64  # bytes that are enough to recognise a place: most of a digest


@dataclass(frozen=True)
class Delta:
    """New bytes as three pieces. Each is some new bytes, then the old bytes `first` to `last`, counted from 1 as in
    Lua.

    >>> Delta(((b"new", 4, 7), (b"!", 1, 0), (b"", 9, 8))).applied(b"old same")
    b'new sam!'
    """

    pieces: tuple[tuple[bytes, int, int], ...]

    @property
    def flat(self) -> list[bytes | int]:
        """The pieces as arguments of a script."""
        return [part for piece in self.pieces for part in piece]

    @property
    def new(self) -> int:
        """How many bytes are new."""
        return sum(len(new) for new, _, _ in self.pieces)

    def applied(self, old: bytes) -> bytes:
        """The new bytes, made from the old ones."""
        return b"".join(new + old[first - 1 : last] for new, first, last in self.pieces)


def shared(old: bytes, new: bytes, *, start: int = START) -> Delta:
    """What makes `new` from `old`. It reuses their common beginning after `start` bytes, their common end and, where
    the first change is small, what is the same between it and the next change.

    >>> shared(b"a" * 2000, b"a" * 1990 + b"b", start=0).new
    1
    """
    if len(new) <= SMALL or len(old) <= start:
        return Delta(((b"", 1, 0), (new, 1, 0), (b"", 1, 0)))
    shorter = min(len(old), len(new))
    low = start + _alike(shorter - start, lambda n: old[start : start + n] == new[start : start + n])
    end = _alike(shorter - low, lambda n: old[len(old) - n :] == new[len(new) - n :])
    stop, until = len(old) - end, len(new) - end
    here, there = _again(old[:stop], new[:until], low)
    more = min(stop - here, until - there)
    size = _alike(more, lambda n: old[here : here + n] == new[there : there + n])
    return Delta(
        (
            (new[:start], start + 1, low),
            (new[low:there], here + 1, here + size),
            (new[there + size : until], stop + 1, len(old)),
        )
    )


def _again(old: bytes, new: bytes, low: int) -> tuple[int, int]:
    """Where both go on alike after a change at `low`; their ends when that is not near."""
    for place in range(low + PROBE, min(low + NEAR, len(old) - PROBE), PROBE):
        found = new.find(old[place : place + PROBE], low, low + 2 * NEAR)
        if found >= 0:
            return place, found
    return len(old), len(new)


def _alike(most: int, same: Callable[[int], bool]) -> int:
    """The largest number up to `most` for which `same` holds, as it does for all smaller ones."""
    # Binary search: comparing slices is far faster than comparing bytes one by one.
    low = 0
    while low < most:
        middle = (low + most + 1) // 2
        if same(middle):
            low = middle
        else:
            most = middle - 1
    return low
