"""The plain floor: the same FLOPs as bare matrix products, the same bytes as a bare copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from beacon_memory import BeaconModel
from beacon_memory.config import slot_count
from beacon_memory.fold.family import slot_shape

# The layers a token goes through once it is known what it attends to.
AFTER = (("self_attn", "o_proj"), ("mlp", "gate_proj"), ("mlp", "up_proj"), ("mlp", "down_proj"))


def windows(model: BeaconModel, tokens: int, *, ratio: int) -> list[tuple[int, int]]:
    """The windows of a document of so many tokens: the tokens of each, and the slots in front of it."""
    config, found, past = model.config, [], 0
    while tokens:
        sink = 0 if found else min(config.sink, tokens)
        rows = min(tokens, sink + config.document_window)
        found.append((rows, past))
        tokens, past = tokens - rows, past + sink + slot_count(rows - sink, ratio)
    return found


def slots(model: BeaconModel, tokens: int, *, ratio: int) -> int:
    """The slots that it leaves."""
    sink = min(model.config.sink, tokens)
    return sink + sum(
        slot_count(rows - (0 if past else sink), ratio) for rows, past in windows(model, tokens, ratio=ratio)
    )


def fold(model: BeaconModel, tokens: int, *, ratio: int) -> tuple[Callable[[], None], float]:
    """Every matrix product that the fold is, with its own weights, and nothing else; and its number of FLOPs.

    Counted are the projections and the feed-forward of each token, its beacon weights, and the attention that causality
    leaves: half of the window, all of the slots in front; of the last layer, keys and values. Not counted: norms, RoPE,
    softmax, choosing and gathering.
    """
    *layers, last = [_weights(layer) for layer in model.lm.model.layers]
    last = last[: -len(AFTER)]
    heads = model.lm.config.num_attention_heads
    _, kv_heads, width = slot_shape(model.lm.config)
    overlap = model.config.overlap
    found = [(rows + (overlap if past else 0), past) for rows, past in windows(model, tokens, ratio=ratio)]
    most = max(rows for rows, _ in found)
    features = {weight.shape[1] for weights in layers for weight in weights}
    inputs = {size: torch.randn(most, size) for size in features}
    outputs = {weight.shape[0]: torch.empty(most, weight.shape[0]) for weights in layers for weight in weights}
    group = heads // kv_heads
    longest = max(past + rows // 2 for rows, past in found)
    queries, keys = torch.randn(kv_heads, group * most, width), torch.randn(kv_heads, longest, width)
    scores = torch.empty(kv_heads * group * most * longest)
    mixed = torch.empty_like(queries)
    flops = 0.0
    for rows, past in found:
        flops += 2 * rows * sum(weight.numel() for weights in (*layers, last) for weight in weights)
        flops += 4 * len(layers) * heads * rows * (past + rows // 2) * width

    def run() -> None:
        for rows, past in found:
            seen = past + rows // 2
            paid = scores[: kv_heads * group * rows * seen].view(kv_heads, group * rows, seen)
            for weights in (*layers, last):
                for weight in weights:
                    torch.mm(inputs[weight.shape[1]][:rows], weight.t(), out=outputs[weight.shape[0]][:rows])
                if weights is last:
                    break
                torch.bmm(queries[:, : group * rows], keys[:, :seen].transpose(1, 2), out=paid)
                torch.bmm(paid, keys[:, :seen], out=mixed[:, : group * rows])

    def bare() -> None:
        with torch.inference_mode():
            run()

    return bare, flops


def _weights(layer: Any) -> list[Tensor]:
    """The weights that each token of a window goes through.  # (out, in) each"""
    found: list[Tensor] = []
    for name in ("q_proj", "k_proj", "v_proj"):
        projection = getattr(layer.self_attn, name)
        found.append(projection.base.weight)
        for part in ("down", "scorer"):
            if (linear := getattr(projection, part)) is not None:
                found.append(linear.weight)
    found += [getattr(layer, part).get_submodule(name).weight for part, name in AFTER]
    return [weight.detach() for weight in found]


def copy(size: int) -> Callable[[], None]:
    """A bare copy of so many bytes."""
    source = torch.zeros(size, dtype=torch.uint8)
    target = torch.empty_like(source)

    def bare() -> None:
        target.copy_(source)

    return bare
