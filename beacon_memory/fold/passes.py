"""The passes over a window, a class for each: which rows there are, what they see, and what is kept of them.

A pass is given to a stock forward as the keyword `beacon_pass`, and `attention.py` picks it up. Keys and values are
recorded as they leave the projections, before RoPE: nothing has to be un-rotated, so no precision is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from beacon_memory.fold.attention import heads, heads_last
from beacon_memory.fold.layout import causal
from beacon_memory.fold.prefix import Prefix
from beacon_memory.fold.projections import Attend, BeaconProjection
from beacon_memory.fold.recurrence import Read, states_of

if TYPE_CHECKING:
    from beacon_memory.state.recurrent import Recurrent

QUERY_BLOCK = 128  # rows of a look-back pass scored at once
LEADING = 16  # slots of the past that the repeat pass sees


class Enough(Exception):
    """A pass has all it was made for: ends a forward whose last states are not wanted."""


class Sight:
    """What the rows of a pass see in each layer, by how far the layer sees: a mask for each window, made once."""

    def __init__(self, made: Callable[[int | None], Tensor], past: Prefix, *, plain: bool) -> None:
        """`made`: the mask of a window. `plain`: without a past and a window, what rows see is plain causal."""
        self._made = made
        self._past = past
        self._plain = plain and not past.slots
        self._masks: dict[int | None, Tensor | None] = {}

    @classmethod
    def of_rows(cls, past: Prefix, rows: int) -> Self:
        """That of consecutive rows behind a past."""
        positions = torch.arange(rows)

        def made(window: int | None) -> Tensor:
            return causal(positions, positions, past=past.slots, dtype=past.dtype, window=window)

        return cls(made, past, plain=True)

    def of(self, module: Any) -> Tensor | None:
        """The mask in a layer, None where it is plain causal."""
        window = module.beacon_layer.window
        if window not in self._masks:
            plain = self._plain and window is None
            self._masks[window] = None if plain else self._made(window).to(self._past.device)
        return self._masks[window]


class Following:
    """A pass whose rows follow its past, one behind another: recurrent layers read on where that past ends."""

    past: Prefix

    @cached_property
    def states(self) -> DynamicCache:
        """What recurrent layers have read, of the past and of the rows so far."""
        return self.past.states()

    @property
    def recurrent(self) -> Recurrent | None:
        """The same as a value; None without such layers."""
        return states_of(self.states, self.past.recurrences)

    def recur(self, hidden: Tensor, read: Read) -> Tensor:
        """What a recurrent layer makes of the rows.  # (batch, rows, hidden)"""
        return read(hidden, self.states)


class RawPass(Following):
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
        self._sight = Sight.of_rows(past, rows)

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
        layer = int(module.beacon_index)
        if not module.beacon_layer.shared:
            self.keys[layer] = heads_last(self.keys[layer], module)
            self.values[layer] = heads(self.values[layer], module)
            if self.rotated is not None:
                self.rotated[layer] = (key, value)
            if layer == self._last:
                raise Enough
        return attend(query, *self.past.join(layer, key, value), self._sight.of(module))


class TailPass(Following):
    """Raw rows behind a past, plain causal; nothing of them is kept."""

    def __init__(self, past: Prefix, rows: int) -> None:
        self.past = past
        self._sight = Sight.of_rows(past, rows)

    def project(self, projection: BeaconProjection, hidden: Tensor) -> Tensor:
        projected: Tensor = projection.base(hidden)
        return projected

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        return attend(query, *self.past.join(int(module.beacon_index), key, value), self._sight.of(module))


