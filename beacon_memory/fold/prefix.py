"""Slots as a model's attention reads them: rotated once, at positions counted from the first slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from beacon_memory.fold.family import family_of, recurrences, short_positions
from beacon_memory.fold.place import reads_on
from beacon_memory.fold.recurrence import states_behind

if TYPE_CHECKING:
    from transformers import DynamicCache

    from beacon_memory.state.recurrent import Recurrent
    from beacon_memory.state.state import Segment

BLOCK = 1024  # positions whose angles are computed together


class Rope:
    """The model's rotary embedding at any position, the same bits however many positions are asked for."""

    def __init__(
        self,
        rotary: nn.Module,
        kinds: Sequence[str | None] = ("",),
        *,
        short: int | None = None,
        half_angles: bool = False,
    ) -> None:
        """`kinds`: for each layer what the rotary embedding is asked for, or one kind for all (family.Layer.rope).

        `short`: how many positions are used at most, where longer texts would be rotated otherwise. With `half_angles`
        the embedding gives each angle once.
        """
        self._rotary = rotary
        self._kinds = tuple(kinds) if len(set(kinds)) > 1 else tuple(kinds[:1])
        self._short = short
        self._half_angles = half_angles
        # By kind and index, not a list: two threads that make the same block write the same thing.
        self._blocks: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    @classmethod
    def of(cls, lm: Any) -> Self:
        """A language model's."""
        family = family_of(lm.config)
        kinds = [layer.rope for layer in family.layers(lm.config)]
        rotary = getattr(lm.model, family.rotary)
        return cls(rotary, kinds, short=short_positions(lm.config), half_angles=family.half_angles)

    def at(self, start: int, end: int, like: Tensor, *, layer: int = 0) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions start..end-1 in a layer, scaling included.

        # (end - start, rotated channels) each; a layer without RoPE has none to rotate
        """
        kind = self._kind(layer)
        if kind is None:
            return like.new_empty(end - start, 0), like.new_empty(end - start, 0)
        first, last = start // BLOCK, -(-end // BLOCK)
        blocks = [self._block(kind, index, like.device) for index in range(first, last)]
        shift = start - first * BLOCK
        cos, sin = (torch.cat([block[i] for block in blocks])[shift : shift + end - start] for i in (0, 1))
        return cos.to(like.device), sin.to(like.device)

    def _kind(self, layer: int) -> str | None:
        return self._kinds[layer if len(self._kinds) > 1 else 0]

    def _block(self, kind: str, index: int, device: torch.device) -> tuple[Tensor, Tensor]:
        # Whole blocks only: a vectorised cosine differs in the last bit from the same one at a shorter row's end.
        if (kind, index) not in self._blocks:
            positions = torch.arange(index * BLOCK, (index + 1) * BLOCK, device=device)[None]
            if self._short is not None:
                positions = positions.clamp(max=self._short - 1)
            typed = {"layer_type": kind} if kind else {}
            cos, sin = self._rotary(torch.empty(0, device=device), position_ids=positions, **typed)
            halves = 2 if self._half_angles else 1
            self._blocks[kind, index] = (cos[0].repeat(1, halves), sin[0].repeat(1, halves))
        return self._blocks[kind, index]

    def rotate(self, keys: Tensor, *, start: int) -> Tensor:
        """Keys of all layers rotated at consecutive positions.  # (layers, ..., slots, head_dim)"""
        if (slots := keys.shape[-2]) == 0:
            return keys
        if len(self._kinds) == 1:
            return _turned(keys, *self.at(start, start + slots, keys))
        angles = {kind: self.at(start, start + slots, keys, layer=self._kinds.index(kind)) for kind in self._kinds}
        return torch.stack([_turned(own, *angles[kind]) for own, kind in zip(keys, self._kinds, strict=True)])

    def rotate_at(self, keys: Tensor, positions: Tensor, *, layer: int = 0) -> Tensor:
        """A layer's keys rotated each at its own position.  # (..., slots, head_dim), (..., slots)"""
        cos, sin = self.at(0, int(positions.max()) + 1, keys, layer=layer)
        return _turned(keys, cos[positions], sin[positions])


