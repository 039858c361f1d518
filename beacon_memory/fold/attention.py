"""Beacons on a transformers model: wrapped projections, and an attention function that a pass can take over.

Nothing is forked. `q_proj`, `k_proj` and `v_proj` of each layer are wrapped, or the `qkv_proj` that stands for them,
and the attention modules look up their attention function under the name "beacon". A forward without a `beacon_pass`
does exactly what the model did before. `detach` puts everything back.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from itertools import accumulate, pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from beacon_memory.errors import ModelError
from beacon_memory.fold.family import Layer, family_of, slot_shape

NAME = "beacon"
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

    def __init__(self, fused: nn.Linear, start: int, end: int) -> None:
        super().__init__()
        self._fused = (fused,)  # in a tuple: it is no submodule, its weights are named once
        self._share = slice(start, end)
        self.in_features, self.out_features = fused.in_features, end - start

    @property
    def weight(self) -> Tensor:
        """Its rows of the fused weight."""
        return self._fused[0].weight[self._share]

    @property
    def bias(self) -> Tensor | None:
        """Its rows of the fused bias."""
        bias: Tensor | None = self._fused[0].bias
        return None if bias is None else bias[self._share]

    def forward(self, hidden: Tensor) -> Tensor:
        known, fused = _whole.get(), self._fused[0]
        if known is not None and known[0] is hidden:
            return known[1][..., self._share]
        if type(fused) is nn.Linear:
            return nn.functional.linear(hidden, self.weight, self.bias)
        made: Tensor = fused(hidden)[..., self._share]
        return made


class BeaconProjection(nn.Module):
    """A q, k or v projection with its own weights for beacons: none (the base's are used), a low-rank delta, or full.

    A delta may reach to a row's neighbours, so that a slot carries what stands around its anchor.
    """

    def __init__(self, base: nn.Linear | Part, *, layer: int, name: str) -> None:
        super().__init__()
        self.base = base
        self.layer = layer
        self.name = name
        self.full: nn.Linear | None = None
        self.down: nn.Linear | None = None
        self.up: nn.Linear | None = None
        self.scorer: nn.Linear | None = None  # on k only: how much each head wants a token kept

    @property
    def trained(self) -> bool:
        """Whether beacons have weights of their own here."""
        return self.full is not None or self.down is not None

    def make_full(self) -> None:
        """Give beacons a full projection, a copy of the base's (paper, section 3.2)."""
        self.full = self._linear(self.base.in_features, self.base.out_features, bias=self.base.bias is not None)
        with torch.no_grad():
            for own, base in ((self.full.weight, self.base.weight), (self.full.bias, self.base.bias)):
                if base is not None:
                    own.copy_(base)

    def make_low_rank(self, rank: int, *, reach: int = 0) -> None:
        """Give beacons the base's projection plus a delta of this rank, zero at the start.

        The delta also sees `reach` rows before and behind its own, within the window.
        """
        self.down = self._linear(self.base.in_features, rank * (2 * reach + 1), bias=False)
        self.up = self._linear(rank, self.base.out_features, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.up.weight)

    def make_scorer(self, heads: int) -> None:
        """Give this layer the scorer of the `learned` anchors, one output per KV head."""
        self.scorer = self._linear(self.base.in_features, heads, bias=True)
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
        weight = self.base.weight
        return nn.Linear(features_in, features_out, bias=bias, device=weight.device, dtype=weight.dtype)


class FusedProjection(nn.Module):
    """A `qkv_proj` whose q, k and v are projections of their own in a pass; without one it is the base's."""

    def __init__(self, base: nn.Linear, *, layer: int, sizes: Sequence[int]) -> None:
        """`sizes`: the features of q, k and v, in the order they are in `base`."""
        super().__init__()
        self.base = base
        for name, (start, end) in zip(PROJECTIONS, pairwise(accumulate(sizes, initial=0)), strict=True):
            self.add_module(name, BeaconProjection(Part(base, start, end), layer=layer, name=name))

    def forward(self, hidden: Tensor) -> Tensor:
        made: Tensor = self.base(hidden)
        if _current.get() is None:
            return made
        token = _whole.set((hidden, made))
        try:
            return torch.cat([getattr(self, name)(hidden) for name in PROJECTIONS], dim=-1)
        finally:
            _whole.reset(token)


class Beacons:
    """The beacon parts of one attached model: projections by layer, and the embeddings that beacon rows start from."""

    def __init__(self, lm: Any) -> None:
        """Attach to `lm`, a causal LM of a supported family. Importing registers nothing; this does.

        Raises ModelError when `lm` has beacons already: two sets would get in each other's way.
        """
        AttentionInterface.register(NAME, _attention)
        self.lm = lm
        if any(hasattr(attention, "beacon_base_config") for attention in self._attentions()):
            raise ModelError("this model carries beacons already: detach them first, or share the BeaconModel")
        self.layers: list[dict[str, BeaconProjection]] = []
        self.embedding: nn.Parameter | None = None  # (hidden,): every interleaved beacon starts from it
        self.offset: nn.Parameter | None = None  # (hidden,): added to a shadow beacon's anchor embedding
        self._hooks: list[Any] = []
        self._replaced: list[tuple[Any, str, nn.Module]] = []  # attention, its attribute, what it held
        described = family_of(lm.config).layers(lm.config)
        for index, (attention, layer) in enumerate(zip(self._attentions(), described, strict=True)):
            self.layers.append(self._wrapped(attention, layer, index=index))
            attention.beacon_layer = layer
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
            del attention.beacon_base_config, attention.beacon_layer
        for attention, name, module in self._replaced:
            setattr(attention, name, module)
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
        """A layer's attention module."""
        return self.lm.model.layers[layer].self_attn

    def _wrapped(self, attention: Any, layer: Layer, *, index: int) -> dict[str, BeaconProjection]:
        """The layer's projections by name, now in their bases' places."""
        if not layer.fused:
            bases = {name: getattr(attention, f"{name}_proj") for name in PROJECTIONS}
            wrapped = {name: BeaconProjection(base, layer=index, name=name) for name, base in bases.items()}
            for name, projection in wrapped.items():
                self._replace(attention, f"{name}_proj", projection)
            return wrapped
        _, kv_heads, width = slot_shape(self.lm.config)
        sizes = [self.lm.config.num_attention_heads * width, kv_heads * width, kv_heads * width]
        fused = FusedProjection(attention.qkv_proj, layer=index, sizes=sizes)
        self._replace(attention, "qkv_proj", fused)
        return {name: getattr(fused, name) for name in PROJECTIONS}

    def _replace(self, attention: Any, name: str, module: nn.Module) -> None:
        self._replaced.append((attention, name, getattr(attention, name)))
        setattr(attention, name, module)

    def _attentions(self) -> list[Any]:
        return [layer.self_attn for layer in self.lm.model.layers]


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


def rows_at(by_head: Tensor, positions: Tensor) -> Tensor:
    """Each head's own rows.  # by_head: (batch, heads, rows, width), positions: (batch, heads, chosen)"""
    return by_head.gather(2, positions[..., None].expand(-1, -1, -1, by_head.shape[3]))


def heads(rows: Tensor, module: Any) -> Tensor:
    """Projected rows by head.  # (batch, kv_heads, rows, head_dim)"""
    return rows.view(*rows.shape[:2], -1, module.head_dim).transpose(1, 2)


def normed(keys: Tensor, module: Any) -> Tensor:
    """Keys by head, as an attention that norms each head sees them before RoPE.  # (…, head_dim)"""
    seen: Tensor = module.k_norm(keys) if module.beacon_layer.norm == "head" else keys
    return seen


def heads_last(rows: Tensor, module: Any) -> Tensor:
    """Projected key rows as the model's attention sees them before RoPE.  # (batch, kv_heads, rows, head_dim)"""
    if module.beacon_layer.norm == "row":
        rows = module.k_norm(rows)
    return normed(rows.view(*rows.shape[:2], -1, module.head_dim), module).transpose(1, 2)
