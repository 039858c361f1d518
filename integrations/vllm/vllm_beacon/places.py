"""Where slots stand in vLLM: placeholder ids in the prompt, rows of paged blocks, and the KV heads of a rank."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy

from beacon_memory.errors import InputError, UnsupportedModel


@dataclass(frozen=True)
class Piece:
    """The slots of one segment, as a prompt holds them."""

    owner: str  # the name in the store of the session or documents that the segment is read for
    name: str  # the segment's name in the store, in hex
    slots: int  # how many of its slots the model reads


def placeholders(pieces: Iterable[Piece], *, vocabulary: int, salt: bytes = b"") -> list[int]:
    """Token ids that stand in a prompt for slots, one for each: vLLM's prefix cache knows blocks by them.

    They are drawn from the owner and the name of their segment and of all before it. So two sessions have no block in
    common, except for documents that both read first; and a session that has grown finds the blocks of what it had
    before. Who does not know the `salt` cannot write them, even if he knows what was folded.

    >>> ada, bob = ([Piece(name, "5a" * 32, 3)] for name in ("ada", "bob"))
    >>> placeholders(ada, vocabulary=49152), placeholders(bob, vocabulary=49152)
    ([36637, 14043, 42310], [10498, 26640, 21128])
    """
    if vocabulary < 2:
        raise InputError(f"placeholders are drawn from a vocabulary of at least 2 ids, not {vocabulary}")
    before = hashlib.sha256(b"beacon-placeholders-1" + struct.pack("<Q", len(salt)) + salt).digest()
    ids: list[int] = []
    for piece in pieces:
        owner, name = piece.owner.encode(errors="surrogatepass"), piece.name.encode()
        lengths = struct.pack("<QQQ", len(owner), len(name), piece.slots)
        before = hashlib.sha256(before + lengths + owner + name).digest()
        drawn = numpy.frombuffer(hashlib.shake_256(before).digest(8 * piece.slots), dtype="<u8")
        ids += (drawn % vocabulary).tolist()
    return ids


def slot_mapping(blocks: Sequence[int], *, start: int, end: int, block_size: int) -> list[int]:
    """The rows of vLLM's paged cache that the positions start..end-1 of a request have.

    >>> slot_mapping([7, 2], start=2, end=6, block_size=4)
    [30, 31, 8, 9]
    """
    if not 0 <= start <= end <= len(blocks) * block_size:
        raise InputError(f"positions {start} to {end} lie outside of {len(blocks)} blocks of {block_size}")
    return [blocks[at // block_size] * block_size + at % block_size for at in range(start, end)]


def touched(blocks: Sequence[int], *, start: int, end: int, block_size: int) -> set[int]:
    """The blocks in which the positions start..end-1 lie.

    >>> sorted(touched([7, 2, 5], start=4, end=9, block_size=4))
    [2, 5]
    """
    return set(blocks[start // block_size : -(-end // block_size)]) if end > start else set()


def rank_heads(heads: int, *, rank: int, ranks: int) -> slice:
    """The KV heads that a tensor-parallel rank holds, as vLLM deals them out: equal shares, or one head for several
    ranks where there are fewer heads than ranks. Raises UnsupportedModel where neither works out.

    >>> rank_heads(8, rank=1, ranks=4), rank_heads(2, rank=3, ranks=4)
    (slice(2, 4, None), slice(1, 2, None))
    """
    if heads % ranks and ranks % heads:
        raise UnsupportedModel(f"{heads} KV heads cannot be dealt out to {ranks} ranks: choose a divisor or a multiple")
    if heads >= ranks:
        share = heads // ranks
        return slice(rank * share, (rank + 1) * share)
    one = rank * heads // ranks
    return slice(one, one + 1)
