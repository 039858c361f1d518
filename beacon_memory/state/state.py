"""A session's memory as a value: slots by segment, and the raw tail."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

from beacon_memory.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from beacon_memory.config import BeaconConfig
    from beacon_memory.state.quantise import Packed
    from beacon_memory.state.recurrent import Recurrent


@dataclass(frozen=True)
class Fingerprint:
    """What wrote a set of slots, as hashes. Slots mean the same only under an equal fingerprint."""

    model: str  # architecture and weights
    adapter: str  # beacon weights; "none" without any
    tokenizer: str  # what the ids stand for
    layout: str  # how slots are made

    def differences(self, other: Fingerprint) -> list[str]:
        """The names of the fields in which the two differ, in order."""
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]

    def __str__(self) -> str:
        return "/".join(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True, eq=False)
class Segment:
    """One folded window: its slots, and the tokens they stand for. It never changes.

    The first `sink` slots are raw tokens; after them, each slot stands for `ratio` tokens (the last one of a closed
    stream may stand for fewer). A segment holds no positions: its keys are before RoPE, so segments can be joined in
    any order. Where a model has recurrent layers, a segment also holds what these had read at its end, of all that it
    was folded behind: such segments stand behind nothing else.
    """

    digest: str  # address: fingerprint, settings, parent, ids
    parent: str  # address of the segments it was folded behind, see `chain`
    ids: tuple[int, ...]
    ratio: int
    sink: int
    kept: tuple[Tensor, Tensor] | Packed  # keys and values, or their form in 8 or 4 bits, unpacked on each use
    overlap: int = 0  # how many tokens of the segment before it were read again in front of its own
    apart: str = ""  # its name in a store, where that is not its digest (see `head.Entry`)
    # Which tokens its slots stand for (`places.pack_places`); None where an older release folded it.
    placed: Tensor | None = None  # (layers, kv_heads, bytes), uint8; layers and heads are 1 where all are the same
    recurrent: Recurrent | None = None  # what recurrent layers had read at its end; None where the model has none

    @property
    def name(self) -> str:
        """What identifies it: in one store, equal names are equal slots."""
        return self.apart or self.digest

    @property
    def keys(self) -> Tensor:
        """Its keys, before RoPE.  # (layers, kv_heads, slots, head_dim)"""
        return self.kept[0] if isinstance(self.kept, tuple) else self.kept.unpacked_keys()

    @property
    def values(self) -> Tensor:
        """Its values.  # (layers, kv_heads, slots, head_dim)"""
        return self.kept[1] if isinstance(self.kept, tuple) else self.kept.unpacked_values()

    @property
    def packed(self) -> Packed | None:
        """Its form in 8 or 4 bits; None where keys and values are kept as they are."""
        return None if isinstance(self.kept, tuple) else self.kept

    @cached_property
    def slots(self) -> int:
        """The number of KV entries, counting sinks."""
        return int(self.kept[0].shape[2]) if isinstance(self.kept, tuple) else self.kept.slots

    @property
    def nbytes(self) -> int:
        """The bytes of its keys and values as they are kept, and of its recurrent state; its places take less than a
        hundredth of that.
        """
        kept = sum(t.nbytes for t in self.kept) if isinstance(self.kept, tuple) else self.kept.nbytes
        return kept + (0 if self.recurrent is None else self.recurrent.nbytes)

    def places(self, heads: Sequence[tuple[int, int]] | None = None) -> Tensor | None:
        """The index in `ids` of the token that each slot stands for, those of the sinks first; None where that is not
        known.

        # (layers, kv_heads, slots), layers and heads 1 where all are the same; (heads, slots) of `heads`, each a layer
        and a KV head of it
        """
        import torch

        from beacon_memory.state.places import unpack_places

        if self.placed is None:
            return None
        placed = self.placed
        if heads is not None:
            layers, kv_heads = placed.shape[:2]
            chosen = [placed[min(layer, layers - 1), min(head, kv_heads - 1)] for layer, head in heads]
            placed = torch.stack(chosen)[None]
        rest = unpack_places(placed, tokens=len(self.ids) - self.sink, ratio=self.ratio) + self.sink
        sinks = torch.arange(self.sink).expand(*rest.shape[:2], -1)
        found = torch.cat([sinks, rest], dim=2)
        return found if heads is None else found[0]

    def equals(self, other: Segment) -> bool:
        """Whether every field is the same, bit for bit; places that an older release did not keep count for none."""
        import torch

        return (
            (self.digest, self.parent, self.ids, self.ratio, self.sink, self.overlap)
            == (other.digest, other.parent, other.ids, other.ratio, other.sink, other.overlap)
            and torch.equal(self.keys, other.keys)
            and torch.equal(self.values, other.values)
            and (self.placed is None or other.placed is None or torch.equal(self.placed, other.placed))
            and (other.recurrent is None if self.recurrent is None else self.recurrent.equals(other.recurrent))
        )


