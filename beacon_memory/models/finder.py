"""A finder: KV heads whose attention to slots says which passage of a memory answers a question.

Some heads look at what a question asks for, even where all heads together look elsewhere. The score of a passage is a
weighted sum, over these heads, of the attention that a row of the question pays to the passage's slots, the highest
row counting (`levelled`), less a share of what a question about nothing pays it: some passages attract every question.
Weights are fitted to a model and its adapter (training/finder.py) and kept in the adapter's
folder.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from beacon_memory.config import check_finder
from beacon_memory.errors import AdapterError
from beacon_memory.fold.fold import embed, predicted, read
from beacon_memory.fold.passes import SeekPass
from beacon_memory.fold.prefix import Prefix, starts
from beacon_memory.models.resident import ResidentPrefix, RoomLayer, cache_of
from beacon_memory.state.state import Segment

FORMAT, VERSION = "beacon-finder", 2  # 1 had no baseline
FILE = "finder.json"
FEW = 8  # passages: a memory of fewer is scored as one of so many
MANY = 64  # passages: finders are fitted on no more
QUESTION = 256  # newest tokens of a question that are looked with
PIECE = 512  # rows read at once
# Of words: the share of a question's words that counts as found; with attention, in thresholds of its own, what all of
# the words count, and what counts as found; and what others need beside the best (benchmarks/LOG.md).
WORDS_FOUND, WORDS_WEIGHT, BOTH_FOUND, WORDS_NEAR = 0.3, 2.0, 1.4, 0.6
NEUTRAL = (  # asks for nothing that was said
    "What is it? Who was that? Where was it? When did it happen? How many were there? What is the name of it? "
    "Why did he do that? What did she say?"
)


@dataclass(frozen=True)
class Finder:
    """Which heads find, how much each counts, and the score from which on a passage counts as found."""

    heads: tuple[tuple[int, int], ...]  # each a layer, and a KV head of it
    weights: tuple[float, ...]  # one for each head
    threshold: float
    baseline: float = 0.0  # the share that is taken off of what a question about nothing pays
    words: float = 0.0  # what a passage scores beside that, if it has all of a question's words (talk/words.py)
    near: float = 0.0  # the share of the best passage's score that others need to be read beside it

    def scores(
        self,
        lm: Any,
        past: Prefix,
        segments: Sequence[Segment],
        passages: Sequence[tuple[int, int]],
        ids: Sequence[int],
        *,
        slots: int | None = None,
        idle: Tensor | None = None,
    ) -> Tensor:
        """The score of each passage for a question, in order.  # (passages,)

        `past` is the segments' prefix, or begins with it and its `slots`; passages are ranges of the segments' ids, one
        behind another, without a gap; `ids` are the question's, read behind the past. What a row pays is counted as if
        slots and question were all there is. A passage whose segment has no places has the score 0. `idle` is what a
        question about nothing pays (`idle`).
        """
        return self._scored(attention(lm, past, segments, passages, ids, heads=self.heads, slots=slots), idle)

    def idle(
        self,
        lm: Any,
        past: Prefix,
        segments: Sequence[Segment],
        passages: Sequence[tuple[int, int]],
        ids: Sequence[int],
        *,
        slots: int | None = None,
    ) -> Tensor | None:
        """What a question about nothing, of these ids, pays each passage; None where that is not taken off.

        As `scores`.  # (passages,)
        """
        if not self.baseline:
            return None
        return self._paid(attention(lm, past, segments, passages, ids, heads=self.heads, slots=slots))

    def read(
        self,
        lm: Any,
        resident: ResidentPrefix,
        segments: Sequence[Segment],
        passages: Sequence[tuple[int, int]],
        ids: Sequence[int],
        *,
        question: int,
        idle: Tensor | None = None,
    ) -> Tensor:
        """The same while ids are read behind a resident's rows, for good: the newest `question` of them are asked.

        The resident holds the segments, and maybe raw rows.  # (passages,)
        """
        seek = read_on(lm, resident, ids, heads=self.heads, looking=min(question, QUESTION))
        return self._scored(_paid(seek.seen, _owners(segments, passages, self.heads), len(passages)), idle)

    def _scored(self, paid: Tensor, idle: Tensor | None) -> Tensor:
        return levelled(self._paid(paid), None if idle is None else self.baseline * idle)

    def _paid(self, paid: Tensor) -> Tensor:
        return torch.tensor(self.weights) @ paid

    def chosen(self, passages: Sequence[tuple[float, int]], *, tokens: int) -> list[int]:
        """Which passages to read again, in so many tokens, the best first: those that count as found, while they fit.

        `passages` are a score and a number of tokens each, the best first.

        >>> Finder(((0, 0),), (1.0,), threshold=2.0).chosen([(9.0, 60), (5.0, 60), (3.0, 20), (1.0, 5)], tokens=90)
        [0, 2]
        """
        found: list[int] = []
        least = max([self.threshold, *(self.near * score for score, _ in passages[:1])])
        for n, (score, size) in enumerate(passages):
            if score >= least and size <= tokens:
                found.append(n)
                tokens -= size
        return found

    def write(self, folder: str | Path, *, model: str) -> None:
        """Write it into an adapter's folder; `model` is the base model's fingerprint."""
        about = {
            "format": FORMAT,
            "version": VERSION,
            "base_model": model,
            "heads": [[*head, round(weight, 4)] for head, weight in zip(self.heads, self.weights, strict=True)],
            "threshold": round(self.threshold, 4),
            "baseline": self.baseline,
        }
        new = Path(folder) / f".{FILE}.new"
        new.write_text(json.dumps(about, indent=2) + "\n")
        os.replace(new, Path(folder) / FILE)


def read_finder(folder: str | Path, *, model: str, layers: int, kv_heads: int) -> Finder | None:
    """The finder of an adapter's folder; None where it has none.

    Raises AdapterError for one of another model, or a file that is no finder.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return None
    try:
        about = json.loads(path.read_text())
        found = (about["format"], about["version"])
        if found not in ((FORMAT, 1), (FORMAT, VERSION)):
            raise AdapterError(f"{path}: expected {FORMAT} version {VERSION}, found {found[0]} version {found[1]}")
        if about["base_model"] != model:
            raise AdapterError(
                f"{path} was fitted for base model {about['base_model']}, this one is {model}: fit one for it with "
                f"beacon-memory fit-finder"
            )
        heads = tuple((int(layer), int(head)) for layer, head, _ in about["heads"])
        weights = tuple(float(weight) for _, _, weight in about["heads"])
        threshold, baseline = float(about["threshold"]), float(about.get("baseline", 0))
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, RecursionError) as exc:
        raise AdapterError(f"{path} is not a readable finder: {exc!r}") from exc
    inside = all(0 <= layer < layers and 0 <= head < kv_heads for layer, head in heads)
    if (
        not heads
        or len(set(heads)) < len(heads)
        or not inside
        or not all(map(math.isfinite, (*weights, threshold, baseline)))
    ):
        raise AdapterError(f"{path}: its heads are not those of a model with {layers} layers of {kv_heads} KV heads")
    return Finder(heads, weights, threshold, baseline)


