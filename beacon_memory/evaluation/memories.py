"""The methods: ways to keep a context in a given number of KV entries, sinks and raw tail counted.

`full` and `none` are the ends of the scale. `last-window` and `bm25` keep text and read it raw; `kv-subsample` and
`eviction` keep entries of one raw pass; a beacon memory is what `BeaconModel.compress` gives, the product's own path.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from beacon_memory.config import BeaconConfig, slot_count
from beacon_memory.evaluation.eviction import Kept, evenly_kept, evict, most_expected
from beacon_memory.evaluation.items import Item, Question
from beacon_memory.evaluation.retrieval import best_chunks
from beacon_memory.fold.fold import fold
from beacon_memory.fold.prefix import Prefix
from beacon_memory.models.model import BeaconModel
from beacon_memory.state.budget import next_refold
from beacon_memory.state.state import Segment

BASELINES = ("full", "none", "last-window", "bm25", "kv-subsample", "eviction")


@dataclass(frozen=True)
class Plan:
    """What a beacon memory of so many tokens keeps: the number every other method gets."""

    slots: int
    tail: int  # newest tokens, raw

    @property
    def entries(self) -> int:
        """All KV entries."""
        return self.slots + self.tail


def plan(tokens: int, *, ratio: int, config: BeaconConfig, budget: int, raw: int) -> Plan:
    """The entries that are kept, by counting alone: windows of a document, old ones folded coarser, and a raw tail."""
    segments: list[Segment] = []
    left = max(tokens - raw, 0)
    while left:
        sink = 0 if segments else config.sink
        taken = min(left, sink + config.document_window)
        left -= taken
        segments.append(_sketch(taken, ratio=ratio, sink=min(sink, taken)))
        while sum(segment.slots for segment in segments) > budget:
            index, coarser = next_refold(segments, budget)
            old = segments[index]
            segments[index] = _sketch(len(old.ids), ratio=coarser, sink=old.sink)
    return Plan(sum(segment.slots for segment in segments), min(tokens, raw))


def _sketch(tokens: int, *, ratio: int, sink: int) -> Segment:
    slots = sink + slot_count(tokens - sink, ratio)
    shape = torch.empty(1, 1, slots, 1, device="meta")
    return Segment("", "", (0,) * tokens, ratio, sink, (shape, shape))


class Memories:
    """Memories of one item by method and ratio, on one attached model; the raw pass that several need is made once."""

    def __init__(self, model: BeaconModel, item: Item, *, raw: int) -> None:
        self.model = model
        self.item = item
        self.raw = raw
        self.empty = model.empty
        self._kept: Kept | None = None

    def plan(self, ratio: int) -> Plan:
        """What a beacon memory of this item keeps at this ratio."""
        model = self.model
        length = len(self.item.context)
        return plan(length, ratio=ratio, config=model.config, budget=model.budget, raw=self.raw)

    def make(self, kind: str, ratio: int, question: Question | None = None) -> Prefix | None:
        """The memory; None where it does not fit the model's window. `bm25` needs the question."""
        ids, positions = self.item.context, self.model.positions
        if kind == "none":
            return self.empty
        if kind == "full":
            return self._raw().prefix(self.empty) if len(ids) <= positions else None
        planned = self.plan(ratio)
        if planned.entries >= positions:
            return None
        if not planned.slots:  # too short to be folded: all of it is tail
            return read_raw(self.model, self.empty, ids)
        if kind == "beacon":
            end = len(ids) - planned.tail
            state = self.model.compress(ids[:end], ratio=ratio, document=True)
            return read_raw(self.model, self.empty.extend(state.segments), ids[end:])
        if kind == "last-window":
            newest = ids[len(self.item.start) :][-(planned.entries - len(self.item.start)) :]
            return read_raw(self.model, self.empty, (*self.item.start, *newest))
        if kind == "bm25":
            assert question is not None
            chunks = best_chunks(self.model, self.item, question.query, planned.entries, tail=planned.tail)
            return read_raw(self.model, self.empty, chunks)
        rule = most_expected if kind == "eviction" else evenly_kept
        sink = self.model.config.sink
        if len(ids) <= positions:
            return self._raw().keep(self.empty, planned.slots, rule, sink=sink, tail=planned.tail)
        return evict(self.model, self.empty, ids, planned.slots, rule, sink=sink, tail=planned.tail)

    def _raw(self) -> Kept:
        if self._kept is None:
            self._kept = Kept.read(self.model, self.empty, self.item.context)
        return self._kept


def read_raw(model: BeaconModel, past: Prefix, ids: tuple[int, ...]) -> Prefix:
    """A past with these tokens behind it, as the model itself keeps them."""
    if not ids:
        return past
    rows: Tensor = torch.tensor([ids], device=model.lm.device)
    with torch.inference_mode():
        folded = fold(model.beacons, past, rows, ratio=1, sink=0, config=model.config, states=False)
    return past.append(folded.keys, folded.values)
