"""Beacons on a transformers model: wrapped projections, and an attention function that a pass can take over.

Nothing is forked. `q_proj`, `k_proj` and `v_proj` of each layer are wrapped, or the `qkv_proj` that stands for them,
and the attention modules look up their attention function under the name "beacon". A forward without a `beacon_pass`
does exactly what the model did before. `detach` puts everything back.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from beacon_memory.errors import ModelError
from beacon_memory.fold.family import Layer, family_of, recurrences, sharing, slot_shapes
from beacon_memory.fold.projections import PROJECTIONS, BeaconProjection, FusedProjection, Pass, _current
from beacon_memory.fold.recurrence import Recurrence, enter, leave

NAME = "beacon"


class Beacons:
    """The beacon parts of one attached model: projections by layer, and the embeddings that beacon rows start from."""

    def __init__(self, lm: Any) -> None:
        """Attach to `lm`, a causal LM of a supported family. Importing registers nothing; this does.

        Raises ModelError when `lm` has beacons already: two sets would get in each other's way.
        """
        AttentionInterface.register(NAME, _attention)
        self.lm = lm
        family = family_of(lm.config)
        self._described = family.layers(lm.config)
        self._sharing = sharing(lm.config)
        if any(hasattr(attention, "beacon_base_config") for attention in self._attentions()):
            raise ModelError("this model carries beacons already: detach them first, or share the BeaconModel")
        self.layers: list[dict[str, BeaconProjection]] = []
        self.embedding: nn.Parameter | None = None  # (hidden,): every interleaved beacon starts from it
        self.offset: nn.Parameter | None = None  # (hidden,): added to a shadow beacon's anchor embedding
        self._hooks: list[Any] = []
        self._replaced: list[tuple[Any, str, nn.Module | None]] = []  # a module, its attribute, what it held
        for index, layer in enumerate(self._described):
            self.layers.append(self._wrapped(self.attention(index), layer, index=index))
            self._attach(self.attention(index), layer, index=index)
        places = {layer.index: index for index, layer in enumerate(self._described)}
        for reader, source in self._sharing.items():
            index = places[source]
            attention = lm.model.layers[reader].self_attn
            self._attach(attention, replace(self._described[index], shared=True), index=index)
        for index in recurrences(lm.config):
            owner = lm.model.layers[index]
            self._replace(owner, family.recurrent, Recurrence(getattr(owner, family.recurrent)))
            self._hooks.append(owner.register_forward_pre_hook(enter, with_kwargs=True))
            self._hooks.append(owner.register_forward_hook(leave, always_call=True))

    def _attach(self, attention: Any, layer: Layer, *, index: int) -> None:
        """Have a pass take an attention over; `index` is the layer of slots that it reads."""
        attention.beacon_layer, attention.beacon_index = layer, index
        attention.beacon_base_config = attention.config
        # A copy: masks and generate() go on reading the model's own config, and see the base's attention.
        attention.config = copy.copy(attention.config)
        attention.config._attn_implementation = NAME
        self._hooks.append(attention.register_forward_pre_hook(_enter, with_kwargs=True))
        self._hooks.append(attention.register_forward_hook(_leave, always_call=True))

    def detach(self) -> None:
        """Give the base model back as it was, bit for bit. A second time does nothing."""
        for hook in self._hooks:
            hook.remove()
        for attention in self._attentions() if self.layers else []:
            attention.config = attention.beacon_base_config
            del attention.beacon_base_config, attention.beacon_layer, attention.beacon_index
        for owner, name, module in self._replaced:
            if module is None:
                delattr(owner, name)  # it was no module's place
            setattr(owner, name, module)
        self.layers, self._replaced = [], []

    def parameters(self) -> dict[str, nn.Parameter]:
        """Every beacon weight by its name in an adapter file."""
        found = {
            f"layers.{index}.{name}.{key.removeprefix('base.')}": parameter
            for index, wrapped in enumerate(self.layers)
            for name, projection in wrapped.items()
            for key, parameter in projection.named_parameters()
            if not key.startswith("base.")
        }
        for name in ("embedding", "offset"):
            if (parameter := getattr(self, name)) is not None:
                found[name] = parameter
        return found

    def attention(self, layer: int) -> Any:
        """The attention module of a layer of slots."""
        return self.lm.model.layers[self._described[layer].index].self_attn

    @property
    def last(self) -> int | None:
        """The last layer of slots, where nothing that is kept is made behind it."""
        index = self._described[-1].index
        return None if any(other > index for other in recurrences(self.lm.config)) else len(self._described) - 1

    def _wrapped(self, attention: Any, layer: Layer, *, index: int) -> dict[str, BeaconProjection]:
        """The layer's projections by name, now in their bases' places."""
        config = self.lm.config
        kv_heads, width = slot_shapes(config)[index]
        sizes = [config.num_attention_heads * width * (1 + layer.gated), kv_heads * width, kv_heads * width]
        how: dict[str, Any] = {"layer": index, "dtype": self.lm.dtype}
        if layer.fused:
            fused = FusedProjection(attention.qkv_proj, features=config.hidden_size, sizes=sizes, **how)
            self._replace(attention, "qkv_proj", fused)
            return {name: getattr(fused, name) for name in PROJECTIONS}
        wrapped: dict[str, BeaconProjection] = {}
        for name, size in zip(PROJECTIONS, sizes, strict=True):
            # Where values are keys, as they leave the projection, there is no other one.
            base = getattr(attention, f"{name}_proj") or wrapped["k"].base
            wrapped[name] = BeaconProjection(base, name=name, sizes=(config.hidden_size, size), **how)
            self._replace(attention, f"{name}_proj", wrapped[name])
        return wrapped

    def _replace(self, owner: Any, name: str, module: nn.Module) -> None:
        self._replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, module)

    def _attentions(self) -> list[Any]:
        indices = [*(layer.index for layer in self._described), *self._sharing]
        return [self.lm.model.layers[index].self_attn for index in indices]


def _enter(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    _current.set(kwargs.get("beacon_pass"))


def _leave(module: Any, args: tuple[Any, ...], output: Any) -> None:
    _current.set(None)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    beacon_pass: Pass | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function registered as "beacon": the pass's when there is one, else the base model's own."""
    name = module.beacon_base_config._attn_implementation
    eager = sys.modules[type(module).__module__].eager_attention_forward
    base = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
    as_base = _AsBase(module)
    # A copy of keys and values for each head of a group is saved, for the same bits.
    grouped = name == "sdpa" and query.device.type == "cpu" and query.shape[2] > 1 and not query.requires_grad
    grouped = grouped and not kwargs.get("dropout")
    if beacon_pass is None:
        if grouped and attention_mask is not None:
            return _grouped(query, key, value, attention_mask, scale=kwargs.get("scaling")), None
        output: tuple[Tensor, Tensor | None] = base(as_base, query, key, value, attention_mask, **kwargs)
        return output
    # flash-attn would take a shadow's positions, which go back at its first beacon, for several packed texts.
    kwargs.pop("position_ids", None)

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        if "flash" in name:
            mask = None  # it aligns its causal mask to the newest key by itself
        elif grouped and mask is not None:
            return _grouped(query, key, value, mask, scale=kwargs.get("scaling"))
        elif name == "eager" and mask is None:
            # Eager attention takes no mask to mean that everyone sees everyone.
            rows, columns = query.shape[2], key.shape[2]
            mask = torch.full((rows, columns), float("-inf"), dtype=query.dtype, device=query.device)
            mask = mask.triu(columns - rows + 1)
        attended: Tensor = base(as_base, query, key, value, mask, **kwargs)[0]
        return attended

    return beacon_pass.attend(module, query, key, value, attend), None


