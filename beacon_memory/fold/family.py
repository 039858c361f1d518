"""Model families: what a fold has to know of an architecture's attention, as data.

A family is a small description of transformers' module for it. Nothing of it is forked: attention.py, prefix.py and
passes.py read the description and use the stock module's own parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Norm = Literal["none", "head", "row"]

FULL, SLIDING = "full_attention", "sliding_attention"
RECURRENT = ("linear_attention", "conv")  # layers that hold a state in place of keys and values


@dataclass(frozen=True)
class Layer:
    """The attention of one layer."""

    index: int = 0  # which of the model's layers it is
    window: int | None = None  # how many of the newest KV entries a row sees, itself among them; None: all
    rope: str | None = ""  # the layer type to ask the rotary embedding for, "" where it takes none; None: no RoPE
    norm: Norm = "none"  # what `k_norm` norms: nothing, each head, or the heads of a token together
    norms: str = "norm"  # how `q_norm` and `k_norm` are called behind the q and k
    gated: bool = False  # whether `q_proj` also makes a gate for each channel that comes out of the attention
    fused: bool = False  # whether one `qkv_proj` stands for q_proj, k_proj and v_proj
    softcap: float | None = None  # attention logits are softly limited to this
    sinks: bool = False  # whether each head has a logit that takes attention and gives nothing
    values: bool = False  # whether values are normed too, each head's by `v_norm`
    shared: bool = False  # whether it reads the keys and values of that layer, and has none of its own


@dataclass(frozen=True)
class Family:
    """One architecture of transformers, by its `model_type`."""

    name: str
    models: str  # as people call them
    fused: bool = False
    norm: Norm = "none"
    norms: str = "norm"
    gated: bool = False
    typed_rope: bool = False  # the rotary embedding has angles of their own for each type of layer
    half_angles: bool = False  # the rotary embedding gives each angle once, not once for each half
    softcap: bool = False
    sinks: bool = False
    values: bool = False
    longrope: bool = False  # within the positions where its short factors hold
    experts: bool = False
    sdpa: bool = True  # whether transformers has it with scaled_dot_product_attention
    rotary: str = "rotary_emb"  # where the decoder has its rotary embedding
    recurrent: str = ""  # the module that some layers have in place of attention, and that holds a recurrent state

    def layers(self, config: Any) -> tuple[Layer, ...]:
        """The attention of each layer with keys of its own, under this configuration: those are the layers of slots."""
        count = int(config.num_hidden_layers)
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        if not window or window >= config.max_position_embeddings:
            window = None  # it sees everything there can be
        types = getattr(config, "layer_types", None) or [SLIDING if window else FULL] * count
        turned = getattr(config, "no_rope_layers", None) or [1] * count  # 0 marks a layer without RoPE
        if getattr(config, "position_embedding_type", "rope") != "rope":
            turned = [0] * count
        softcap = config.attn_logit_softcapping if self.softcap else None
        return tuple(
            Layer(
                index=index,
                window=window if kind == SLIDING else None,
                rope=None if not rope else kind if self.typed_rope else "",
                norm=self.norm,
                norms=self.norms,
                gated=self.gated,
                fused=self.fused,
                softcap=softcap,
                sinks=self.sinks,
                values=self.values,
            )
            for index, (kind, rope) in enumerate(zip(types[:count], turned[:count], strict=True))
            if kind not in RECURRENT and index < unshared(config)
        )


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family("llama", "Llama 2, 3.x, SmolLM 1 and 2"),
        Family("mistral", "Mistral 7B, Nemo, Small"),
        Family("qwen2", "Qwen2, Qwen2.5"),
        Family("qwen3", "Qwen3", norm="head"),
        Family("phi3", "Phi-3, Phi-3.5, Phi-4", fused=True, longrope=True),
        Family("smollm3", "SmolLM3"),
        Family("olmo2", "OLMo 2", norm="row"),
        Family("granite", "Granite 3"),
        Family("mixtral", "Mixtral", experts=True),
        Family("qwen2_moe", "Qwen1.5-MoE, Qwen2-MoE", experts=True),
        Family("qwen3_moe", "Qwen3-MoE", norm="head", experts=True),
        Family("gemma", "Gemma 1"),
        Family("gemma2", "Gemma 2", softcap=True, sdpa=False),
        Family("gemma3_text", "Gemma 3 270M, 1B", norm="head", typed_rope=True),
        Family("gemma4_text", "Gemma 4 E2B, E4B, 26B-A4B, 31B", norm="head", typed_rope=True, values=True),
        Family("gemma4_unified_text", "Gemma 4 12B", norm="head", typed_rope=True, values=True),
        Family("olmo3", "OLMo 3", norm="row", typed_rope=True),
        Family("gpt_oss", "gpt-oss", half_angles=True, sinks=True, experts=True, sdpa=False),
        Family("qwen3_5_text", "Qwen3.5, Qwen3.6", norm="head", gated=True, recurrent="linear_attn"),
        Family(
            "qwen3_5_moe_text",
            "Qwen3.5 and Qwen3.6 MoE",
            norm="head",
            gated=True,
            recurrent="linear_attn",
            experts=True,
        ),
        Family("qwen3_next", "Qwen3-Next", norm="head", gated=True, recurrent="linear_attn", experts=True),
        Family("lfm2", "LFM2, LFM2.5", norm="head", norms="layernorm", recurrent="conv"),
        Family(
            "lfm2_moe", "LFM2 MoE", norm="head", norms="layernorm", rotary="pos_emb", recurrent="conv", experts=True
        ),
        Family("granitemoehybrid", "Granite 4-H", recurrent="mamba", experts=True),
    )
}


def family_of(config: Any) -> Family:
    """The family of a supported configuration."""
    return FAMILIES[config.model_type]


def slot_shape(config: Any) -> tuple[int, int, int]:
    """Layers of slots, KV heads and head size: the shape of a slot's keys, and of its values.

    Where layers differ, it is the most heads and the widest; what a layer has less is zeros.
    """
    shapes = slot_shapes(config)
    return len(shapes), max(heads for heads, _ in shapes), max(width for _, width in shapes)


def slot_shapes(config: Any) -> tuple[tuple[int, int], ...]:
    """The KV heads and the head size of each layer of slots."""
    recurrent, own = recurrences(config), getattr(config, "per_layer_config", None)
    layers = [index for index in range(unshared(config)) if index not in recurrent]
    return tuple(_shape(config if own is None else own[index]) for index in layers)


def kv_heads(config: Any) -> list[tuple[int, int]]:
    """All KV heads: the layer of slots of each, and which of its heads it is."""
    return [(layer, head) for layer, (heads, _) in enumerate(slot_shapes(config)) for head in range(heads)]


def _shape(config: Any) -> tuple[int, int]:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads), int(width)


def unshared(config: Any) -> int:
    """How many of the model's first layers do not read the keys and values of others."""
    return int(config.num_hidden_layers) - int(getattr(config, "num_kv_shared_layers", None) or 0)


def sharing(config: Any) -> dict[int, int]:
    """The layers that read the keys and values of another one: that is the last before them of their type."""
    own, types = unshared(config), getattr(config, "layer_types", None) or []
    last = {kind: index for index, kind in enumerate(types[:own])}
    return {index: last[types[index]] for index in range(own, int(config.num_hidden_layers))}


def recurrences(config: Any) -> tuple[int, ...]:
    """Which of the model's layers hold a recurrent state instead of keys and values."""
    types = getattr(config, "layer_types", None) or []
    return tuple(index for index, kind in enumerate(types[: config.num_hidden_layers]) if kind in RECURRENT)


def short_positions(config: Any) -> int | None:
    """The positions within which LongRoPE's short factors hold; None for any other RoPE."""
    rope = getattr(config, "rope_parameters", None) or {}
    return int(rope["original_max_position_embeddings"]) if rope.get("rope_type") == "longrope" else None


def positions_of(config: Any) -> int:
    """The positions that a memory may use.

    LongRoPE turns everything by other angles once a text is longer than what the model was first trained on. Slots
    that were read before that would be wrong, so a memory stays within it.
    """
    longest = int(config.max_position_embeddings)
    return min(longest, short_positions(config) or longest)
