"""The projections of an attached model: the base's own, called and never looked into, with beacon weights beside them.

A base is called like a Linear; nothing else is asked of it. It may be quantised, packed, carry a LoRA, or have its
weights elsewhere until it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from itertools import accumulate, pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from beacon_memory.fold.place import device_of

PROJECTIONS = ("q", "k", "v")

Attend = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


class Pass(Protocol):
    """One forward over a window: how its rows are projected and what they see."""

    def project(self, projection: BeaconProjection, hidden: Tensor) -> Tensor:
        """The projection of all rows.  # (batch, rows, features)"""

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        """The attention output of all rows, heads last but one.  # (batch, rows, heads, head_dim)

        query: (batch, heads, rows, head_dim); key, value: (batch, kv_heads, rows, head_dim), rotated.
        `attend(query, key, value, mask)` is the base model's own attention; no mask means plain causal, the newest
        rows of `key` being those of `query`.
        """


# Projections are called with the hidden rows alone; their attention module tells them which pass they are in.
_current: ContextVar[Pass | None] = ContextVar("beacon_pass", default=None)
# The rows that a fused projection is called with, and all that it makes of them: each of its parts is cut out of it.
_whole: ContextVar[tuple[Tensor, Tensor] | None] = ContextVar("beacon_whole", default=None)


class Part(nn.Module):
    """The q, k or v share of a fused projection."""

    def __init__(self, fused: nn.Module, start: int, end: int) -> None:
        super().__init__()
        self._fused = (fused,)  # in a tuple: it is no submodule, its weights are named once
        self._share = slice(start, end)

    @property
    def bias(self) -> Tensor | None:
        """Its rows of the fused bias."""
        bias: Tensor | None = getattr(self._fused[0], "bias", None)
        return None if bias is None else bias[self._share]

    def forward(self, hidden: Tensor) -> Tensor:
        known, fused = _whole.get(), self._fused[0]
        if known is not None and known[0] is hidden:
            return known[1][..., self._share]
        if (weight := plain_weight(fused)) is not None:
            return nn.functional.linear(hidden, weight[self._share], self.bias)
        made: Tensor = fused(hidden)[..., self._share]
        return made

    def plain_weight(self) -> Tensor | None:
        """Its rows of the fused weight, where that is a plain one."""
        weight = plain_weight(self._fused[0])
        return None if weight is None else weight[self._share]


def plain_weight(module: nn.Module) -> Tensor | None:
    """The weight of a plain Linear; None for anything else that is called like one, or that does more when called."""
    if isinstance(module, Part):
        return module.plain_weight()
    if type(module) is not nn.Linear or "forward" in vars(module):  # accelerate's hooks take `forward` over
        return None
    hooked = module._forward_hooks or module._forward_pre_hooks
    return module.weight if type(module.weight) is nn.Parameter and not hooked else None