def _grouped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scale: float | None) -> Tensor:
    attended = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=True
    )
    return attended.transpose(1, 2)


class _AsBase:
    """An attention module under its base model's config, in which flash-attn looks its own name up."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.config = module.beacon_base_config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def heads(rows: Tensor, module: Any) -> Tensor:
    """Projected value rows by head, as the model's attention sees them.  # (batch, kv_heads, rows, head_dim)"""
    return valued(rows.view(*rows.shape[:2], -1, module.head_dim).transpose(1, 2), module)


def valued(values: Tensor, module: Any) -> Tensor:
    """Values by head, normed where the attention norms them.  # (…, head_dim)"""
    made: Tensor = module.v_norm(values) if module.beacon_layer.values else values
    return made


def norm_of(module: Any, name: str) -> Callable[[Tensor], Tensor]:
    """The norm of an attention's queries ("q") or keys ("k")."""
    norm: Callable[[Tensor], Tensor] = getattr(module, f"{name}_{module.beacon_layer.norms}")
    return norm


def normed(keys: Tensor, module: Any) -> Tensor:
    """Keys by head, as an attention that norms each head sees them before RoPE.  # (…, head_dim)"""
    return norm_of(module, "k")(keys) if module.beacon_layer.norm == "head" else keys


def heads_last(rows: Tensor, module: Any) -> Tensor:
    """Projected key rows as the model's attention sees them before RoPE.  # (batch, kv_heads, rows, head_dim)"""
    if module.beacon_layer.norm == "row":
        rows = norm_of(module, "k")(rows)
    return normed(rows.view(*rows.shape[:2], -1, module.head_dim), module).transpose(1, 2)
