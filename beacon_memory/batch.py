"""Pasts and prompts of different lengths as one batch for transformers' generate()."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin

from beacon_memory.front import Front, RoomLayer, cache_of, fill, room_for
from beacon_memory.prefix import Prefix, Room, entries

if TYPE_CHECKING:
    from beacon_memory.state import Segment

# What models and generate() call their cache: renamed in transformers 5.24.
CACHE = "cache" if "cache" in signature(GenerationMixin.prepare_inputs_for_generation).parameters else "past_key_values"


@dataclass(frozen=True)
class Batch:
    """A left-padded batch, and where its rows come from and go to."""

    ids: Tensor  # (batch, prompt): what has not been read yet
    mask: Tensor  # (batch, slots + prompt): 0 where padded
    cache: DynamicCache
    room: Room  # where the cache's rows stand
    prompts: Sequence[Sequence[int]]  # the ids of each row
    fronts: Sequence[Front | None] = ()  # who keeps a row for the next turn

    @property
    def inputs(self) -> dict[str, Any]:
        """What a model, or generate(), is given."""
        return {"input_ids": self.ids, "attention_mask": self.mask, CACHE: self.cache}

    def settle(self, answers: Sequence[Sequence[int]]) -> None:
        """Give what was read back to the fronts. To be called once, when the model is done."""
        before = self.mask.shape[1]
        end = int(self.cache.get_seq_length())
        for i, (front, prompt, answer) in enumerate(zip(self.fronts, self.prompts, answers, strict=True)):
            if front is None:
                continue
            start = before - len(prompt)
            ids = [*prompt, *answer][: end - start]
            # A layer on another device has lengthened its own copy: nothing stands in the room.
            if isinstance(layer := self.cache.layers[-1], RoomLayer) and layer.written == end:
                if front.past.room is not self.room:
                    front.copy(self.room, row=i, start=start, end=end)
                front.read(ids)
            front.give(front)


def batch(
    lm: Any,
    empty: Prefix,
    pasts: Sequence[Sequence[Segment]],
    prompts: Sequence[Sequence[int]],
    *,
    new: int,
    fronts: Sequence[Front | None] | None = None,
    again: bool = True,
) -> Batch:
    """One batch: `[pad | slots | pad | prompt]` per row, with room for `new` tokens more.

    Positions follow the mask, so padding moves nothing. `fronts` hold what an earlier turn has read; with `again`, raw
    rows too.
    """
    many = list(fronts or [None] * len(prompts))
    alone = Front(empty) if len(prompts) == 1 and many[0] is None else None
    held = [alone] if alone is not None else many
    left: list[Sequence[int]] = []
    counts: list[int] = []
    for front, segments, prompt in zip(held, pasts, prompts, strict=True):
        shared = 0
        if front is not None:
            shared = front.stand(segments, prompt, room=len(prompt) + new, raw=again)
            front.roomy(lm, len(prompt) + new)
        left.append(prompt[shared:])
        counts.append(entries(segments) + shared)
    slots, rows = max(counts), max(map(len, left))
    ids = torch.zeros(len(left), rows, dtype=torch.long)
    mask = torch.zeros(len(left), slots + rows, dtype=torch.long)
    for i, (count, prompt) in enumerate(zip(counts, left, strict=True)):
        ids[i, rows - len(prompt) :] = torch.tensor(prompt)
        mask[i, slots - count : slots] = 1
        mask[i, slots + rows - len(prompt) :] = 1
    if len(held) == 1 and held[0] is not None:
        room = held[0].roomy(lm, rows + new)
    else:
        room = room_for(lm, slots + rows + new, batch=len(left), like=empty)
        for i, (front, segments, count) in enumerate(zip(held, pasts, counts, strict=True)):
            fill(room, i, empty, segments, front=front, first=slots - count, end=slots)
    return Batch(ids.to(lm.device), mask.to(lm.device), cache_of(room, filled=slots), room, left, many)
