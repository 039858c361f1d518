"""Which models a memory takes: those of the families in fold/family.py; of any other it says why not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from beacon_memory.config import BeaconConfig
from beacon_memory.errors import ConfigError, UnsupportedModel
from beacon_memory.fold.family import FAMILIES, recurrences

ROPES = ("default", "linear", "llama3", "yarn", "proportional")

_RECURRENT = "it has recurrent layers that no fold was checked with, and without their state answers are garbled"
_LATENT = "its attention keeps latents that all heads share, not keys and values by head"
_STREAMS = "it reads each token in several streams at once, which no fold was checked with"
_CHUNKED = "some of its layers attend in chunks of positions, which joined slots would move"

# Well-known architectures that are not supported: why, and the supported family that comes nearest.
REFUSED = {
    "bamba": (_RECURRENT, "granitemoehybrid"),
    "falcon_h1": (_RECURRENT, "granitemoehybrid"),
    "jamba": (_RECURRENT, "granitemoehybrid"),
    "nemotron_h": (_RECURRENT, "granitemoehybrid"),
    "zamba2": (_RECURRENT, "granitemoehybrid"),
    "olmo_hybrid": (_RECURRENT, "qwen3_5_text"),
    "kimi_linear": (_RECURRENT, "qwen3_next"),
    "mamba": (_RECURRENT, "granitemoehybrid"),
    "mamba2": (_RECURRENT, "granitemoehybrid"),
    "recurrent_gemma": (_RECURRENT, "gemma"),
    "deepseek_v2": (_LATENT, "qwen2_moe"),
    "deepseek_v3": (_LATENT, "qwen3_moe"),
    "deepseek_v32": (_LATENT, "qwen3_moe"),
    "glm4_moe_lite": (_LATENT, "qwen3_moe"),
    "gemma3n": (_STREAMS, "gemma4_text"),
    "gemma3n_text": (_STREAMS, "gemma4_text"),
    "llama4": (_CHUNKED, "llama"),
    "llama4_text": (_CHUNKED, "llama"),
}
# Checkpoints that also see or hear, whose text model can be loaded by itself.
WITH_TEXT = {
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
}
# Where transformers does not find a text model's weights in such a checkpoint: their names there, and in the model.
INSIDE = {name: {r"^model\.language_model\.": "model."} for name in ("gemma4_text", "gemma4_unified_text")}


def text_of(config: Any) -> Any:
    """The configuration that a checkpoint's text model is loaded by: its own, or for one of WITH_TEXT a part of it."""
    return config.get_text_config() if getattr(config, "model_type", None) in WITH_TEXT else config


def inner(lm: Any) -> Any:
    """The causal LM in peft's wrapper, its LoRA in place; of any other model itself. Raises UnsupportedModel."""
    if not hasattr(lm, "get_base_model"):
        return lm
    if lm.active_peft_config.is_prompt_learning:
        raise UnsupportedModel(
            f"peft's {lm.active_peft_config.peft_type.value} puts a prompt in front of each call, which a memory does "
            f"not see: merge it, or take a LoRA"
        )
    return lm.get_base_model()


def check_supported(config: Any) -> None:
    """Raises UnsupportedModel, with the reason, for a model that would give wrong answers in silence."""
    kind = str(getattr(config, "model_type", None))
    supported = ", ".join(FAMILIES)
    if kind in REFUSED:
        reason, nearest = REFUSED[kind]
        told = f"{nearest} ({FAMILIES[nearest].models})"
        raise UnsupportedModel(f"model type {kind!r} is not supported: {reason}; nearest: {told}; all: {supported}")
    inner = getattr(getattr(config, "text_config", None), "model_type", None)
    if kind not in FAMILIES and inner is not None:
        nearest = inner if inner in FAMILIES else REFUSED.get(inner, ("", "llama"))[1]
        if kind in WITH_TEXT:
            raise UnsupportedModel(
                f"a loaded {kind!r} reads more than text: give the checkpoint's name to BeaconModel.from_pretrained, "
                f"which loads its text model, {nearest} ({FAMILIES[nearest].models})"
            )
        raise UnsupportedModel(
            f"model type {kind!r} is not supported: it reads more than text, and a memory is of text; take a text-only "
            f"checkpoint; nearest: {nearest} ({FAMILIES[nearest].models}); all: {supported}"
        )
    if kind not in FAMILIES:
        raise UnsupportedModel(f"model type {kind!r} is not supported; supported: {supported}")
    family = FAMILIES[kind]
    ropes = ROPES + (("longrope",) if family.longrope else ())
    for rope in _ropes(config):
        if rope not in ropes:
            raise UnsupportedModel(
                f"RoPE type {rope!r} depends on the text's length, stored slots do not; supported: {', '.join(ropes)}"
            )
    if getattr(config, "use_bidirectional_attention", None) not in (None, False, "vision"):  # what it sees is no text
        raise UnsupportedModel(f"model type {kind!r} with attention in both directions reads, but writes no answers")
    attention = getattr(config, "_attn_implementation", None)
    if attention not in (None, "sdpa", "eager") and "flash" not in attention:
        raise UnsupportedModel(f"attention {attention!r} is not supported: choose sdpa, eager or flash_attention_2")


def check_settings(config: Any, settings: BeaconConfig) -> None:
    """Raises ConfigError for settings by which a model with recurrent layers cannot fold."""
    if not recurrences(config):
        return
    one_order = f"layers of {config.model_type!r} are recurrent: they read each token once, in its order"
    if settings.layout != "select":
        raise ConfigError(
            f"{one_order}, and the beacon rows of layout {settings.layout!r} stand in none: choose 'select'"
        )
    if settings.overlap:
        raise ConfigError(
            f"{one_order}, so no window reads the one before it again: choose overlap=0, not {settings.overlap}"
        )


def _ropes(config: Any) -> Iterator[str]:
    """The kinds of RoPE that a configuration names."""
    found = getattr(config, "rope_parameters", None) or {}
    for one in found.values() if all(isinstance(value, dict) for value in found.values()) else [found]:
        yield (one or {}).get("rope_type", "default")
