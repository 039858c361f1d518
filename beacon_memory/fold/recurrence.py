"""Recurrent layers in a pass: each reads behind the state that the pass brings, and leaves the state behind its rows.

The stock module does the reading. It takes its state from a transformers cache, and writes the new one there; a pass
has a cache of its own for that, and attention layers never see it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from inspect import signature
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import LinearAttentionLayer

from beacon_memory.errors import UnsupportedModel
from beacon_memory.fold.family import family_of, recurrences
from beacon_memory.state.recurrent import Recurrent

CACHES = ("cache", "cache_params", "past_key_values")  # what releases of transformers call the argument
Read = Callable[[Tensor, DynamicCache], Tensor]  # the stock module: rows in, rows out; the cache moves on


# Which pass a layer is in: not every release hands all of a layer's arguments to its recurrent module.
_reading: ContextVar[Any] = ContextVar("beacon_reading", default=None)


def enter(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before a layer with a recurrent module: note the pass that it is in."""
    _reading.set(kwargs.get("beacon_pass"))


def leave(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Behind it: it is in none."""
    _reading.set(None)


class Recurrence(nn.Module):
    """A recurrent module in a layer's place; without a pass it is the base's, bit for bit."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if (rows := _reading.get()) is None:
            return self.base(*args, **kwargs)
        if not hasattr(rows, "recur"):
            raise UnsupportedModel(
                f"{type(rows).__name__} reads tokens that do not follow each other, and this model has recurrent "
                f"layers, which read all of them in one order: training of anchors needs another model"
            )
        (hidden,) = args or (kwargs["hidden_states"],)
        cache = next(name for name in CACHES if name in kwargs)

        def read(own: Tensor, states: DynamicCache) -> Tensor:
            states.layers[self.base.layer_idx].move(own.device)
            made: Tensor = self.base(hidden_states=own, **{cache: states})
            return made

        return rows.recur(hidden, read)


class StateLayer(LinearAttentionLayer):  # type: ignore[misc]
    """A layer of transformers' cache that replaces its state instead of writing over it: the old one stays a value."""

    def __init__(self, conv: Tensor | None = None, delta: Tensor | None = None) -> None:
        """conv: (batch, channels, columns), delta: (batch, heads, key width, value width); none: nothing was read."""
        super().__init__()
        if conv is None:
            return
        # A single token is written over what the convolution saw; a copy of that is small.
        super().update_conv_state(conv)
        if delta is not None:
            self.update_recurrent_state(delta)

    def move(self, device: torch.device) -> None:
        """Be on this device, that of a layer's rows."""
        for states in (self.conv_states, self.recurrent_states):
            if states[0] is not None and states[0].device != device:
                states[0] = states[0].to(device)

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        self.is_recurrent_states_initialized[state_idx] = True
        self.recurrent_states[state_idx] = recurrent_states
        return recurrent_states


def states_behind(past: Recurrent | None, layers: Sequence[int]) -> DynamicCache:
    """A cache for the recurrent layers alone, by their places in the model; what they have read so far is `past`."""
    cache = DynamicCache()
    cache.layers = [StateLayer() for _ in range(max(layers, default=-1) + 1)]
    for at, layer in enumerate(layers if past is not None else ()):
        assert past is not None
        cache.layers[layer] = StateLayer(past.conv[at], None if past.delta is None else past.delta[at])
    return cache


def states_of(cache: DynamicCache, layers: Sequence[int]) -> Recurrent | None:
    """What the recurrent layers have read, as their cache has it; None before anything was, or without such layers."""
    held = [cache.layers[layer] for layer in layers]
    if not held or held[0].conv_states[0] is None:
        return None
    first = held[0].conv_states[0].device
    conv = torch.stack([layer.conv_states[0].to(first) for layer in held])
    if held[0].recurrent_states[0] is None:
        return Recurrent(conv)
    return Recurrent(conv, torch.stack([layer.recurrent_states[0].to(first) for layer in held]))


def numbers_of(config: Any) -> int:
    """How many numbers the state of a model's recurrent layers has; no weights are read, and none are made."""
    layers = recurrences(config)
    first = copy.deepcopy(config)
    first.num_hidden_layers, first.layer_types = layers[0] + 1, config.layer_types[: layers[0] + 1]
    with torch.device("meta"):
        decoder = AutoModelForCausalLM.from_config(first).model
        module = getattr(decoder.layers[layers[0]], family_of(config).recurrent)
        named, cache = signature(module.forward).parameters, states_behind(None, layers[:1])
        module(torch.zeros(1, 2, config.hidden_size), **{next(name for name in CACHES if name in named): cache})
    state = states_of(cache, layers[:1])
    assert state is not None
    return len(layers) * sum(prod(shape) for shape in state.shapes.values())
