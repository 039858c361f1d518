"""Slots as the attention of a model reads them: rotated once, at positions counted from the front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from beacon_memory.state import Segment

BLOCK = 1024  # positions whose angles are computed together


class Rope:
    """The model's rotary embedding at any position, the same bits however many positions are asked for."""

    def __init__(self, rotary: nn.Module) -> None:
        self._rotary = rotary
        # By index, not a list: two threads that make the same block write the same thing.
        self._blocks: dict[int, tuple[Tensor, Tensor]] = {}

    def at(self, start: int, end: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions start..end-1, scaling included.  # (end - start, head_dim) each"""
        first, last = start // BLOCK, -(-end // BLOCK)
        blocks = [self._block(index, like.device) for index in range(first, last)]
        shift = start - first * BLOCK
        cos, sin = (torch.cat([block[i] for block in blocks])[shift : shift + end - start] for i in (0, 1))
        return cos.to(like.device), sin.to(like.device)

    def _block(self, index: int, device: torch.device) -> tuple[Tensor, Tensor]:
        # Whole blocks only: a vectorised cosine differs in the last bit from the same one at a shorter row's end.
        if index not in self._blocks:
            places = torch.arange(index * BLOCK, (index + 1) * BLOCK, device=device)[None]
            cos, sin = self._rotary(torch.empty(0, device=device), position_ids=places)
            self._blocks[index] = (cos[0], sin[0])
        return self._blocks[index]

    def rotate(self, keys: Tensor, *, start: int) -> Tensor:
        """Keys rotated at consecutive positions.  # (..., slots, head_dim)"""
        if keys.shape[-2] == 0:
            return keys
        cos, sin = self.at(start, start + keys.shape[-2], keys)
        wide = keys.float()
        a, b = wide.chunk(2, dim=-1)
        return (wide * cos + torch.cat((-b, a), dim=-1) * sin).to(keys.dtype)


@dataclass(frozen=True)
class Prefix:
    """A batch of equally long pasts: what a window, or a prompt, finds in front of it."""

    rope: Rope
    dtype: torch.dtype
    device: torch.device
    keys: Tensor | None = None  # (layers, batch, kv_heads, slots, head_dim), rotated
    values: Tensor | None = field(default=None)  # (layers, batch, kv_heads, slots, head_dim)

    @classmethod
    def empty(cls, lm: Any) -> Self:
        """The past of a language model that has read nothing."""
        return cls(Rope(lm.model.rotary_emb), lm.dtype, lm.device)

    @property
    def slots(self) -> int:
        """The number of KV entries in front."""
        return 0 if self.keys is None else int(self.keys.shape[-2])

    def append(self, keys: Tensor, values: Tensor) -> Self:
        """This past with more slots behind it; `keys` are before RoPE.  # (layers, batch, kv_heads, slots, head_dim)"""
        rotated = self.rope.rotate(keys.to(self.device, self.dtype), start=self.slots)
        values = values.to(self.device, self.dtype)
        if self.keys is not None and self.values is not None:
            rotated = torch.cat([self.keys, rotated], dim=-2)
            values = torch.cat([self.values, values], dim=-2)
        return type(self)(self.rope, self.dtype, self.device, rotated, values)

    def extend(self, segments: Sequence[Segment]) -> Self:
        """This past with whole segments behind it, batch 1.

        Where a stream begins behind another its first token is left out: it would draw attention away from what
        stands before it (benchmarks/joined.py).
        """
        if not segments:
            return self
        starts = [int(bool(segment.sink) and segment.slots > 1) for segment in segments]
        starts[0] = starts[0] if self.slots else 0
        kept = list(zip(segments, starts, strict=True))
        keys = torch.cat([segment.keys[..., start:, :] for segment, start in kept], dim=-2)[:, None]
        values = torch.cat([segment.values[..., start:, :] for segment, start in kept], dim=-2)[:, None]
        return self.append(keys, values)

    def front(self, slots: int) -> Self:
        """The first slots alone, where they stand."""
        if self.keys is None or self.values is None:
            return self
        first = (self.keys[..., :slots, :], self.values[..., :slots, :])
        return type(self)(self.rope, self.dtype, self.device, *first)

    def repeat(self, times: int) -> Self:
        """Each past of the batch so many times, one after another."""
        if self.keys is None or self.values is None:
            return self
        many = (t.repeat_interleave(times, dim=1) for t in (self.keys, self.values))
        return type(self)(self.rope, self.dtype, self.device, *many)

    def join(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values with the past in front.  # (batch, kv_heads, slots + rows, head_dim)"""
        if self.keys is None or self.values is None:
            return key, value
        past: list[Any] = [t[layer].to(key.device).expand(key.shape[0], -1, -1, -1) for t in (self.keys, self.values)]
        return torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
