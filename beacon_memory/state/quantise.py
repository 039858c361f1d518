"""Slots in 8 or 4 bits: keys per channel, values per token, in groups that share a scale.

Each channel of the keys has a range of its own, the same for all tokens; channels of the values do not (KIVI, arXiv
2402.02750). So a group of keys is one channel over neighbouring slots, and a group of values is one slot over
neighbouring channels. Sinks stay in bfloat16: they are few, and unlike the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

BITS = {"int8": 8, "int4": 4}
SCALES = (torch.float32, torch.float16, torch.bfloat16)  # of scales and lows: float32 in format version 1
Form = tuple[tuple[int, ...], torch.dtype]

GROUP = 64  # the most slots (keys) or channels (values) that share a scale
WIDEST = 30_000  # the lows and spreads of numbers below it fit float16


@dataclass(frozen=True, eq=False)
class Packed:
    """Keys and values as they are stored, with the scales and lows that restore them."""

    dtype: str  # "int8" or "int4"
    sink_keys: Tensor  # (layers, kv_heads, sink, head_dim), bfloat16
    sink_values: Tensor  # (layers, kv_heads, sink, head_dim), bfloat16
    keys: Tensor  # (layers, kv_heads, slots - sink, head_dim), uint8; int4: two channels a byte
    key_scales: Tensor  # (layers, kv_heads, groups of slots, head_dim), 16 bits (format version 1: float32)
    key_lows: Tensor  # as key_scales
    values: Tensor  # as keys
    value_scales: Tensor  # (layers, kv_heads, slots - sink, groups of channels), as key_scales
    value_lows: Tensor  # as value_scales

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "dtype"}

    @property
    def nbytes(self) -> int:
        """The bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def slots(self) -> int:
        """The number of KV entries, counting sinks."""
        return int(self.sink_keys.shape[2] + self.keys.shape[2])

    def unpacked_keys(self) -> Tensor:
        """The keys in bfloat16, the same bits each time.  # (layers, kv_heads, slots, head_dim)"""
        codes, scales, lows = (
            t.transpose(2, 3) for t in (_wide(self.keys, self.dtype), self.key_scales, self.key_lows)
        )
        keys = _decoded(codes, scales, lows).transpose(2, 3)
        return torch.cat([self.sink_keys, keys.to(torch.bfloat16)], dim=2)

    def unpacked_values(self) -> Tensor:
        """The values in bfloat16, the same bits each time.  # (layers, kv_heads, slots, head_dim)"""
        values = _decoded(_wide(self.values, self.dtype), self.value_scales, self.value_lows)
        return torch.cat([self.sink_values, values.to(torch.bfloat16)], dim=2)


def pack(keys: Tensor, values: Tensor, *, sink: int, dtype: str) -> Packed:
    """Keys (before RoPE) and values in 8 or 4 bits.  # (layers, kv_heads, slots, head_dim) each"""
    keys, values = keys.detach().cpu().float(), values.detach().cpu().float()
    sinks = [t[:, :, :sink].to(torch.bfloat16).contiguous() for t in (keys, values)]
    scales = _scales(keys[:, :, sink:], values[:, :, sink:])
    by_channel, key_scales, key_lows = _codes(keys[:, :, sink:].transpose(2, 3), bits=BITS[dtype], scales=scales)
    by_token, value_scales, value_lows = _codes(values[:, :, sink:], bits=BITS[dtype], scales=scales)
    return Packed(
        dtype,
        sinks[0],
        sinks[1],
        _narrow(by_channel.transpose(2, 3), dtype),
        key_scales.transpose(2, 3).contiguous(),
        key_lows.transpose(2, 3).contiguous(),
        _narrow(by_token, dtype),
        value_scales,
        value_lows,
    )


def shapes(
    *, layers: int, heads: int, slots: int, sink: int, width: int, dtype: str, scales: torch.dtype
) -> dict[str, Form]:
    """The shape and dtype of every tensor of a packed segment whose scales and lows have the dtype `scales`."""
    rest = slots - sink
    codes = ((layers, heads, rest, width // 2 if dtype == "int4" else width), torch.uint8)
    key_groups = ((layers, heads, _groups(rest), width), scales)
    value_groups = ((layers, heads, rest, _groups(width)), scales)
    sinks = ((layers, heads, sink, width), torch.bfloat16)
    return {
        "sink_keys": sinks,
        "sink_values": sinks,
        "keys": codes,
        "key_scales": key_groups,
        "key_lows": key_groups,
        "values": codes,
        "value_scales": value_groups,
        "value_lows": value_groups,
    }


def _scales(*numbers: Tensor) -> torch.dtype:
    """The dtype of scales and lows: float16, which is finer, where the numbers fit its range; else bfloat16."""
    widest = max((float(t.abs().max()) for t in numbers if t.numel()), default=0.0)
    return torch.float16 if widest < WIDEST else torch.bfloat16


def _codes(rows: Tensor, *, bits: int, scales: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and lows of groups along the last dimension."""
    count = rows.shape[-1]
    groups = _groups(count)
    if not groups:
        empty = rows.new_zeros(*rows.shape[:-1], 0, dtype=scales)
        return rows.to(torch.uint8), empty, empty
    # The last group is padded with its last number, which changes neither its lowest nor its highest.
    last = rows[..., -1:].expand(*rows.shape[:-1], groups * GROUP - count)
    grouped = torch.cat([rows, last], dim=-1).reshape(*rows.shape[:-1], groups, GROUP)
    # Rounded outwards, so that every number of the group still lies between low and low + steps * scale.
    lows = _rounded(grouped.amin(-1), scales, down=True)
    steps = _rounded((grouped.amax(-1) - lows.float()) / (2**bits - 1), scales, down=False)
    steps = torch.where(steps > 0, steps, torch.ones_like(steps))
    codes = ((grouped - lows.float()[..., None]) / steps.float()[..., None]).round()
    codes = codes.clamp(0, 2**bits - 1).to(torch.uint8)
    return codes.flatten(-2)[..., :count], steps.contiguous(), lows.contiguous()


def _rounded(numbers: Tensor, dtype: torch.dtype, *, down: bool) -> Tensor:
    """The nearest numbers of a dtype that are not above the given ones (`down`), or not below them."""
    near = numbers.to(dtype)
    wrong = near.float() > numbers if down else near.float() < numbers
    beyond = torch.full_like(near, float("-inf") if down else float("inf"))
    return torch.where(wrong, torch.nextafter(near, beyond), near)


def _decoded(codes: Tensor, scales: Tensor, lows: Tensor) -> Tensor:
    count = codes.shape[-1]
    # Multiplied and added in two steps: fused, they could give other bits on another machine.
    wide = [t.float().repeat_interleave(GROUP, dim=-1)[..., :count] for t in (scales, lows)]
    return codes.float().mul(wide[0]).add(wide[1])


def _narrow(codes: Tensor, dtype: str) -> Tensor:
    codes = codes.contiguous()
    return codes if dtype == "int8" else codes[..., 0::2] | (codes[..., 1::2] << 4)


def _wide(codes: Tensor, dtype: str) -> Tensor:
    return codes if dtype == "int8" else torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)


def _groups(count: int) -> int:
    return -(-count // GROUP)