class SeekPass(TailPass):
    """Rows read behind slots, to see where some KV heads of the newest of them look among the slots."""

    def __init__(
        self,
        past: Prefix,
        rows: int,
        heads: Sequence[tuple[int, int]],
        *,
        slots: int | None = None,
        looking: int | None = None,
        keep: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        """`heads`: each a layer, and a KV head of it.

        The first `slots` of the past are looked at by the newest `looking` of the rows, as if nothing stood in between.
        `keep` takes the keys and values of a layer's rows and gives those of all rows there; without it the pass ends
        in the last layer that is looked at.
        """
        super().__init__(past, rows)
        self._heads = heads
        self._slots = past.slots if slots is None else slots
        self._looking = rows if looking is None else looking
        self._keep = keep
        self._columns = [slice(0, self._slots), slice(past.slots + rows - self._looking, past.slots + rows)]
        positions = torch.arange(rows)

        def made(window: int | None) -> Tensor:
            looking = positions[rows - self._looking :]
            return self._looked_at(causal(looking, positions, past=past.slots, dtype=past.dtype, window=window), 3)

        self._look = Sight(made, past, plain=False)
        self._seen: dict[tuple[int, int], Tensor] = {}

    @property
    def seen(self) -> Tensor:
        """How much attention each row that looks pays to each slot, the mean of the queries of a head's group.

        # (heads, batch, rows that look, slots), float32
        """
        return torch.stack([self._seen[head].to(self.past.device) for head in self._heads])

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        layer = int(module.beacon_index)
        if module.beacon_layer.shared:
            return super().attend(module, query, key, value, attend)
        keys, values = self._keep(layer, key, value) if self._keep else self.past.join(layer, key, value)
        if own := sorted({head for at, head in self._heads if at == layer}):
            self._record(module, query[:, :, query.shape[2] - self._looking :], self._looked_at(keys, 2), own)
        if self._keep is None and layer == max(at for at, _ in self._heads):
            raise Enough
        return attend(query, keys, values, self._sight.of(module))

    def _looked_at(self, columns: Tensor, dim: int) -> Tensor:
        return torch.cat([columns.narrow(dim, one.start, one.stop - one.start) for one in self._columns], dim=dim)

    def _record(self, module: Any, query: Tensor, keys: Tensor, own: Sequence[int]) -> None:
        mask = self._look.of(module)
        assert mask is not None
        group = query.shape[1] // keys.shape[1]
        for head in own:
            of_group = slice(head * group, (head + 1) * group)
            logits = query[:, of_group] * module.scaling @ keys[:, head : head + 1].transpose(2, 3)
            logits = capped(logits, module) + mask.to(query.device)
            paid = shares(logits, module, of_group)[..., : self._slots]
            self._seen[int(module.beacon_index), head] = paid.mean(dim=1)


class LookBackPass(Following):
    """Tokens read behind a window, to see how much they look back at each of its tokens, by layer and head.

    A token's score is the highest attention that any query of its KV head's group pays it (KVzip, 2505.23416), or with
    `mean` the mean over queries and group. Of the past it sees only the first slots, the sinks that attention rests on,
    so the cost does not grow with the session.
    """

    def __init__(self, first: RawPass, rows: int, *, mean: bool = False) -> None:
        self.first = first
        self.mean = mean
        self.past = first.past.leading(LEADING).read_to(first.recurrent)
        self.scores: dict[int, Tensor] = {}  # layer -> (batch, kv_heads, rows of the window)
        self._sight = Sight(self._behind, first.past, plain=False)
        self._rows = rows

    def _behind(self, window: int | None) -> Tensor:
        """The mask of the last columns: the repeated tokens; where a layer has a window, all of them."""
        positions = torch.arange(self._rows)
        if window is None:
            return causal(positions, positions, past=0, dtype=self.past.dtype)[0, 0]
        # Slots of the past stand where they stand for the repeated tokens too: only the first of them are looked at.
        assert self.first.rotated is not None
        tokens, slots = self.first.rotated[0][0].shape[2], self.first.past.slots
        whole = causal(positions, positions, past=slots + tokens, dtype=self.past.dtype, window=window)[0, 0]
        return torch.cat([whole[:, : self.past.slots], whole[:, slots:]], dim=1)

    def project(self, projection: BeaconProjection, hidden: Tensor) -> Tensor:
        projected: Tensor = projection.base(hidden)
        return projected

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        layer = int(module.beacon_index)
        assert self.first.rotated is not None
        first_key, first_value = self.first.rotated[layer]
        keys, values = self.past.join(layer, torch.cat([first_key, key], dim=2), torch.cat([first_value, value], dim=2))
        batch, heads, rows, width = query.shape
        kv_heads, leading = keys.shape[1], self.past.slots
        before = leading + first_key.shape[2]
        scores = query.new_zeros(batch, kv_heads, first_key.shape[2], dtype=torch.float32)
        outputs = []
        mask = self._sight.of(module)
        assert mask is not None
        for start in range(0, rows, QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, rows)
            # The group's queries of a KV head side by side; keys after the block's last query are seen by none.
            grouped = (query[:, :, start:end] * module.scaling).reshape(batch, kv_heads, -1, width)
            seen = before + end
            weights = (grouped @ keys[:, :, :seen].transpose(2, 3)).view(batch, kv_heads, -1, end - start, seen)
            weights = capped(weights, module)
            masked = mask.shape[1] - rows + end  # columns of the mask, up to the block's last query
            weights[..., seen - masked :] += mask[start:end, :masked]
            weights = shares(weights, module)
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
        layer = int(module.beacon_index)
        if not module.beacon_layer.shared:
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

        def made(window: int | None) -> Tensor:
            of_rows = [causal(r, positions, past=past.slots, dtype=past.dtype, window=window) for r in anchors]
            return torch.cat(of_rows)

        self._sight = Sight.of_rows(past, raw)
        self._beacon_sight = Sight(made, past, plain=False)

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        layer = self.record(module, value)
        raw_key, raw_value = key[:, :, : self.raw], value[:, :, : self.raw]
        positions = self.anchors[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3])
        seen_key = raw_key.scatter(2, positions, key[:, :, self.raw :])
        seen_value = raw_value.scatter(2, positions, value[:, :, self.raw :])
        raw = attend(query[:, :, : self.raw], *self.past.join(layer, raw_key, raw_value), self._sight.of(module))
        keys, values = self.past.join(layer, seen_key, seen_value)
        beacons = scaled_attention(query[:, :, self.raw :], keys, values, self._beacon_sight.of(module), module)
        return torch.cat([raw, beacons], dim=1)


