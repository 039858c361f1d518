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


@dataclass(frozen=True)
class Layer:
    """The attention of one layer."""

    window: int | None = None  # how many of the newest KV entries a row sees, itself among them; None: all
    rope: str | None = ""  # the layer type to ask the rotary embedding for, "" where it takes none; None: no RoPE
    norm: Norm = "none"  # what `k_norm` norms: nothing, each head, or the heads of a token together
    fused: bool = False  # whether one `qkv_proj` stands for q_proj, k_proj and v_proj
    softcap: float | None = None  # attention logits are softly limited to this
    sinks: bool = False  # whether each head has a logit that takes attention and gives nothing


@dataclass(frozen=True)
class Family:
    """One architecture of transformers, by its `model_type`."""

    name: str
    models: str  # as people call them
    fused: bool = False
    norm: Norm = "none"
    typed_rope: bool = False  # the rotary embedding has angles of their own for each type of layer
    half_angles: bool = False  # the rotary embedding gives each angle once, not once for each half
    softcap: bool = False
    sinks: bool = False
    longrope: bool = False  # within the positions where its short factors hold
    experts: bool = False
    sdpa: bool = True  # whether transformers has it with scaled_dot_product_attention

    def layers(self, config: Any) -> tuple[Layer, ...]:
        """Each layer's attention under this configuration."""
        count = int(config.num_hidden_layers)
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        if not window or window >= config.max_position_embeddings:
            window = None  # it sees everything there can be
        types = getattr(config, "layer_types", None) or [SLIDING if window else FULL] * count
        turned = getattr(config, "no_rope_layers", None) or [1] * count  # 0 marks a layer without RoPE
        softcap = config.attn_logit_softcapping if self.softcap else None
        return tuple(
            Layer(
                window=window if kind == SLIDING else None,
                rope=None if not rope else kind if self.typed_rope else "",
                norm=self.norm,
                fused=self.fused,
                softcap=softcap,
                sinks=self.sinks,
            )
            for kind, rope in zip(types[:count], turned[:count], strict=True)
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
        Family("olmo3", "OLMo 3", norm="row", typed_rope=True),
        Family("gpt_oss", "gpt-oss", half_angles=True, sinks=True, experts=True, sdpa=False),
    )
}


def family_of(config: Any) -> Family:
    """The family of a supported configuration."""
    return FAMILIES[config.model_type]


def slot_shape(config: Any) -> tuple[int, int, int]:
    """Layers, KV heads and head size: the shape of a slot's keys, and of its values."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(config.num_hidden_layers), int(heads), int(width)


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
