"""Versions of a session as points of a chain: they show which one came before which, without a clock.

A version is one number: the count of the session's commits, then 64 random bits that are drawn for this commit. A head
carries the random bits of the versions before its own, and a store signs them with it. So no two commits have the same
version, whatever was lost in between, and a head can prove that it descends from a version that somebody has seen.

Numbers below 2**64 are versions of older releases, and of stores that count. They are compared as numbers.
"""

from __future__ import annotations

import secrets

BITS = 64
POINT = BITS // 8  # bytes of a version's random bits
PAST = 4096  # versions that a head can prove to descend from: 32 KiB


def count(version: int) -> int:
    """How many commits led to this version; 0 for one of an older release."""
    return version >> BITS


def point(version: int) -> bytes:
    """The version's random bits."""
    return (version & ((1 << BITS) - 1)).to_bytes(POINT, "big")


def drawn(before: int) -> int:
    """A new version after `before` (0 for none): it is larger, and was never used.

    >>> 0 < drawn(0) < drawn(drawn(0))
    True
    """
    return (count(before) + 1) << BITS | secrets.randbits(BITS)


def grown(past: bytes, before: int) -> bytes:
    """The past that the version after `before` carries: the points before it, oldest first, at most PAST of them."""
    return (past + point(before))[-POINT * PAST :] if before else b""


def descends(version: int, past: bytes, seen: int) -> bool | None:
    """Whether a head at `version` with this `past` is the version `seen` or came after it; None when `seen` is too old
    to tell.

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
        # All of the chain is there and it is shorter: it began after `seen`, so it is another chain.
        return None if len(past) == POINT * PAST else False
    there = past[len(past) - back * POINT :][:POINT]
    # Only the last version of an older release is carried.
    return there >= point(seen) if count(seen) == 0 else there == point(seen)
