"""A segment of a fold: what is kept of it, in the dtype in which it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from beacon_memory.state.places import pack_places
from beacon_memory.state.quantise import BITS, pack
from beacon_memory.state.recurrent import kept_dtype
from beacon_memory.state.state import Segment

if TYPE_CHECKING:
    from beacon_memory.fold.fold import Folded


def segment_of(
    folded: Folded,
    ids: Sequence[int],
    *,
    digest: str,
    parent: str,
    ratio: int,
    sink: int,
    overlap: int,
    slot_dtype: str,
) -> Segment:
    """What is kept of a folded window of these ids."""
    assert folded.places is not None
    named: dict[str, Any] = {"overlap": overlap, "placed": pack_places(folded.places[:, 0], ratio=ratio)}
    if folded.recurrent is not None:
        narrow = kept_dtype(slot_dtype)
        named["recurrent"] = folded.recurrent.mapped(lambda t: t[:, 0].to(narrow).clone().contiguous())
    if slot_dtype in BITS:
        # Packed at once: so a segment in memory and one from the store give the same answers.
        packed = pack(folded.keys[:, 0], folded.values[:, 0], sink=sink, dtype=slot_dtype)
        return Segment(digest, parent, tuple(ids), ratio, sink, packed, **named)
    dtype = getattr(torch, slot_dtype)
    # Copies: a view would keep the whole forward's memory alive as long as the state.
    keys, values = (t[:, 0].to(dtype).clone().contiguous() for t in (folded.keys, folded.values))
    return Segment(digest, parent, tuple(ids), ratio, sink, (keys, values), **named)
