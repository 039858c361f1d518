"""Pasts and prompts of different lengths as one batch for transformers' generate()."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin

from beacon_memory.fold.prefix import Prefix, Room, entries
from beacon_memory.models.resident import ResidentPrefix, RoomLayer, cache_of, fill, room_for

if TYPE_CHECKING:
    from beacon_memory.state.state import Segment

# The name of the cache argument of models and generate(): transformers 5.24 renamed it.
CACHE = "cache" if "cache" in signature(GenerationMixin.prepare_inputs_for_generation).parameters else "past_key_values"


@dataclass(frozen=True)
class Batch:
    """A left-padded batch, its cache, and who keeps its rows afterwards."""

    ids: Tensor  # (batch, prompt): ids that are still to be read
    mask: Tensor  # (batch, slots + prompt): 0 where padded
    cache: DynamicCache
    room: Room  # the memory of the cache's rows
    prompts: Sequence[Sequence[int]]  # the ids of each row, unpadded
    residents: Sequence[ResidentPrefix | None] = ()  # who keeps each row for the next turn

    @property
    def inputs(self) -> dict[str, Any]:
        """The keyword arguments of a model or of generate()."""
        return {"input_ids": self.ids, "attention_mask": self.mask, CACHE: self.cache}

    def settle(self, answers: Sequence[Sequence[int]]) -> None:
        """Hand the rows that were read to the residents. To be called once, when the model is done."""
        before = self.mask.shape[1]
        end = int(self.cache.get_seq_length())
        for i, (resident, prompt, answer) in enumerate(zip(self.residents, self.prompts, answers, strict=True)):
            if resident is None:
                continue
            start = before - len(prompt)
            ids = [*prompt, *answer][: end - start]
            # A layer on another device has lengthened a copy of its own: the room holds nothing new.
            if isinstance(layer := self.cache.layers[-1], RoomLayer) and layer.written == end:
                if resident.past.room is not self.room:
                    resident.copy(self.room, row=i, start=start, end=end)
                resident.read(ids)
            resident.release(resident)


def batch(
    lm: Any,
    empty: Prefix,
    pasts: Sequence[Sequence[Segment]],
    prompts: Sequence[Sequence[int]],
    *,
    new: int,
    residents: Sequence[ResidentPrefix | None] | None = None,
    again: bool = True,
) -> Batch:
    """One batch: `[pad | slots | pad | prompt]` per row, with room for `new` more tokens.

    Positions follow the mask, so padding shifts nothing. `residents` hold what earlier turns have read; with `again`
    their raw rows are used too.
    """
    many = list(residents or [None] * len(prompts))
    alone = ResidentPrefix(empty) if len(prompts) == 1 and many[0] is None else None
    used = [alone] if alone is not None else many
    left: list[Sequence[int]] = []
    counts: list[int] = []
    for resident, segments, prompt in zip(used, pasts, prompts, strict=True):
        shared = 0
        if resident is not None:
            shared = resident.stand(segments, prompt, room=len(prompt) + new, raw=again)
            resident.roomy(lm, len(prompt) + new)
        left.append(prompt[shared:])
        counts.append(entries(segments) + shared)
    slots, rows = max(counts), max(map(len, left))
    ids = torch.zeros(len(left), rows, dtype=torch.long)
    mask = torch.zeros(len(left), slots + rows, dtype=torch.long)
    for i, (count, prompt) in enumerate(zip(counts, left, strict=True)):
        ids[i, rows - len(prompt) :] = torch.tensor(prompt)
        mask[i, slots - count : slots] = 1
        mask[i, slots + rows - len(prompt) :] = 1
    if len(used) == 1 and used[0] is not None:
        room = used[0].roomy(lm, rows + new)
    else:
        room = room_for(lm, slots + rows + new, batch=len(left), like=empty)
        for i, (resident, segments, count) in enumerate(zip(used, pasts, counts, strict=True)):
            fill(room, i, empty, segments, resident=resident, first=slots - count, end=slots)
    return Batch(ids.to(lm.device), mask.to(lm.device), cache_of(room, filled=slots), room, left, many)
