"""What stands in front of a prompt on the device, kept from turn to turn: slots, and the raw rows read behind them.

A turn adds to it: slots that are new, words that are new. What it stands for is told by digests and ids, which are
compared each time, so it is never stale: where they part, it goes back and is read anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from beacon_memory.fold.prefix import Prefix, Room

if TYPE_CHECKING:
    from beacon_memory.state.state import Segment

SPARE = 512  # rows of room beyond what a turn needs, for the next ones


@dataclass(eq=False)
class ResidentPrefix:
    """One past on the device and what it is the past of. One thread at a time has it."""

    past: Prefix
    segments: list[tuple[str, int]] = field(default_factory=list)  # name, and where its slots end
    ids: list[int] = field(default_factory=list)  # the raw rows behind the segments
    release: Callable[[ResidentPrefix], None] = lambda resident: None  # to be called with it after a turn

    @property
    def nbytes(self) -> int:
        """The bytes it takes on the device."""
        return 0 if self.past.room is None else self.past.room.nbytes

    def stand(self, segments: Sequence[Segment], ids: Sequence[int] = (), *, room: int, raw: bool = True) -> int:
        """Stand for these segments, with room for so many rows behind them; gives how many of `ids` are read already.

        The last of them never is: something has to be read. Without `raw`, none is.
        """
        common = 0
        for (name, _), segment in zip(self.segments, segments, strict=False):
            if name != segment.name:
                break
            common += 1
        shared = 0
        if raw and common == len(self.segments) == len(segments):
            for one, other in zip(self.ids, ids[:-1], strict=False):
                if one != other:
                    break
                shared += 1
        slots = self.segments[common - 1][1] if common else 0
        self.segments, self.ids = self.segments[:common], list(ids[:shared])
        past, new = self.past.back(slots + shared), segments[common:]
        needed = sum(segment.slots for segment in new) + room - shared
        if past.room is None or past.room.capacity < past.slots + needed:
            past = past.reserve(needed + SPARE)
        self.past = past
        for segment in new:
            self.folded(segment)
        return shared

    def folded(self, segment: Segment) -> None:
        """One more segment behind those that are there; raw rows give way to it."""
        self.past = self.past.back(self.past.slots - len(self.ids)).extend([segment])
        self.segments.append((segment.name, self.past.slots))
        self.ids = []

    def roomy(self, lm: Any, rows: int) -> Room:
        """The room that it stands in; a past of nothing has none until a language model tells its shape."""
        if self.past.room is None:
            room = room_for(lm, rows + SPARE, batch=1, like=self.past)
            self.past = replace(self.past, keys=room.keys[..., :0, :], values=room.values[..., :0, :], room=room)
        assert self.past.room is not None
        return self.past.room

    def copy(self, room: Room, *, row: int, start: int, end: int) -> None:
        """Write behind what is here the rows that a batch has read, from one of its columns to another."""
        assert self.past.room is not None
        own, there = self.past.room, slice(self.past.slots, self.past.slots + end - start)
        own.keys[:, 0, :, there] = room.keys[:, row, :, start:end]
        own.values[:, 0, :, there] = room.values[:, row, :, start:end]

    def read(self, ids: Sequence[int]) -> None:
        """These ids' rows have been written behind the ones that are there."""
        self.past = self.past.seen(len(ids))
        self.ids += ids


class RoomLayer(DynamicLayer):  # type: ignore[misc]
    """A layer of transformers' cache with room: a new row is written behind the others, which are not copied."""

    def __init__(self, keys: Tensor, values: Tensor, *, filled: int) -> None:
        """keys, values: (batch, kv_heads, capacity, head_dim)."""
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._room = keys, values
        self.keys, self.values = self._seen = keys[:, :, :filled], values[:, :, :filled]

    @property
    def written(self) -> int:
        """How many rows stand in the room."""
        return int(self._seen[0].shape[-2])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = self._room
        start = 0 if self.keys is None else int(self.keys.shape[-2])
        end = start + key_states.shape[-2]
        # What transformers has put in place of our view, or on another device, it also lengthens.
        if self.keys is not self._seen[0] or end > keys.shape[-2] or key_states.device != keys.device:
            if self.keys is not None and key_states.device != self.keys.device:
                self.keys, self.values = self.keys.to(key_states.device), self.values.to(key_states.device)
            longer: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
            return longer
        keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        self.keys, self.values = self._seen = keys[:, :, :end], values[:, :, :end]
        return self._seen


def room_for(lm: Any, rows: int, *, batch: int, like: Prefix) -> Room:
    """Room for so many rows of a language model, where `like` stands."""
    config = lm.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = torch.empty(config.num_hidden_layers, batch, config.num_key_value_heads, 0, width)
    return Room.like(shape, capacity=rows, dtype=like.dtype, device=like.device)


def cache_of(room: Room, *, filled: int) -> DynamicCache:
    """A cache whose first rows are those of the room, and which writes the next ones there."""
    cache = DynamicCache()
    cache.layers = [RoomLayer(*layer, filled=filled) for layer in zip(room.keys, room.values, strict=True)]
    return cache


def fill(
    room: Room,
    row: int,
    empty: Prefix,
    segments: Sequence[Segment],
    *,
    resident: ResidentPrefix | None,
    first: int,
    end: int,
) -> None:
    """Write a past into a row of a batch, from one column to another; the columns before it become zeros."""
    for all_rows in (room.keys, room.values):
        all_rows[:, row, :, :first] = 0  # masked, but a mask does not hide what is not a number
    own = Room(room.keys[:, row : row + 1, :, first:end], room.values[:, row : row + 1, :, first:end])
    if resident is not None and resident.past.keys is not None and resident.past.values is not None:
        own.keys.copy_(resident.past.keys)
        own.values.copy_(resident.past.values)
    else:
        nothing = replace(empty, keys=own.keys[..., :0, :], values=own.values[..., :0, :], room=own)
        nothing.extend(segments)