def dense(module: nn.Module, *, features: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The weight and bias that anything called like a Linear has in effect; a bias of zeros where it has none.

    # (out features, in features), (out features)
    """
    with torch.no_grad():
        nothing: Tensor = module(torch.zeros(1, features, device=device, dtype=dtype))[0]
        if (weight := plain_weight(module)) is not None:
            return weight, nothing
        each = torch.eye(features, device=device, dtype=dtype)
        return (module(each) - nothing).T, nothing


class BeaconProjection(nn.Module):
    """A q, k or v projection with its own weights for beacons: none (the base's are used), a low-rank delta, or full.

    A delta may reach to a row's neighbours, so that a slot carries what stands around its anchor.
    """

    def __init__(self, base: nn.Module, *, layer: int, name: str, sizes: tuple[int, int], dtype: torch.dtype) -> None:
        """`sizes`: the features it takes and gives. `dtype`: what the model computes in."""
        super().__init__()
        self.base = base
        self.layer = layer
        self.name = name
        self._sizes = sizes
        self._like: dict[str, Any] = {"device": device_of(base), "dtype": dtype}
        self.full: nn.Linear | None = None
        self.down: nn.Linear | None = None
        self.up: nn.Linear | None = None
        self.scorer: nn.Linear | None = None  # on k only: how much each head wants a token kept

    @property
    def trained(self) -> bool:
        """Whether beacons have weights of their own here."""
        return self.full is not None or self.down is not None

    @property
    def biased(self) -> bool:
        """Whether the base has a bias."""
        return getattr(self.base, "bias", None) is not None

    def make_full(self) -> None:
        """Give beacons a full projection, a copy of the base's (paper, section 3.2)."""
        self.full = self._linear(*self._sizes, bias=self.biased)
        weight, bias = dense(self.base, features=self._sizes[0], **self._like)
        with torch.no_grad():
            self.full.weight.copy_(weight)
            if self.biased:
                self.full.bias.copy_(bias)

    def make_low_rank(self, rank: int, *, reach: int = 0) -> None:
        """Give beacons the base's projection plus a delta of this rank, zero at the start.

        The delta also sees `reach` rows before and behind its own, within the window.
        """
        self.down = self._linear(self._sizes[0], rank * (2 * reach + 1), bias=False)
        self.up = self._linear(rank, self._sizes[1], bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.up.weight)

    def make_scorer(self, heads: int) -> None:
        """Give this layer the scorer of the `learned` anchors, one output per KV head."""
        self.scorer = self._linear(self._sizes[0], heads, bias=True)
        nn.init.zeros_(self.scorer.weight)
        nn.init.zeros_(self.scorer.bias)

    def beacon(self, hidden: Tensor, *, based: Tensor | None = None) -> Tensor:
        """The rows, projected as beacons; `based` is the base's projection of them, if it has been made."""
        projected: Tensor
        if self.full is not None:
            projected = self.full(hidden)
            return projected
        projected = self.base(hidden) if based is None else based
        if self.down is not None and self.up is not None:
            projected = projected + self.up(self._gathered(self.down(hidden)))
        return projected

    def beacon_at(self, hidden: Tensor, anchors: Tensor, *, based: Tensor) -> Tensor:
        """As `beacon`, but only at each head's anchors: no other row or head is computed.

        hidden and based: (batch, rows, …); anchors: (batch, heads, anchors), rows of them.
        # (batch, heads, anchors, head_dim)
        """
        heads = anchors.shape[1]
        if self.full is not None:
            weight = self.full.weight.view(heads, -1, self.full.in_features)
            made: Tensor = rows_at(hidden[:, None].expand(-1, heads, -1, -1), anchors) @ weight.transpose(1, 2)
            return made if self.full.bias is None else made + self.full.bias.view(heads, 1, -1)
        own = rows_at(based.view(*based.shape[:2], heads, -1).transpose(1, 2), anchors)
        if self.down is None or self.up is None:
            return own
        lowered, rank = self.down(hidden), self.up.in_features
        shares = lowered.shape[2] // rank
        lowered = nn.functional.pad(lowered, (0, 0, shares // 2, shares // 2))
        lowered = lowered.view(*lowered.shape[:2], shares, rank)
        share, batch = torch.arange(shares, device=hidden.device), torch.arange(len(hidden), device=hidden.device)
        told: Tensor = lowered[batch[:, None, None, None], anchors[..., None] + share, share].sum(dim=3)
        delta: Tensor = told @ self.up.weight.view(heads, -1, rank).transpose(1, 2)
        return own + delta

    def _gathered(self, lowered: Tensor) -> Tensor:
        """The sum of each row's own share and its neighbours' shares for it.  # (batch, rows, rank)"""
        assert self.up is not None
        rows = lowered.shape[1]
        offsets = lowered.view(len(lowered), rows, -1, self.up.in_features).unbind(2)
        reach = len(offsets) // 2
        padded = [nn.functional.pad(share, (0, 0, reach, reach)) for share in offsets]
        return torch.stack([share[:, at : at + rows] for at, share in enumerate(padded)]).sum(dim=0)

    def forward(self, hidden: Tensor) -> Tensor:
        current = _current.get()
        projected: Tensor = self.base(hidden) if current is None else current.project(self, hidden)
        return projected

    def _linear(self, features_in: int, features_out: int, *, bias: bool) -> nn.Linear:
        return nn.Linear(features_in, features_out, bias=bias, **self._like)


class FusedProjection(nn.Module):
    """A `qkv_proj` whose q, k and v are projections of their own in a pass; without one it is the base's."""

    def __init__(self, base: nn.Module, *, layer: int, features: int, sizes: Sequence[int], dtype: torch.dtype) -> None:
        """`sizes`: the features of q, k and v, in the order they are in `base`, which takes `features`."""
        super().__init__()
        self.base = base
        for name, (start, end) in zip(PROJECTIONS, pairwise(accumulate(sizes, initial=0)), strict=True):
            part, both = Part(base, start, end), (features, end - start)
            self.add_module(name, BeaconProjection(part, layer=layer, name=name, sizes=both, dtype=dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        made: Tensor = self.base(hidden)
        if _current.get() is None:
            return made
        token = _whole.set((hidden, made))
        try:
            return torch.cat([getattr(self, name)(hidden) for name in PROJECTIONS], dim=-1)
        finally:
            _whole.reset(token)


def rows_at(by_head: Tensor, positions: Tensor) -> Tensor:
    """Each head's own rows.  # by_head: (batch, heads, rows, width), positions: (batch, heads, chosen)"""
    return by_head.gather(2, positions[..., None].expand(-1, -1, -1, by_head.shape[3]))