@dataclass(frozen=True, eq=False)
class BeaconState:
    """What a model has read: folded segments, oldest first, and the raw tokens after them.

    A value: folding more gives a new state, which shares segments with this one and leaves it as it is.
    """

    segments: tuple[Segment, ...] = ()
    tail: tuple[int, ...] = ()

    @cached_property
    def slots(self) -> int:
        """The number of KV entries, counting sinks but not the raw tail."""
        return sum(segment.slots for segment in self.segments)

    @cached_property
    def tokens(self) -> int:
        """The number of tokens read, counting the tail."""
        return sum(len(segment.ids) for segment in self.segments) + len(self.tail)

    @cached_property
    def nbytes(self) -> int:
        """The bytes of all slots, and of recurrent states."""
        return sum(segment.nbytes for segment in self.segments)

    @cached_property
    def digest(self) -> str:
        """The address of the folded part: the `parent` of the next segment."""
        return chain(segment.name for segment in self.segments)

    def join(self, segments: Sequence[Segment]) -> Self:
        """This state with another stream's segments after its own. The tail stays last.

        Raises InputError for segments with a recurrent state, which has read its own stream alone: a session folds
        those again behind what they follow (`models.joining`).
        """
        if self.segments and any(segment.recurrent is not None for segment in segments):
            raise InputError(
                "recurrent states do not join: this model has layers that read everything in one order, so compress "
                "the tokens again behind this state"
            )
        return replace(self, segments=self.segments + tuple(segments))

    def equals(self, other: BeaconState) -> bool:
        """Whether both hold the same segments and tail, bit for bit."""
        return (
            self.tail == other.tail
            and len(self.segments) == len(other.segments)
            and all(a.equals(b) for a, b in zip(self.segments, other.segments, strict=True))
        )


def chain(digests: Iterable[str]) -> str:
    """The address of a sequence of segments: equal only for the same segments in the same order."""
    digest = hashlib.sha256(b"beacon-chain-1")
    for one in digests:
        digest.update(bytes.fromhex(one))
    return digest.hexdigest()


def overlapped(before: Sequence[Segment], *, config: BeaconConfig) -> tuple[int, ...]:
    """The newest ids of these segments, which are read once more in front of what follows.

    They are empty when the newest segment ends its stream, as one shorter than a window does.
    """
    if not before or not config.overlap or len(before[-1].ids) - before[-1].sink < config.window:
        return ()
    return before[-1].ids[-config.overlap :]


def segment_digest(
    ids: Sequence[int],
    *,
    ratio: int,
    sink: int,
    parent: str,
    config: BeaconConfig,
    fingerprint: Fingerprint,
    overlap: int = 0,
) -> str:
    """A segment's address, known before it is folded. Equal inputs give equal slots, so they are folded once."""
    digest = hashlib.sha256(b"beacon-segment-1")
    settings = f"{fingerprint}|{config.anchors}|{config.slot_dtype}|{ratio}|{sink}|{parent}|"
    # The parent says which ids overlap. Without any, the address is the one of older releases.
    digest.update((settings + (f"overlap {overlap}|" if overlap else "")).encode())
    digest.update(struct.pack(f"<{len(ids)}q", *ids))
    return digest.hexdigest()
