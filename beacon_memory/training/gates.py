"""Anchors that learn: a way to choose tokens through which the loss reaches the scorer.

Keeping a token or not is a hard choice and has no gradient. So here a tail reads *all* tokens of a window as slots: the
kept ones as they are, the others at their positions with LEAK nats less attention. In the backward pass the choice is
smooth (straight-through, 1308.3432): if a tail would have read a token that was not kept, that token's score rises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from beacon_memory.config import BeaconConfig, slot_count
from beacon_memory.errors import ConfigError
from beacon_memory.fold.anchors import Spread, pick, standard
from beacon_memory.fold.attention import Beacons, heads, heads_last
from beacon_memory.fold.family import recurrences
from beacon_memory.fold.fold import Folded, scored, stacked
from beacon_memory.fold.layout import causal
from beacon_memory.fold.passes import RawPass
from beacon_memory.fold.prefix import Prefix
from beacon_memory.fold.projections import Attend, BeaconProjection

LEAK = 4.0  # nats: a token that is not kept has e^-4 of its attention, enough to be missed by
WIDTH = 0.5  # standard deviations of a head's scores over which the smooth choice turns


@dataclass(frozen=True)
class Gated:
    """A window with all of its tokens, and the penalty on those that a fold would not keep."""

    past: Prefix
    slots: int  # of the past, and of this window were it folded
    keys: list[Tensor]  # by layer: (batch, kv_heads, sink + tokens, head_dim), rotated
    values: list[Tensor]  # by layer: (batch, kv_heads, sink + tokens, head_dim)
    bias: list[Tensor]  # by layer: (batch, kv_heads, sink + tokens), added to what attention makes of a key


def gate(
    beacons: Beacons, past: Prefix, ids: Tensor, *, ratio: int, sink: int, config: BeaconConfig, overlap: int = 0
) -> tuple[Folded, Gated]:
    """A window behind `past` as `fold` reads it, all of its tokens kept.

    ids: (batch, overlap + sink + tokens). Raises ConfigError for anchors that a scorer does not choose alone.
    """
    rule = config.anchors
    if rule not in ("learned", "spread") or config.layout != "select":
        raise ConfigError(f"only anchors 'learned' and 'spread' of layout 'select' can be trained, not {rule!r}")
    described = [beacons.attention(layer).beacon_layer for layer in range(len(beacons.layers))]
    if recurrences(beacons.lm.config) or any(layer.window or layer.softcap or layer.sinks for layer in described):
        raise ConfigError(
            "anchors are trained only where every layer attends fully, without a soft limit and without sinks: "
            "beacon-memory fit-anchors fits them for any model"
        )
    raw, hidden, scores = scored(beacons, past, ids, config=config)
    lead, tokens, spread = overlap + sink, ids.shape[1] - overlap - sink, Spread()
    choose = spread.pick if rule == "spread" else pick
    keys, values, bias = [], [], []
    for layer in range(len(beacons.layers)):
        own = standard(scores[rule][layer][..., lead:])
        anchors = choose(config.shares, {rule: own}, tokens=tokens, ratio=ratio, device=ids.device)
        kept = torch.zeros_like(own, dtype=torch.bool).scatter(-1, anchors, True)
        chosen = _choice(own - spread.costs if rule == "spread" else own, kept)
        bias.append(nn.functional.pad(chosen, (sink, 0)))
        # One that is not kept stands where the next that is kept stands.
        positions = kept.long().cumsum(-1) - kept.long() + sink
        sinks = torch.arange(sink, device=positions.device).expand(*positions.shape[:2], -1)
        positions = torch.cat([sinks, positions], dim=-1) + past.slots
        own_keys = _all_rows(beacons, raw, layer, "k", sink=lead)[:, :, overlap:]
        keys.append(past.rope.rotate_at(own_keys, positions, layer=layer))
        values.append(_all_rows(beacons, raw, layer, "v", sink=lead)[:, :, overlap:])
    slots = past.slots + sink + slot_count(tokens, ratio)
    whole = Folded(stacked(raw.keys), stacked(raw.values), hidden[:, overlap:], None if overlap else raw)
    return whole, Gated(past, slots, keys, values, bias)


def _choice(scores: Tensor, kept: Tensor) -> Tensor:
    """0 for what is kept and -LEAK for the rest; in the backward pass, the score's distance from the last one kept."""
    last, next_best = scores.masked_fill(~kept, torch.inf).amin(-1), scores.masked_fill(kept, -torch.inf).amax(-1)
    edge = ((last + next_best) / 2).detach().nan_to_num(neginf=0)[..., None]
    soft = nn.functional.logsigmoid((scores - edge) / WIDTH)
    hard = torch.zeros_like(soft).masked_fill(~kept, -LEAK)
    return soft + (hard - soft).detach()


def _all_rows(beacons: Beacons, raw: RawPass, layer: int, name: str, *, sink: int) -> Tensor:
    """A layer's keys or values, those of all tokens as slots.  # (batch, kv_heads, sink + tokens, head_dim)"""
    projection = beacons.layers[layer][name]
    rows = raw.keys[layer] if name == "k" else raw.values[layer]
    if not projection.trained:
        return rows
    made = projection.beacon(raw.hidden[layer], based=raw.based[layer, name])
    by_head = (heads_last if name == "k" else heads)(made, beacons.attention(layer))
    return torch.cat([rows[:, :, :sink], by_head[:, :, sink:]], dim=2)


class GatedPass:
    """Raw rows behind gated windows, `count` texts behind each; nothing of them is kept."""

    def __init__(self, gated: Gated, rows: int, *, count: int) -> None:
        self._gated = gated
        self.past = gated.past.repeat(count)
        self._count = count
        positions = torch.arange(rows)
        self._own = causal(positions, positions, past=0, dtype=self.past.dtype).to(self.past.device)

    def project(self, projection: BeaconProjection, hidden: Tensor) -> Tensor:
        projected: Tensor = projection.base(hidden)
        return projected

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        layer, gated = int(module.beacon_index), self._gated
        window = (t[layer].repeat_interleave(self._count, dim=0) for t in (gated.keys, gated.values, gated.bias))
        keys, values, bias = window
        keys, values = self.past.join(layer, torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2))
        bias = nn.functional.pad(bias, (self.past.slots, 0)).repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        rows = query.shape[2]
        mask = [bias[:, :, None].expand(-1, -1, rows, -1), self._own.expand(*bias.shape[:2], -1, -1)]
        attended = nn.functional.scaled_dot_product_attention(
            query,
            keys,
            values,
            attn_mask=torch.cat(mask, dim=-1).to(query.dtype),
            scale=module.scaling,
            enable_gqa=True,
        )
        return attended.transpose(1, 2)