def finder_by(kind: str, heads: Finder | None) -> Finder | None:
    """What finds by attention, by words, or by both; None for attention where no heads were fitted.

    Raises ConfigError, and MissingExtra where words cannot be found.
    """
    check_finder(kind)
    if kind == "attention":
        return heads
    if kind == "words" or heads is None:
        return Finder((), (), WORDS_FOUND, words=1.0, near=WORDS_NEAR)
    unit = heads.threshold
    return replace(heads, threshold=BOTH_FOUND * unit, words=WORDS_WEIGHT * unit, near=WORDS_NEAR)


def levelled(paid: Tensor, less: Tensor | None = None) -> Tensor:
    """Scores that one threshold suits, from weighted sums of attention, of which `less` is taken off: coarse slots are
    paid less, all of them, and what chance pays one grows as the root of what it pays the mean. Where passages are few
    each is paid much: there the mean is what it would be among more. Where they are many, one of them is paid much by
    every question: there all score less (benchmarks/LOG.md).  # (…, passages)
    """
    count = paid.shape[-1]
    mean = paid.sum(dim=-1, keepdim=True) / max(count, FEW)
    own = paid if less is None else (paid - less).clamp(min=0)
    scores: Tensor = own / mean.clamp(min=1e-9).sqrt() / max(count / MANY, 1) ** 0.2
    return scores


