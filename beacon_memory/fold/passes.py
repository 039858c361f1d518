"""The passes over a window, a class for each: which rows there are, what they see, and what is kept of them.

A pass is given to a stock forward as the keyword `beacon_pass`, and `attention.py` picks it up. Keys and values are
recorded as they leave the projections, before RoPE: nothing has to be un-rotated, so no precision is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from beacon_memory.fold.attention import Attend, BeaconProjection, heads, heads_last
from beacon_memory.fold.layout import causal
from beacon_memory.fold.prefix import Prefix

QUERY_BLOCK = 128  # rows of a look-back pass scored at once
LEADING = 16  # slots of the past that the repeat pass sees


class Enough(Exception):
    """A pass has all it was made for: ends a forward whose last states are not wanted."""


class RawPass:
    """The window's tokens as they are, plain causal behind the past; their keys and values by layer.

    Where beacons have their own weights, each layer's input and the base's projection of it are kept too: beacons are
    projected from these once their tokens are chosen.
    """

    def __init__(self, past: Prefix, rows: int, *, rotated: bool = False, last: int | None = None) -> None:
        """`last`: the layer of which only keys and values are computed."""
        self.past = past
        self._last = last
        self.keys: dict[int, Tensor] = {}  # layer -> (batch, kv_heads, rows, head_dim), before RoPE
        self.values: dict[int, Tensor] = {}
        self.hidden: dict[int, Tensor] = {}  # layer -> (batch, rows, hidden)
        self.based: dict[tuple[int, str], Tensor] = {}  # layer, "k" or "v" -> (batch, rows, features)
        self.scores: dict[int, Tensor] = {}  # layer -> (batch, kv_heads, rows), where a scorer is attached
        self.rotated: dict[int, tuple[Tensor, Tensor]] | None = {} if rotated else None
        positions = torch.arange(rows)
        self._mask = (
            causal(positions, positions, past=past.slots, dtype=past.dtype).to(past.device) if past.slots else None
        )

    def project(self, projection: BeaconProjection, hidden: Tensor) -> Tensor:
        projected: Tensor = projection.base(hidden)
        if projection.name != "q":
            kept = self.keys if projection.name == "k" else self.values
            kept[projection.layer] = projected
            if projection.trained:
                self.hidden[projection.layer] = hidden
                self.based[projection.layer, projection.name] = projected
        if projection.scorer is not None:
            self.scores[projection.layer] = projection.scorer(hidden).transpose(1, 2)
        return projected

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        layer = int(module.layer_idx)
        self.keys[layer] = heads_last(self.keys[layer], module)
        self.values[layer] = heads(self.values[layer], module)
        if self.rotated is not None:
            self.rotated[layer] = (key, value)
        if layer == self._last:
            raise Enough
        return attend(query, *self.past.join(layer, key, value), self._mask)


class TailPass:
    """Raw rows behind a past, plain causal; nothing of them is kept."""

    def __init__(self, past: Prefix, rows: int) -> None:
        self.past = past
        positions = torch.arange(rows)
        self._mask = (
            causal(positions, positions, past=past.slots, dtype=past.dtype).to(past.device) if past.slots else None
        )

    def project(self, projection: BeaconProjection, hidden: Tensor) -> Tensor:
        projected: Tensor = projection.base(hidden)
        return projected

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        return attend(query, *self.past.join(int(module.layer_idx), key, value), self._mask)


class SeekPass(TailPass):
    """A question read behind slots, to see where some KV heads look: up to the layer of the last of them."""

    def __init__(self, past: Prefix, rows: int, heads: Sequence[tuple[int, int]], *, slots: int | None = None) -> None:
        """`heads`: each a layer, and a KV head of it. The past has slots, of which only the first `slots` are seen."""
        super().__init__(past, rows)
        self._heads = heads
        self._slots = past.slots if slots is None else slots
        assert self._mask is not None
        self._mask[..., self._slots : past.slots] = float("-inf")
        self._seen: dict[tuple[int, int], Tensor] = {}

    @property
    def seen(self) -> Tensor:
        """How much attention each row pays to each slot, the mean of the queries of a head's group.

        # (heads, batch, rows, slots), float32
        """
        return torch.stack([self._seen[head].to(self.past.device) for head in self._heads])

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        layer = int(module.layer_idx)
        keys, values = self.past.join(layer, key, value)
        group = query.shape[1] // keys.shape[1]
        for own in sorted({head for at, head in self._heads if at == layer}):
            queries = query[:, own * group : (own + 1) * group] * module.scaling
            weights = queries @ keys[:, own : own + 1].transpose(2, 3)
            weights = weights if self._mask is None else weights + self._mask.to(query.device)
            weights = weights.softmax(dim=-1, dtype=torch.float32)[..., : self._slots]
            self._seen[layer, own] = weights.mean(dim=1)
        if layer == max(at for at, _ in self._heads):
            raise Enough
        return attend(query, keys, values, self._mask)


class LookBackPass:
    """Tokens read behind a window, to see how much they look back at each of its tokens, by layer and head.

    A token's score is the highest attention that any query of its KV head's group pays it (KVzip, 2505.23416), or with
    `mean` the mean over queries and group. Of the past it sees only the first slots, the sinks that attention rests on,
    so the cost does not grow with the session.
    """

    def __init__(self, first: RawPass, rows: int, *, mean: bool = False) -> None:
        self.first = first
        self.mean = mean
        self.past = first.past.leading(LEADING)
        self.scores: dict[int, Tensor] = {}  # layer -> (batch, kv_heads, rows of the window)
        positions = torch.arange(rows)
        self._mask = causal(positions, positions, past=0, dtype=first.past.dtype).to(first.past.device)[0, 0]

    def project(self, projection: BeaconProjection, hidden: Tensor) -> Tensor:
        projected: Tensor = projection.base(hidden)
        return projected

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        layer = int(module.layer_idx)
        assert self.first.rotated is not None
        first_key, first_value = self.first.rotated[layer]
        keys, values = self.past.join(layer, torch.cat([first_key, key], dim=2), torch.cat([first_value, value], dim=2))
        batch, heads, rows, width = query.shape
        kv_heads, leading = keys.shape[1], self.past.slots
        before = leading + first_key.shape[2]
        scores = query.new_zeros(batch, kv_heads, first_key.shape[2], dtype=torch.float32)
        outputs = []
        for start in range(0, rows, QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, rows)
            # The group's queries of a KV head side by side; keys after the block's last query are seen by none.
            grouped = (query[:, :, start:end] * module.scaling).reshape(batch, kv_heads, -1, width)
            seen = before + end
            weights = (grouped @ keys[:, :, :seen].transpose(2, 3)).view(batch, kv_heads, -1, end - start, seen)
            weights[..., before:] += self._mask[start:end, :end]
            weights = weights.softmax(dim=-1, dtype=torch.float32)
            paid = weights[..., leading:before]
            if self.mean:
                scores += paid.mean(dim=2).sum(dim=2) / rows
            else:
                scores = torch.maximum(scores, paid.amax(dim=(2, 3)))
            mixed = weights.view(batch, kv_heads, -1, seen).to(values.dtype) @ values[:, :, :seen]
            outputs.append(mixed.view(batch, heads, end - start, width))
        self.scores[layer] = scores
        if len(self.scores) == len(self.first.rotated):
            raise Enough
        return torch.cat(outputs, dim=2).transpose(1, 2)


class BeaconPass:
    """Rows `[raw | beacons]`: base projections on the first block, beacon projections on the second."""

    def __init__(self, past: Prefix, raw: int, *, last: int | None) -> None:
        """`last`: as for RawPass."""
        self.past = past
        self.raw = raw
        self._last = last
        self.keys: dict[int, Tensor] = {}  # layer -> (batch, kv_heads, rows, head_dim), before RoPE
        self.values: dict[int, Tensor] = {}

    def project(self, projection: BeaconProjection, hidden: Tensor) -> Tensor:
        raw, beacons = hidden[:, : self.raw], hidden[:, self.raw :]
        projected = torch.cat([projection.base(raw), projection.beacon(beacons)], dim=1)
        if projection.name == "k":
            self.keys[projection.layer] = projected
        return projected

    def record(self, module: Any, value: Tensor) -> int:
        """Keep the layer's keys and values; gives the layer's index if its attention is to be computed."""
        layer = int(module.layer_idx)
        self.keys[layer] = heads_last(self.keys[layer], module)
        self.values[layer] = value
        if layer == self._last:
            raise Enough
        return layer


class ShadowPass(BeaconPass):
    """Beacons at their anchors' positions, each seeing what its anchor sees, with the earlier beacons and itself in
    place of their anchors: an untrained beacon is its anchor. Raw tokens do not see beacons.
    """

    def __init__(self, past: Prefix, raw: int, anchors: Tensor, *, last: int | None) -> None:
        super().__init__(past, raw, last=last)
        self.anchors = anchors  # (batch, beacons): rows of the raw block
        positions = torch.arange(raw, device=anchors.device)
        slots, dtype = past.slots, past.dtype
        self._raw_mask = causal(positions, positions, past=slots, dtype=dtype).to(past.device) if slots else None
        masks = [causal(row, positions, past=slots, dtype=dtype) for row in anchors]
        self._beacon_mask = torch.cat(masks).to(past.device)

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        layer = self.record(module, value)
        raw_key, raw_value = key[:, :, : self.raw], value[:, :, : self.raw]
        positions = self.anchors[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3])
        seen_key = raw_key.scatter(2, positions, key[:, :, self.raw :])
        seen_value = raw_value.scatter(2, positions, value[:, :, self.raw :])
        raw = attend(query[:, :, : self.raw], *self.past.join(layer, raw_key, raw_value), self._raw_mask)
        keys, values = self.past.join(layer, seen_key, seen_value)
        beacons = scaled_attention(query[:, :, self.raw :], keys, values, self._beacon_mask, module)
        return torch.cat([raw, beacons], dim=1)


class InterleavePass(BeaconPass):
    """The paper's order: a beacon after each unit; every row sees all rows before it, beacons included."""

    def __init__(self, past: Prefix, raw: int, positions: Tensor, *, last: int | None) -> None:
        super().__init__(past, raw, last=last)
        self._mask = causal(positions, positions, past=past.slots, dtype=past.dtype).to(past.device)

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        layer = self.record(module, value)
        return scaled_attention(query, *self.past.join(layer, key, value), self._mask, module)


def scaled_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, module: Any) -> Tensor:
    """Attention under an arbitrary mask, for rows that no causal kernel fits.  # (batch, rows, heads, head_dim)"""
    groups = query.shape[1] // keys.shape[1]
    attended = nn.functional.scaled_dot_product_attention(
        query,
        keys.repeat_interleave(groups, dim=1),
        values.repeat_interleave(groups, dim=1),
        attn_mask=mask,
        scale=float(module.scaling),
    )
    return attended.transpose(1, 2)