class InterleavePass(BeaconPass):
    """The paper's order: a beacon after each unit; every row sees all rows before it, beacons included."""

    def __init__(self, past: Prefix, raw: int, positions: Tensor, *, last: int | None) -> None:
        super().__init__(past, raw, last=last)

        def made(window: int | None) -> Tensor:
            return causal(positions, positions, past=past.slots, dtype=past.dtype, window=window)

        self._sight = Sight(made, past, plain=False)

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        layer = self.record(module, value)
        return scaled_attention(query, *self.past.join(layer, key, value), self._sight.of(module), module)


def scaled_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, module: Any) -> Tensor:
    """Attention under an arbitrary mask, for rows that no causal kernel fits.  # (batch, rows, heads, head_dim)"""
    assert mask is not None
    groups = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    if module.beacon_layer.softcap is None and not module.beacon_layer.sinks:
        attended = nn.functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=float(module.scaling)
        )
    else:
        logits = capped(query @ keys.transpose(2, 3) * module.scaling, module) + mask
        attended = shares(logits, module).to(values.dtype) @ values
    return attended.transpose(1, 2)


def capped(logits: Tensor, module: Any) -> Tensor:
    """Attention logits as a model with a soft limit has them."""
    cap = module.beacon_layer.softcap
    return logits if cap is None else torch.tanh(logits / cap) * cap


def shares(logits: Tensor, module: Any, heads: slice = slice(None)) -> Tensor:
    """The attention that masked logits give to each key; a head's sink may take some of it.

    logits: (batch, heads, rows, keys) or (batch, kv_heads, group, rows, keys).  # the same, float32
    """
    if not module.beacon_layer.sinks:
        return logits.softmax(dim=-1, dtype=torch.float32)
    sinks = module.sinks[heads].view(1, *logits.shape[1:-2], 1, 1).expand(*logits.shape[:-1], 1)
    return torch.cat([logits, sinks.to(logits.dtype)], dim=-1).softmax(dim=-1, dtype=torch.float32)[..., :-1]
