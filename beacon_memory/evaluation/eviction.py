"""Training-free eviction, the strongest query-agnostic rule of one pass: Expected Attention (arXiv 2510.00636).

An entry's score is the attention that later queries are expected to pay it. The queries of a text are taken as Gaussian
and rotated to the next 512 positions on average; then exp(q k / sqrt(d)) has a mean in closed form, which is weighed by
the norm of the value. The rule is `ExpectedAttentionPress` of NVIDIA's kvpress, written here because that package asks
for transformers below 5.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from beacon_memory.fold.attention import norm_of
from beacon_memory.fold.fold import embed, read, stacked
from beacon_memory.fold.layout import evenly
from beacon_memory.fold.passes import RawPass
from beacon_memory.fold.prefix import Prefix
from beacon_memory.fold.projections import Attend, BeaconProjection
from beacon_memory.models.model import BeaconModel
from beacon_memory.state.recurrent import Recurrent

FUTURE = 512  # positions that queries to come are expected at
OUTLIERS = 4  # first tokens of a stream: sinks, of which neither query nor key says anything of the others

# scores (layers, batch, kv_heads, tokens) and a number -> indices (layers, batch, kv_heads, number), in order
Rule = Callable[[Tensor, int], Tensor]


def most_expected(scores: Tensor, count: int) -> Tensor:
    """The entries with the highest scores of each layer and head."""
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(dim=-1).values


def evenly_kept(scores: Tensor, count: int) -> Tensor:
    """Every n-th entry, whatever it scores."""
    return evenly(scores.shape[-1], count).to(scores.device).expand(*scores.shape[:-1], count)


class ExpectedAttentionPass(RawPass):
    """A raw pass that also records how much attention each token may expect from later ones."""

    def __init__(self, past: Prefix, rows: int) -> None:
        super().__init__(past, rows)
        self.rows = rows
        self.expected: dict[int, Tensor] = {}  # layer -> (batch, kv_heads, rows)
        self._queries: dict[int, Tensor] = {}

    def project(self, projection: BeaconProjection, hidden: Tensor) -> Tensor:
        projected = super().project(projection, hidden)
        if projection.name == "q":
            self._queries[projection.layer] = projected
        return projected

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        layer = int(module.beacon_index)
        if module.beacon_layer.shared:
            return super().attend(module, query, key, value, attend)
        queries = self._queries.pop(layer)
        norm = module.beacon_layer.norm
        queries = norm_of(module, "q")(queries) if norm == "row" else queries
        queries = queries.view(*queries.shape[:2], -1, key.shape[-1])
        queries = (norm_of(module, "q")(queries) if norm == "head" else queries).transpose(1, 2).float()
        turn = self._turn(key, layer=layer)
        self.expected[layer] = self._score(queries, key.float(), value.float(), turn, scale=float(module.scaling))
        return super().attend(module, query, key, value, attend)

    def _score(self, queries: Tensor, keys: Tensor, values: Tensor, turn: Tensor, *, scale: float) -> Tensor:
        skipped = 0 if self.past.slots or self.rows <= 2 * OUTLIERS else OUTLIERS
        queries = queries[:, :, skipped:]
        mean = queries.mean(dim=2)
        centred = queries - mean[:, :, None]
        spread = centred.transpose(2, 3) @ centred / queries.shape[2]
        mean, spread = mean @ turn.T, turn @ spread @ turn.T
        batch, _, width = mean.shape
        kv_heads, rows = keys.shape[1:3]
        mean, spread = (
            mean.view(batch, kv_heads, -1, width),
            spread.view(batch, kv_heads, -1, width, width),
        )
        grouped = keys[:, :, None]
        logits = (grouped @ mean[..., None])[..., 0] * scale
        logits = logits + ((grouped @ spread) * grouped).sum(dim=-1) * scale**2 / 2
        logits[..., :skipped] = float("-inf")
        expected = logits.softmax(dim=-1).mean(dim=2).view(batch, kv_heads, rows)
        scored: Tensor = expected * values.norm(dim=-1)
        return scored

    def _turn(self, like: Tensor, *, layer: int) -> Tensor:
        """The mean rotation to the positions that follow.  # (head_dim, head_dim)"""
        start = self.past.slots + self.rows
        cos, sin = (t.float().mean(dim=0) for t in self.past.rope.at(start, start + FUTURE, like, layer=layer))
        half = len(cos) // 2  # channels beyond the rotated ones stay as they are
        turn = torch.eye(like.shape[-1], device=like.device)
        turn[: len(cos), : len(cos)] = torch.diag(cos)
        index = torch.arange(half, device=like.device)
        turn[index, index + half] = -sin[:half]
        turn[index + half, index] = sin[half:]
        return turn


@dataclass(frozen=True)
class Kept:
    """One raw pass over some tokens: their entries, and what attention each may expect."""

    keys: Tensor  # (layers, batch, kv_heads, tokens, head_dim), before RoPE
    values: Tensor
    scores: Tensor  # (layers, batch, kv_heads, tokens)
    recurrent: Recurrent | None = None  # what recurrent layers have read, of all tokens whatever is kept

    @classmethod
    def read(cls, model: BeaconModel, past: Prefix, ids: tuple[int, ...]) -> Self:
        """Read tokens behind a past."""
        rows = torch.tensor([ids], device=model.empty.device)
        with torch.inference_mode():
            expecting = ExpectedAttentionPass(past, len(ids))
            read(model.lm, expecting, embed(model.lm, rows), torch.arange(len(ids)) + past.slots)
        scores = {layer: expected[..., None] for layer, expected in expecting.expected.items()}
        return cls(stacked(expecting.keys), stacked(expecting.values), stacked(scores)[..., 0], expecting.recurrent)

    def prefix(self, past: Prefix) -> Prefix:
        """All of it behind a past."""
        return past.append(self.keys, self.values).read_to(self.recurrent)

    def keep(self, past: Prefix, slots: int, rule: Rule, *, sink: int, tail: int) -> Prefix:
        """The first `sink` entries, the last `tail`, and what a rule picks between them: `slots` without the tail."""
        tokens = self.keys.shape[3]
        shape = (*self.scores.shape[:3], -1)
        places = torch.arange(tokens, device=self.scores.device)
        picked = rule(self.scores[..., sink : tokens - tail], slots - sink) + sink
        chosen = torch.cat([places[:sink].expand(shape), picked, places[tokens - tail :].expand(shape)], dim=-1)
        where = chosen[..., None].expand(*chosen.shape, self.keys.shape[-1])
        return past.append(self.keys.gather(3, where), self.values.gather(3, where)).read_to(self.recurrent)


def evict(
    model: BeaconModel, past: Prefix, ids: tuple[int, ...], slots: int, rule: Rule, *, sink: int, tail: int
) -> Prefix:
    """The same for more tokens than the model has positions: block by block, each behind what was kept before."""
    block = model.positions // 4
    between = len(ids) - sink - tail
    done = 0
    for start in range(0, len(ids), block):
        rows = ids[start : start + block]
        first = min(max(sink - start, 0), len(rows))
        last = min(max(tail + start + len(rows) - len(ids), 0), len(rows))
        before, done = done, done + len(rows) - first - last
        quota = (slots - sink) * done // between - (slots - sink) * before // between
        past = Kept.read(model, past, rows).keep(past, quota + first, rule, sink=first, tail=last)
    return past
