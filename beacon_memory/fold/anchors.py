"""Which tokens become slots.

`last`         the last token of each unit
`surprise`     the tokens the model predicted worst
`reconstruct`  per layer and head, those attended most when the window is read again (the idea of KVzip, 2505.23416)
`learned`      per layer and head, what a linear scorer says of the layer's input (the idea of KVzap, 2601.07891)
`spread`       as `learned`, but a token costs more once other heads have kept it: else heads keep the same tokens
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from beacon_memory.config import slot_count
from beacon_memory.fold.layout import evenly, unit_ends

LOGIT_ROWS = 128
SPREAD = 0.3  # standard deviations of a head's scores that an even share of heads takes from a token they kept
REMEMBERED = 3  # layers until what a head has kept counts a third


def pick(
    shares: Sequence[tuple[str, float]], scores: Mapping[str, Tensor], *, tokens: int, ratio: int, device: torch.device
) -> Tensor:
    """The anchors of a window: indices of its tokens, in order.  # (batch, heads, slots)

    scores: for each scored rule, (batch, heads, tokens); the highest are kept, batch and heads may be 1. `last` takes
    its share first, then each rule takes the best tokens that are left. So a mix never takes a token twice.
    """
    slots = slot_count(tokens, ratio)
    shape = [max([1, *(score.shape[i] for score in scores.values())]) for i in (0, 1)]
    taken = torch.zeros(*shape, tokens, dtype=torch.bool, device=device)
    found: list[Tensor] = []
    ordered = sorted(zip(shares, _quotas(shares, slots), strict=True), key=lambda item: item[0][0] != "last")
    for (rule, _), quota in ordered:
        if rule == "last":
            positions = unit_ends(tokens, ratio) if quota == slots else evenly(tokens, quota)
            best = positions.to(device).expand(*shape, -1)
        else:
            left = scores[rule].expand(*shape, tokens).masked_fill(taken, float("-inf"))
            # A stable sort: equal scores must give equal anchors on every machine.
            best = left.argsort(dim=-1, descending=True, stable=True)[..., :quota]
        taken.scatter_(-1, best, True)
        found.append(best)
    return torch.cat(found, dim=-1).sort(dim=-1).values  # nothing here waits for a GPU


class Spread:
    """What has been kept of a window so far: by the layers below, and by the heads before in the same layer.

    A token that was kept as often as chance would keep it costs SPREAD; one kept less often costs less. Newer layers
    count more.
    """

    def __init__(self) -> None:
        self._costs: list[Tensor] = []  # of the heads that picked last
        self._kept: Tensor | None = None  # (batch, tokens)
        self._heads = 0.0

    def pick(
        self,
        shares: Sequence[tuple[str, float]],
        scores: Mapping[str, Tensor],
        *,
        tokens: int,
        ratio: int,
        device: torch.device,
    ) -> Tensor:
        """The anchors of the next layer, head by head, as `pick` gives them.  # (batch, heads, slots)"""
        own = standard(scores["spread"].detach())
        kept = own.new_zeros(len(own), tokens) if self._kept is None else self._kept.to(own.device)
        forget = math.exp(-1 / (REMEMBERED * own.shape[1]))
        found, costs = [], []
        for head in range(own.shape[1]):
            of_head = {rule: s[:, head : head + 1] if s.shape[1] > 1 else s for rule, s in scores.items()}
            costs.append(SPREAD * ratio * kept / max(self._heads, 1))
            of_head["spread"] = (own[:, head] - costs[-1])[:, None]
            positions = pick(shares, of_head, tokens=tokens, ratio=ratio, device=device)[:, 0]
            found.append(positions)
            kept = (kept * forget).scatter_add_(1, positions, torch.ones_like(positions, dtype=kept.dtype))
            self._heads = self._heads * forget + 1
        self._kept, self._costs = kept, costs
        return torch.stack(found, dim=1)

    @property
    def costs(self) -> Tensor:
        """What the tokens cost the heads that picked last.  # (batch, heads, tokens)"""
        return torch.stack(self._costs, dim=1)


def standard(scores: Tensor) -> Tensor:
    """Scores in standard deviations from the mean of their head.  # (…, tokens)"""
    own = scores.float()
    return (own - own.mean(dim=-1, keepdim=True)) / own.std(dim=-1, keepdim=True, correction=0).clamp(min=1e-6)


def surprise(head: Callable[[Tensor], Tensor], hidden: Tensor, ids: Tensor) -> Tensor:
    """How badly each token was predicted, in nats; the first, which nothing predicts, counts as the worst.

    head: hidden states to logits; hidden: (batch, tokens, hidden); ids: (batch, tokens).  # (batch, 1, tokens)
    """
    losses = [torch.full_like(ids[:, :1], torch.finfo(torch.float32).max, dtype=torch.float32)]
    # Few rows at a time: a vocabulary's logits are the largest tensor of the whole pass.
    for start in range(0, ids.shape[1] - 1, LOGIT_ROWS):
        end = min(start + LOGIT_ROWS, ids.shape[1] - 1)
        logits = head(hidden[:, start:end]).float()
        told = logits.gather(-1, ids[:, start + 1 : end + 1, None])[..., 0]
        losses.append(logits.logsumexp(dim=-1) - told)
    return torch.cat(losses, dim=1)[:, None]


def shared(scores: Tensor) -> Tensor:
    """One score per token from scores per layer and head, by rank in each head so that none drowns the others.

    scores: (layers, batch, heads, tokens).  # (batch, 1, tokens)
    """
    ranks = scores.argsort(dim=-1, stable=True).argsort(dim=-1)
    return ranks.float().mean(dim=(0, 2))[:, None]


def _quotas(shares: Sequence[tuple[str, float]], slots: int) -> list[int]:
    """Whole numbers of slots by share, summing to `slots`; the first rules get what rounding leaves."""
    quotas = [int(slots * share) for _, share in shares]
    for i in range(slots - sum(quotas)):
        quotas[i % len(quotas)] += 1
    return quotas
