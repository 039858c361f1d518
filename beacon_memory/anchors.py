"""Which tokens become slots.

`last`         the last token of each unit
`surprise`     the tokens the model predicted worst
`reconstruct`  per layer and head, those attended most when the window is read again (the idea of KVzip, 2505.23416)
`learned`      per layer and head, what a linear scorer says of the layer's input (the idea of KVzap, 2601.07891)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from beacon_memory.layout import evenly, slot_count, unit_ends

LOGIT_ROWS = 128


def pick(
    shares: Sequence[tuple[str, float]], scores: Mapping[str, Tensor], *, tokens: int, ratio: int, device: torch.device
) -> Tensor:
    """The anchors of a window: indices of its tokens, in order.  # (batch, heads, slots)

    scores: for each scored rule, (batch, heads, tokens), higher is kept; batch and heads may be 1. `last` takes its
    share first, then each rule the best tokens not taken yet, so that a mix never takes a token twice.
    """
    slots = slot_count(tokens, ratio)
    shape = [max([1, *(score.shape[i] for score in scores.values())]) for i in (0, 1)]
    taken = torch.zeros(*shape, tokens, dtype=torch.bool, device=device)
    ordered = sorted(zip(shares, _quotas(shares, slots), strict=True), key=lambda item: item[0][0] != "last")
    for (rule, _), quota in ordered:
        if rule == "last":
            places = unit_ends(tokens, ratio) if quota == slots else evenly(tokens, quota)
            taken[..., places.to(device)] = True
        else:
            left = scores[rule].expand(*shape, tokens).masked_fill(taken, float("-inf"))
            # A stable sort: equal scores must give equal anchors on every machine.
            best = left.argsort(dim=-1, descending=True, stable=True)[..., :quota]
            taken.scatter_(-1, best, True)
    return taken.nonzero()[:, -1].view(*shape, slots)


def surprise(head: Callable[[Tensor], Tensor], hidden: Tensor, ids: Tensor) -> Tensor:
    """How badly each token was predicted, in nats; the first, which nothing predicted, counts as worst.

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
    """One score per token from scores per layer and head, each head counted by rank so that none drowns the others.

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
