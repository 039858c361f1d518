"""A prompt's prefix that stays on the device from turn to turn: slots, and the raw rows that were read after them.

A turn adds to it what is new. It records the names of its segments and the ids of its raw rows, and they are compared
on each use, so it is never stale: from the first difference on, it is dropped and read again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer

from beacon_memory.fold.family import recurrences, slot_shape, slot_shapes, unshared
from beacon_memory.fold.prefix import Prefix, Room

if TYPE_CHECKING:
    from beacon_memory.state.recurrent import Recurrent
    from beacon_memory.state.state import Segment

# The name of the cache argument of models and generate(): transformers 5.24 renamed it.
CACHE = "cache" if "cache" in signature(GenerationMixin.prepare_inputs_for_generation).parameters else "past_key_values"
SPARE = 512  # rows of room beyond what a turn needs, for later turns


@dataclass(eq=False)
class ResidentPrefix:
    """One prefix on the device, and which segments and ids it holds. One thread uses it at a time."""

    past: Prefix
    segments: list[tuple[str, int]] = field(default_factory=list)  # name, and where its slots end
    ids: list[int] = field(default_factory=list)  # of the raw rows after the segments
    release: Callable[[ResidentPrefix], None] = lambda resident: None  # called with it after a turn
    next: Tensor | None = None  # the logits behind the last of its ids, where they are known  # (1, vocabulary)
    # What a question about nothing pays passages of its segments, and which these are, where it was asked.
    idle: tuple[list[tuple[int, int]], Tensor | None] | None = None

    @property
    def nbytes(self) -> int:
        """The bytes it takes on the device."""
        read = 0 if self.past.recurrent is None else self.past.recurrent.nbytes
        return read + (0 if self.past.room is None else self.past.room.nbytes)

    def stand(
        self, segments: Sequence[Segment], ids: Sequence[int] = (), *, room: int, raw: bool = True, whole: bool = False
    ) -> int:
        """Hold these segments, with room for `room` more rows; returns how many of `ids` need not be read again.

        The last id is always read again, as a model has to read something; with `whole` not if `next` is known behind
        it. Without `raw`, all of them are; so are they where they part from what recurrent layers have read, which
        cannot go back but to a segment's end.
        """
        common = 0
        for (name, _), segment in zip(self.segments, segments, strict=False):
            if name != segment.name:
                break
            common += 1
        shared = 0
        if raw and common == len(self.segments) == len(segments):
            known = len(ids) - (not whole or self.next is None or len(self.ids) > len(ids))
            for one, other in zip(self.ids, ids[:known], strict=False):
                if one != other:
                    break
                shared += 1
            if self.past.recurrences and shared < len(self.ids):
                shared = 0
        if not shared or shared < len(self.ids):
            self.next = None
        if common < len(self.segments):
            self.idle = None
        slots = self.segments[common - 1][1] if common else 0
        self.segments, self.ids = self.segments[:common], list(ids[:shared])
        ended = segments[common - 1].recurrent if common else None
        read = self.past.recurrent if shared else ended
        past, new = self.past.back(slots + shared, recurrent=read), segments[common:]
        needed = sum(segment.slots for segment in new) + room - shared
        if past.room is None or past.room.capacity < past.slots + needed:
            past = past.reserve(needed + SPARE)
        self.past = past
        for segment in new:
            self.folded(segment)
        return shared

    def folded(self, segment: Segment) -> None:
        """Add a segment after the others. Raw rows are dropped."""
        self.past = self.past.back(self.past.slots - len(self.ids)).extend([segment])
        self.segments.append((segment.name, self.past.slots))
        self.ids, self.next, self.idle = [], None, None

    def roomy(self, lm: Any, rows: int) -> Room:
        """Its room. An empty prefix has none until a language model gives the shape: then one for so many rows."""
        if self.past.room is None:
            layers, kv_heads, width = slot_shape(lm.config)
            shape = torch.empty(layers, 1, kv_heads, 0, width)
            room = Room.like(shape, capacity=rows + SPARE, dtype=self.past.dtype, device=self.past.device)
            self.past = replace(self.past, keys=room.keys[..., :0, :], values=room.values[..., :0, :], room=room)
        assert self.past.room is not None
        return self.past.room

    def read(self, ids: Sequence[int], *, recurrent: Recurrent | None = None, following: Tensor | None = None) -> None:
        """Record that the rows of these ids have been appended, up to which `recurrent` has read; `following` are the
        logits behind them.
        """
        self.past = self.past.seen(len(ids), recurrent=recurrent)
        self.ids += ids
        self.next = following if ids else self.next


class RoomLayer(DynamicLayer):  # type: ignore[misc]
    """A layer of transformers' cache with room: a new row is written after the others, which are not copied."""

    def __init__(self, keys: Tensor, values: Tensor, *, filled: int) -> None:
        """keys, values: (batch, kv_heads, capacity, head_dim)."""
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._room = keys, values
        self.keys, self.values = self._seen = keys[:, :, :filled], values[:, :, :filled]

    @property
    def written(self) -> int:
        """The number of rows in the room."""
        return int(self._seen[0].shape[-2])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = self._room
        start = 0 if self.keys is None else int(self.keys.shape[-2])
        end = start + key_states.shape[-2]
        # Where transformers has replaced our view, or moved it to another device, it lengthens it itself.
        if self.keys is not self._seen[0] or end > keys.shape[-2] or key_states.device != keys.device:
            if self.keys is not None and key_states.device != self.keys.device:
                self.keys, self.values = self.keys.to(key_states.device), self.values.to(key_states.device)
            longer: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
            return longer
        keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        self.keys, self.values = self._seen = keys[:, :, :end], values[:, :, :end]
        return self._seen


def cache_of(lm: Any, past: Prefix, room: Room) -> DynamicCache:
    """A cache that starts with a past, whose slots are the first rows of a room, and writes the next ones there."""
    rows = iter(zip(room.keys, room.values, slot_shapes(lm.config), strict=True))
    cache, recurrent = past.states(), recurrences(lm.config)
    cache.layers += [None] * (unshared(lm.config) - len(cache.layers))
    for layer in range(len(cache.layers)):
        if layer not in recurrent:
            keys, values, (heads, width) = next(rows)
            own = [t[:, :heads, :, :width] for t in (keys, values)]
            cache.layers[layer] = RoomLayer(*own, filled=past.slots)
    return cache