def _turned(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Keys with their first channels rotated, as many as there are angles."""
    if (rotated := cos.shape[-1]) == 0:
        return keys
    wide = keys[..., :rotated].float()
    a, b = wide.chunk(2, dim=-1)
    turned = (wide * cos + torch.cat((-b, a), dim=-1) * sin).to(keys.dtype)
    return turned if rotated == keys.shape[-1] else torch.cat([turned, keys[..., rotated:]], dim=-1)


def as_wide(slots: Tensor, rows: Tensor) -> Tensor:
    """A layer's slots without the zeros that make all layers alike: as many heads, as wide as its rows.

    # (batch, kv_heads, …, head_dim) both
    """
    return slots[:, : rows.shape[1], ..., : rows.shape[-1]]


@dataclass(eq=False)
class Room:
    """Keys and values of a past, with room behind them: new rows are written once, and nothing that is there moves."""

    keys: Tensor  # (layers, batch, kv_heads, capacity, head_dim), rotated
    values: Tensor  # (layers, batch, kv_heads, capacity, head_dim)
    filled: int = 0  # the slots of the newest past in it

    @property
    def capacity(self) -> int:
        """How many slots it can hold."""
        return int(self.keys.shape[-2])

    @property
    def nbytes(self) -> int:
        """The bytes it takes, filled or not."""
        return int(self.keys.nbytes + self.values.nbytes)

    @classmethod
    def like(cls, keys: Tensor, *, capacity: int, dtype: torch.dtype, device: torch.device) -> Self:
        """An empty one for slots of this shape.  # keys: (layers, batch, kv_heads, …, head_dim)"""
        shape = (*keys.shape[:-2], capacity, keys.shape[-1])
        with torch.inference_mode(False):  # it may be written to outside of inference mode too
            keys, values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        return cls(keys, values)


def entries(segments: Sequence[Segment]) -> int:
    """How many slots these segments are when they are joined."""
    return sum(segment.slots for segment in segments) - sum(starts(segments, behind=False))


def starts(segments: Sequence[Segment], *, behind: bool) -> list[int]:
    """How many of each segment's first slots are left out."""
    found = [int(bool(segment.sink) and segment.slots > 1) for segment in segments]
    return found if behind else [0, *found[1:]][: len(found)]


@dataclass(frozen=True)
class Prefix:
    """A batch of equally long pasts: the KV entries in front of a window or a prompt.

    A value: `append` gives a longer one. A prefix with room is for one thread at a time, because what is read behind it
    is written there.
    """

    rope: Rope
    dtype: torch.dtype
    device: torch.device
    keys: Tensor | None = None  # (layers, batch, kv_heads, slots, head_dim), rotated
    values: Tensor | None = field(default=None)  # (layers, batch, kv_heads, slots, head_dim)
    room: Room | None = field(default=None)  # the buffer whose first rows keys and values are
    ahead: int = 0  # slots to make room for, when room is next made
    recurrences: tuple[int, ...] = ()  # which of the model's layers are recurrent
    recurrent: Recurrent | None = None  # what those have read; None before anything, or without such layers

    @classmethod
    def empty(cls, lm: Any) -> Self:
        """The past of a language model that has read nothing."""
        return cls(Rope.of(lm), lm.dtype, reads_on(lm), recurrences=recurrences(lm.config))

    @property
    def slots(self) -> int:
        """The number of KV entries in front."""
        return 0 if self.keys is None else int(self.keys.shape[-2])

    def reserve(self, rows: int) -> Self:
        """This past with room for so many rows behind it."""
        if self.keys is None or self.values is None:
            return replace(self, ahead=rows)
        if self.room is not None and self.room.filled == self.slots and self.room.capacity >= self.slots + rows:
            return self
        made = Room.like(self.keys, capacity=self.slots + rows, dtype=self.dtype, device=self.device)
        return self._written(made, self.keys, self.values, start=0)

    def states(self) -> DynamicCache:
        """A new cache for the recurrent layers of a pass behind this past."""
        return states_behind(self.recurrent, self.recurrences)

    def read_to(self, recurrent: Recurrent | None) -> Self:
        """The same slots, and what the recurrent layers have read, as a segment keeps it or as a pass leaves it."""
        if recurrent is None or not self.recurrences:
            return replace(self, recurrent=None)
        conv = recurrent.conv if recurrent.conv.ndim == 4 else recurrent.conv[:, None]
        delta = recurrent.delta
        if delta is not None:
            delta = (delta if delta.ndim == 5 else delta[:, None]).to(self.device, torch.float32)
        return replace(self, recurrent=type(recurrent)(conv.to(self.device, self.dtype), delta))

    def append(self, keys: Tensor, values: Tensor) -> Self:
        """This past with more slots behind it; `keys` are before RoPE.  # (layers, batch, kv_heads, slots, head_dim)"""
        start, rows = self.slots, keys.shape[-2]
        rotated = self.rope.rotate(keys.to(self.device, self.dtype), start=start)
        values = values.to(self.device, self.dtype)
        if self.ahead and rows:
            made = Room.like(rotated, capacity=max(rows, self.ahead), dtype=self.dtype, device=self.device)
            return self._written(made, rotated, values, start=0)
        if (room := self._free(rotated, values)) is not None:
            return self._written(room, rotated, values, start=start)
        if self.keys is not None and self.values is not None:
            rotated = torch.cat([self.keys, rotated], dim=-2)
            values = torch.cat([self.values, values], dim=-2)
        return replace(self, keys=rotated, values=values, room=None)

    def extend(self, segments: Sequence[Segment]) -> Self:
        """This past with whole segments behind it, batch 1.

        Where a stream begins behind another, its first token is left out: it would draw attention away from what stands
        before it (benchmarks/quality/joined_documents.py).
        """
        if not segments:
            return self
        left_out = starts(segments, behind=self.slots > 0)
        past = self.reserve(max(self.ahead, sum(segment.slots for segment in segments) - sum(left_out)))
        for segment, start in zip(segments, left_out, strict=True):
            past = past.append(*(t[:, None, :, start:] for t in (segment.keys, segment.values)))
        return past.read_to(segments[-1].recurrent)

    def leading(self, slots: int) -> Self:
        """The first slots alone, where they stand."""
        if self.keys is None or self.values is None:
            return self
        return replace(self, keys=self.keys[..., :slots, :], values=self.values[..., :slots, :], room=None)

    def back(self, slots: int, *, recurrent: Recurrent | None = None) -> Self:
        """The past as it was after its first slots; whatever is read next overwrites the rest. `recurrent` is what its
        recurrent layers had read then.
        """
        leading = self.leading(slots).read_to(recurrent)
        if self.room is None:
            return leading
        self.room.filled = slots
        return replace(leading, room=self.room)

    def seen(self, rows: int, *, recurrent: Recurrent | None = None) -> Self:
        """This past and the rows that were written behind it in its room, up to which `recurrent` has read."""
        assert self.room is not None
        end = self.slots + rows
        self.room.filled = end
        longer = replace(self, keys=self.room.keys[..., :end, :], values=self.room.values[..., :end, :])
        return longer.read_to(recurrent)

    def detached(self) -> Self:
        """The same slots, through which no gradient flows back."""
        if self.keys is None or self.values is None:
            return self
        read = None if self.recurrent is None else self.recurrent.mapped(torch.Tensor.detach)
        return replace(self, keys=self.keys.detach(), values=self.values.detach(), recurrent=read)

    def repeat(self, times: int) -> Self:
        """Each past of the batch repeated, copies side by side."""
        if self.keys is None or self.values is None:
            return self
        keys, values = (t.repeat_interleave(times, dim=1) for t in (self.keys, self.values))
        read = None if self.recurrent is None else self.recurrent.mapped(lambda t: t.repeat_interleave(times, dim=1))
        return replace(self, keys=keys, values=values, room=None, recurrent=read)

    def join(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values behind those of the past.  # (batch, kv_heads, slots + rows, head_dim)"""
        if self.keys is None or self.values is None:
            return key, value
        end = self.slots + key.shape[2]
        if (room := self._free(key, value)) is not None and key.shape[0] == room.keys.shape[1]:
            both = [as_wide(t[layer], key) for t in (room.keys, room.values)]
            for kept, new in zip(both, (key, value), strict=True):
                kept[:, :, self.slots : end] = new
            return both[0][:, :, :end], both[1][:, :, :end]
        own = [as_wide(t[layer], key) for t in (self.keys, self.values)]
        past: list[Any] = [t.to(key.device).expand(key.shape[0], -1, -1, -1) for t in own]
        return torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)

    def _free(self, keys: Tensor, values: Tensor) -> Room | None:
        """The room, if rows like these may be written behind the slots: never where gradients have to flow."""
        room = self.room
        if room is None or room.filled != self.slots or room.capacity < self.slots + keys.shape[-2]:
            return None
        trained = keys.requires_grad or values.requires_grad
        return None if trained or keys.device != room.keys.device else room

    def _written(self, room: Room, keys: Tensor, values: Tensor, *, start: int) -> Self:
        """The past that ends with these slots, written into its room."""
        end = start + keys.shape[-2]
        with torch.no_grad():
            room.keys[..., start:end, :] = keys
            room.values[..., start:end, :] = values
        room.filled = end
        return replace(self, keys=room.keys[..., :end, :], values=room.values[..., :end, :], room=room, ahead=0)
