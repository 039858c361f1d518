"""The scorer of the `learned` anchors, fitted in closed form: minutes on a CPU, any model, no gradient.

For each layer and KV head, a ridge regression from the layer's normed input to how much attention a token gets later:
when the same window is read again (exact recall needs this; KVzip, 2505.23416), and from the text that follows (going
on needs this). Both are taken as logarithms, standardised and added. A cheap stand-in for the second pass is KVzap's
idea (2601.07891).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from beacon_memory.errors import InputError
from beacon_memory.fold.family import slot_shapes
from beacon_memory.fold.fold import embed, look_back, read
from beacon_memory.fold.passes import RawPass
from beacon_memory.fold.prefix import Prefix
from beacon_memory.fold.projections import BeaconProjection
from beacon_memory.models.model import BeaconModel

WINDOW, LATER = 256, 128  # tokens looked back at, and tokens that follow and look back
FLOOR = 1e-6  # an attention below it counts as this
RIDGE = 1e-3  # of the mean squared input


class _Observed(RawPass):
    """A raw pass that keeps the input of every layer's k projection."""

    def __init__(self, past: Prefix, rows: int) -> None:
        super().__init__(past, rows, rotated=True)
        self.inputs: list[Tensor] = []  # by layer: (batch, rows, hidden)

    def project(self, projection: BeaconProjection, hidden: Tensor) -> Tensor:
        if projection.name == "k":
            self.inputs.append(hidden)
        return super().project(projection, hidden)


class _Regression:
    """The sums of one layer's least squares, and its solution."""

    def __init__(self, features: int, heads: int) -> None:
        self.count = 0
        self.inputs = torch.zeros(features + 1, features + 1, dtype=torch.float64)
        self.products = torch.zeros(features + 1, 2 * heads, dtype=torch.float64)
        self.squares = torch.zeros(2 * heads, dtype=torch.float64)

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """More rows.  # (rows, features), (rows, 2 * heads): both targets of every head"""
        rows = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1).float()
        targets = targets.float()
        self.count += len(rows)
        self.inputs += (rows.T @ rows).double().cpu()
        self.products += (rows.T @ targets).double().cpu()
        self.squares += targets.square().sum(dim=0).double().cpu()

    def solve(self) -> tuple[Tensor, Tensor]:
        """Weights and bias of the sum of both standardised targets.  # (heads, features), (heads)"""
        mean = self.products[-1] / self.count
        spread = (self.squares / self.count - mean.square()).clamp(min=1e-12).sqrt()
        # The last row of `inputs` sums the inputs: standardising the targets needs no second look at the data.
        products = (self.products - self.inputs[-1][:, None] * mean) / spread
        ridge = torch.eye(len(self.inputs), dtype=torch.float64)
        ridge *= RIDGE * self.inputs.diagonal()[:-1].mean()
        ridge[-1, -1] = 0
        solved = torch.linalg.solve(self.inputs + ridge, products)
        again, later = solved.chunk(2, dim=1)
        both = (again + later).T
        return both[:, :-1], both[:, -1]


def fit_anchors(
    model: BeaconModel,
    texts: Sequence[str],
    *,
    tokens: int = 33_000,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Give the model's layers scorers fitted on about `tokens` tokens of these texts, and fold by them from now on.

    The base is not touched. `progress` gets the number of tokens after each window. Raises InputError for texts of less
    than one window.
    """
    size = WINDOW + LATER
    streams = [stream for text in texts if len(stream := model.encode(text)) >= size]
    if not streams:
        raise InputError(f"fitting needs texts of at least {size} tokens; none of the {len(texts)} given has them")
    lm: Any = model.lm
    config = lm.config
    sums = [_Regression(config.hidden_size, heads) for heads, _ in slot_shapes(config)]
    draw = random.Random(seed)
    empty = Prefix.empty(lm)
    for _ in range(max(tokens // size, 1)):
        stream = draw.choice(streams)
        start = draw.randrange(len(stream) - size + 1)
        ids = torch.tensor([stream[start : start + size]], device=empty.device)
        with torch.inference_mode():
            embedded = embed(lm, ids)
            window, later = embedded[:, :WINDOW], embedded[:, WINDOW:]
            raw = _Observed(empty, WINDOW)
            read(lm, raw, window, torch.arange(WINDOW))
            looked = zip(look_back(lm, raw, window), look_back(lm, raw, later, mean=True), strict=True)
            for layer, (again, after) in enumerate(looked):
                both = torch.cat([again[0], after[0]]).clamp(min=FLOOR).log().T
                # Sinks are kept whatever they score, and score beyond all others.
                sums[layer].add(raw.inputs[layer][0, model.config.sink :], both[model.config.sink :])
        if progress:
            progress(size)
    for wrapped, layer_sums in zip(model.beacons.layers, sums, strict=True):
        projection = wrapped["k"]
        weight, bias = layer_sums.solve()
        projection.make_scorer(len(weight))
        assert projection.scorer is not None
        with torch.no_grad():
            projection.scorer.weight.copy_(weight)
            projection.scorer.bias.copy_(bias)
        projection.scorer.requires_grad_(False)
    model.adapted(model.config.replace(anchors="learned"))
