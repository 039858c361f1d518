"""The methods: ways to keep a context in a given number of KV entries, sinks and raw tail counted.

`full` and `none` are the ends of the scale. `last-window` and `bm25` keep text and read it raw; `kv-subsample` and
`eviction` keep entries of one raw pass; a beacon memory is what `BeaconModel.compress` gives, the product's own path.
An item with a system prompt is read as a session's prompt is: what is folded, system prompt, raw tail. Its raw talk
begins with the system prompt, as a session's does that has folded nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from beacon_memory.config import BeaconConfig, slot_count
from beacon_memory.evaluation.eviction import Kept, Rule, evenly_kept, evict, most_expected
from beacon_memory.evaluation.items import Item, Question
from beacon_memory.evaluation.retrieval import best_chunks
from beacon_memory.fold.fold import fold
from beacon_memory.fold.prefix import Prefix
from beacon_memory.models.model import BeaconModel
from beacon_memory.state.budget import next_refold
from beacon_memory.state.state import Segment, overlapped

BASELINES = ("full", "none", "last-window", "bm25", "kv-subsample", "eviction")
SEGMENTS = 96  # of the last documents: three of 16K tokens


@dataclass(frozen=True)
class Plan:
    """What a beacon memory of so many tokens keeps: the number every other method gets."""

    slots: int
    tail: int  # newest tokens, raw
    again: int = 0  # tokens in front of the tail that are read a second time

    @property
    def entries(self) -> int:
        """All KV entries."""
        return self.slots + self.again + self.tail


def plan(tokens: int, *, ratio: int, config: BeaconConfig, budget: int, raw: int, talk: bool = False) -> Plan:
    """The entries that are kept, by counting alone: windows, old ones folded coarser, and a raw tail."""
    segments: list[Segment] = []
    left = max(tokens - raw, 0)
    while left:
        sink = 0 if segments else config.sink
        taken = min(left, sink + (config.window if talk else config.document_window))
        left -= taken
        segments.append(_sketch(taken, ratio=ratio, sink=min(sink, taken)))
        while sum(segment.slots for segment in segments) > budget:
            index, coarser = next_refold(segments, budget)
            old = segments[index]
            segments[index] = _sketch(len(old.ids), ratio=coarser, sink=old.sink)
    again = len(overlapped(segments, config=config)) if talk and raw else 0
    return Plan(sum(segment.slots for segment in segments), min(tokens, raw), again)


def _sketch(tokens: int, *, ratio: int, sink: int) -> Segment:
    slots = sink + slot_count(tokens - sink, ratio)
    shape = torch.empty(1, 1, slots, 1, device="meta")
    return Segment("", "", (0,) * tokens, ratio, sink, (shape, shape))


@dataclass(frozen=True)
class Folded:
    """A beacon memory."""

    segments: tuple[Segment, ...]
    past: Prefix  # of the segments, and of what is raw behind them
    again: int  # newest tokens of the segments that are raw behind them too

    @property
    def slots(self) -> int:
        """KV entries of the segments."""
        return sum(segment.slots for segment in self.segments)


class Recent:
    """The segments that were folded last: the items of some tasks begin alike."""

    def __init__(self) -> None:
        self._segments: OrderedDict[str, Segment] = OrderedDict()

    def get(self, digest: str) -> Segment | None:
        """A segment by its digest, if it is here."""
        if digest in self._segments:
            self._segments.move_to_end(digest)
        return self._segments.get(digest)

    def add(self, segments: Sequence[Segment]) -> None:
        """Keep these, and drop those that were not asked for longest."""
        self._segments.update({segment.digest: segment for segment in segments})
        while len(self._segments) > SEGMENTS:
            self._segments.popitem(last=False)


class Memories:
    """Memories of one item by method and ratio, on one attached model; the raw pass that several need is made once.

    `recent` has what was folded for earlier items.
    """

    def __init__(self, model: BeaconModel, item: Item, *, recent: Recent | None = None) -> None:
        self.model = model
        self.item = item
        self.empty = model.empty
        self._recent = recent or Recent()
        self._kept: dict[int, Kept] = {}  # of the first so many tokens

    def plan(self, ratio: int) -> Plan:
        """What a beacon memory of this item keeps at this ratio."""
        model, item = self.model, self.item
        length = len(item.context)
        return plan(length, ratio=ratio, config=model.config, budget=model.budget, raw=item.raw, talk=item.talk)

    def make(self, kind: str, ratio: int, question: Question | None = None) -> Prefix | None:
        """The memory; None where it does not fit the model's window. `bm25` needs the question."""
        item, ids, positions = self.item, self.item.context, self.model.positions
        if kind == "none":
            return self.empty
        if kind == "full":
            if len(ids) + len(item.system) > positions:
                return None
            return self._text(ids) if item.system else self._raw(len(ids)).prefix(self.empty)
        planned = self.plan(ratio)
        if planned.entries + len(item.system) >= positions:
            return None
        if not planned.slots:  # too short to be folded: all of it is tail
            return self._text(ids)
        end = len(ids) - planned.tail
        if kind == "beacon":
            return self.folded(ratio).past
        if kind == "last-window":
            newest = ids[len(item.start) :][-(planned.entries - len(item.start)) :]
            return self._text((*item.start, *newest))
        if kind == "bm25":
            assert question is not None
            return self._text(best_chunks(self.model, item, question.query, planned.entries, tail=planned.tail))
        rule = most_expected if kind == "eviction" else evenly_kept
        if item.system:  # the tail stands behind the system prompt: what is kept is of what stands before both
            return self._behind(self._evicted(end, planned.slots + planned.again, rule, tail=0), ids[end:])
        return self._evicted(len(ids), planned.slots, rule, tail=planned.tail)

    def folded(self, ratio: int, *, budget: int | None = None) -> Folded:
        """The beacon memory, in `budget` slots where that is less than what it has at this ratio."""
        item, planned = self.item, self.plan(ratio)
        end = len(item.context) - planned.tail
        how: dict[str, Any] = {"ratio": ratio, "document": not item.talk, "close": True, "known": self._recent.get}
        segments = self.model.compress(item.context[:end], budget=budget, **how).segments
        self._recent.add(segments)
        again = overlapped(segments, config=self.model.config)[: planned.again]
        past = self._behind(self.empty.extend(segments), (*again, *item.context[end:]))
        return Folded(segments, past, len(again))

    def _text(self, ids: tuple[int, ...]) -> Prefix:
        """A text read raw from its beginning, with the system prompt where it belongs."""
        item, first = self.item, len(self.item.start)
        if not item.talk and (last := len(ids) - item.raw) > first:  # behind a document
            first = last
        return read_raw(self.model, self.empty, (*ids[:first], *item.system, *ids[first:]))

    def _evicted(self, end: int, slots: int, rule: Rule, *, tail: int) -> Prefix:
        """What a rule keeps of the first `end` tokens."""
        sink, ids = self.model.config.sink, self.item.context[:end]
        if end <= self.model.positions:
            return self._raw(end).keep(self.empty, slots, rule, sink=sink, tail=tail)
        return evict(self.model, self.empty, ids, slots, rule, sink=sink, tail=tail)

    def _behind(self, past: Prefix, tail: tuple[int, ...]) -> Prefix:
        return read_raw(self.model, past, (*self.item.system, *tail))

    def _raw(self, end: int) -> Kept:
        if end not in self._kept:
            self._kept[end] = Kept.read(self.model, self.empty, self.item.context[:end])
        return self._kept[end]


def read_raw(model: BeaconModel, past: Prefix, ids: tuple[int, ...]) -> Prefix:
    """A past with these tokens behind it, as the model itself keeps them."""
    if not ids:
        return past
    rows: Tensor = torch.tensor([ids], device=model.empty.device)
    with torch.inference_mode():
        folded = fold(model.beacons, past, rows, ratio=1, sink=0, config=model.config, states=False)
    return past.append(folded.keys, folded.values).read_to(folded.recurrent)