def attention(
    lm: Any,
    past: Prefix,
    segments: Sequence[Segment],
    passages: Sequence[tuple[int, int]],
    ids: Sequence[int],
    *,
    heads: Sequence[tuple[int, int]],
    slots: int | None = None,
) -> Tensor:
    """The attention that heads pay to each passage's slots: of the row of the question that pays it most. Sinks belong
    to no passage. As `Finder.scores`.  # (heads, passages)
    """
    rows = torch.tensor([list(ids)], device=past.device)
    seek = SeekPass(past, len(ids), heads, slots=slots)
    with torch.inference_mode():
        read(lm, seek, embed(lm, rows), torch.arange(len(ids)) + past.slots)
        return _paid(seek.seen, _owners(segments, passages, heads), len(passages))


def read_on(
    lm: Any, resident: ResidentPrefix, ids: Sequence[int], *, heads: Sequence[tuple[int, int]] = (), looking: int = 0
) -> SeekPass:
    """Read ids behind a resident's rows, for good; the newest `looking` of them look at its slots."""
    slots = resident.segments[-1][1]
    cache = cache_of(lm, resident.past, resident.roomy(lm, len(ids)))
    layers = [layer for layer in cache.layers if isinstance(layer, RoomLayer)]
    past, at = resident.past, 0
    with torch.inference_mode():
        while True:
            left = len(ids) - at
            size = left if left <= max(PIECE, looking) else min(PIECE, left - looking)
            last = size == left
            seek = SeekPass(
                past,
                size,
                heads if last else (),
                slots=slots,
                looking=looking if last else 0,
                keep=partial(_kept, layers),
            )
            rows = torch.tensor([list(ids[at : at + size])], device=past.device)
            hidden = read(lm, seek, embed(lm, rows), torch.arange(size) + past.slots)
            past, at = past.seen(size, recurrent=seek.recurrent), at + size
            if last:
                break
    # A layer on another device has lengthened a copy of its own: the room holds nothing new.
    if all(layer.written == past.slots for layer in layers):
        with torch.inference_mode():
            resident.read(ids, recurrent=past.recurrent, following=predicted(lm, hidden[:, -1]))
    return seek


def _paid(seen: Tensor, owners: Tensor, passages: int) -> Tensor:
    """What the row that pays a passage's slots most pays them.  # (heads, passages)"""
    rows = seen[:, 0].cpu()
    paid = torch.zeros(*rows.shape[:2], passages + 1)
    paid.scatter_add_(2, owners[:, None].expand(-1, rows.shape[1], -1), rows)
    return paid[..., :-1].amax(dim=1)


def _kept(layers: Sequence[RoomLayer], layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """All keys and values of a layer, these behind those of its cache."""
    return layers[layer].update(keys, values)


def _owners(
    segments: Sequence[Segment], passages: Sequence[tuple[int, int]], heads: Sequence[tuple[int, int]]
) -> Tensor:
    """The passage that each slot of a prefix belongs to, `len(passages)` for none.  # (heads, slots)"""
    ends = torch.tensor([end for _, end in passages])
    found, before = [], 0
    for segment, start in zip(segments, starts(segments, behind=False), strict=True):
        places = segment.places(heads)
        if places is None:
            owners = torch.full((len(heads), segment.slots), len(passages))
        else:
            owners = torch.bucketize(places + before, ends, right=True)
        owners[:, : segment.sink] = len(passages)
        found.append(owners[:, start:])
        before += len(segment.ids)
    return torch.cat(found, dim=1)
