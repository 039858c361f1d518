"""Versions of a session as points of a chain: which one came before which, without a clock.

A version is one number: how many commits the session has had, and 64 bits drawn at random for this commit. A head
carries the bits of the versions before its own, and a store seals them with it. So no two commits have the same
version, whatever was lost in between, and a head can prove that it descends from a version that somebody has seen.

Numbers below 2**64 are versions of older releases, and of stores that count: they are compared as numbers.
"""

from __future__ import annotations

import secrets

BITS = 64
POINT = BITS // 8  # bytes of a version's own bits
PAST = 4096  # versions that a head can prove to descend from: 32 KiB


def count(version: int) -> int:
    """How many commits led to this version; 0 for one of an older release."""
    return version >> BITS


def point(version: int) -> bytes:
    """The bits that are the version's own."""
    return (version & ((1 << BITS) - 1)).to_bytes(POINT, "big")


def drawn(before: int) -> int:
    """A version that follows `before` (0 for none): nobody has had it, and it is larger.

    >>> 0 < drawn(0) < drawn(drawn(0))
    True
    """
    return (count(before) + 1) << BITS | secrets.randbits(BITS)


def grown(past: bytes, before: int) -> bytes:
    """What the version after `before` carries: the points before it, oldest first, as many as are kept."""
    return (past + point(before))[-POINT * PAST :] if before else b""


def descends(version: int, past: bytes, seen: int) -> bool | None:
    """Whether a head at `version` that carries `past` comes after the version `seen`, or is it; None when that was so
    long ago that it cannot be told.

    >>> first = drawn(0)
    >>> second = drawn(first)
    >>> descends(second, grown(b"", first), first), descends(second, grown(b"", first), drawn(0))
    (True, False)
    """
    if count(version) == 0 == count(seen):
        return version >= seen
    back = count(version) - count(seen)
    if back <= 0:
        return version == seen
    if back * POINT > len(past):
        # A chain that began later than `seen` is another one.
        return None if len(past) == POINT * PAST else False
    there = past[len(past) - back * POINT :][:POINT]
    # Of the older releases' versions only the last is carried.
    return there >= point(seen) if count(seen) == 0 else there == point(seen)
