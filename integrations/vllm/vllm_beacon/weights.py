"""What model vLLM has loaded, by the fingerprint that sessions carry: read from the checkpoint's own files.

vLLM fuses and shards weights, so the fingerprint cannot be taken from what it holds. transformers 5.16 is enough here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.utils import cached_file

from beacon_memory.errors import ModelError, UnsupportedModel
from beacon_memory.fold.family import family_of, slot_shape
from beacon_memory.models.families import check_supported
from beacon_memory.models.loading import fingerprint_of

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # full attention, one RoPE for all layers
LEFT_OUT = ("rotary_emb.inv_freq",)  # buffers that old checkpoints hold beside the weights


def checkpoint_fingerprint(name: str, config: Any, *, revision: str | None = None) -> str:
    """`Fingerprint.model` of a checkpoint, by its folder or its id on the hub, as vLLM has fetched it; the weights are
    left on the disk. Raises ModelError.
    """
    folder = Path(name)
    if not folder.is_dir():
        found = cached_file(name, "config.json", revision=revision, local_files_only=True)
        folder = Path(str(found)).parent
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: the model that vLLM serves is identified by its safetensors files, found none")
    weights: dict[str, Tensor] = {}
    opened: list[Any] = [safe_open(file, framework="pt") for file in files]
    for file in opened:
        for name in file.keys():  # noqa: SIM118
            tied = name == "lm_head.weight" and getattr(config, "tie_word_embeddings", False)
            if not tied and not name.endswith(LEFT_OUT):
                weights[name] = file.get_tensor(name)
    return fingerprint_of(config, weights)


def rotary_of(config: Any) -> nn.Module:
    """The rotary embedding that this model's keys are turned by. Raises UnsupportedModel."""
    check_supported(config)
    kind = config.model_type
    if kind not in FAMILIES or any(layer.window for layer in family_of(config).layers(config)):
        raise UnsupportedModel(
            f"vLLM reads slots of {', '.join(FAMILIES)} without sliding windows so far, not of this {kind!r}: ask our "
            f"own engine (BeaconMemory) instead"
        )
    module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    made: nn.Module = getattr(module, f"{kind.capitalize()}RotaryEmbedding")(config=config)
    return made


def check_layers(layers: Mapping[str, Any], *, config: Any) -> None:
    """Raises UnsupportedModel where an attention layer of vLLM's cannot be given slots."""
    for name, layer in layers.items():
        if not callable(getattr(getattr(layer, "impl", None), "do_kv_cache_update", None)):
            raise UnsupportedModel(
                f"{name}: this attention backend has no do_kv_cache_update: choose another (VLLM_ATTENTION_BACKEND), "
                f"or a vLLM release that docs/vllm.md names"
            )
        if (width := getattr(layer, "head_size", None)) != (ours := slot_shape(config)[2]):
            raise UnsupportedModel(f"{name}: heads of {width} channels, the model's are of {ours}")


def own_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which slots are handed to vLLM: its model's. Raises UnsupportedModel."""
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise UnsupportedModel(f"slots are written as float32, float16 or bfloat16, not {dtype}: choose --dtype")
    return dtype
