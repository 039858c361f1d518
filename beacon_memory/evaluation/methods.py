"""The methods that are compared, and what each of them needs attached to the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from beacon_memory.config import BeaconConfig
from beacon_memory.errors import ConfigError
from beacon_memory.evaluation.looking import LOOKS
from beacon_memory.evaluation.memories import BASELINES
from beacon_memory.models.adapter import adapter_config
from beacon_memory.models.finder import FILE
from beacon_memory.models.model import BeaconModel

UNTRAINED = ("last", "reconstruct")  # anchor rules that need no weights
CONTROL_RATIO = 4
CONTROLS = ("control", "control-full")  # the memory of another document, and the whole of it read raw
METHODS = (*BASELINES, *(f"beacon-{rule}" for rule in UNTRAINED), "beacon", *LOOKS, *CONTROLS)


@dataclass(frozen=True)
class Method:
    """A way to remember, as it is named in tables."""

    name: str
    kind: str  # one of BASELINES or LOOKS, or "beacon"
    adapter: Path | None = None
    anchors: str | None = None  # of an untrained beacon memory
    foreign: bool = False  # the control: the memory of another document
    finder: str = "attention"  # of a memory that looks again (config.FINDERS)

    @property
    def attached(self) -> tuple[Path | None, str | None, str]:
        """What must be attached to the model; methods that need the same share a model."""
        return self.adapter, self.anchors, self.finder

    def ratios(self, asked: Sequence[int]) -> tuple[int, ...]:
        """The ratios it is measured at; 1 stands for all tokens, 0 for none."""
        if self.kind in ("full", "none"):
            return (1 if self.kind == "full" else 0,)
        if self.foreign:
            return (CONTROL_RATIO if CONTROL_RATIO in asked else min(asked),)
        return tuple(asked)


def chosen(names: Sequence[str], adapters: Mapping[str, Path], *, finder: str = "attention") -> list[Method]:
    """The methods by name; `beacon` is one for each adapter, what looks again one for each that `finder` finds with
    (by words an untrained memory too, where there is no adapter), and the control folds as the first adapter.

    Raises ConfigError.
    """
    if unknown := [name for name in names if name not in METHODS]:
        raise ConfigError(f"no method {unknown[0]!r}; there are {', '.join(METHODS)}")
    found = [Method(name, name) for name in BASELINES if name in names]
    found += [Method(f"beacon-{rule}", "beacon", anchors=rule) for rule in UNTRAINED if f"beacon-{rule}" in names]
    trained = [Method(name, "beacon", adapter=folder) for name, folder in adapters.items()]
    found += trained if "beacon" in names else []
    by_words = "words" in finder
    finding = [one for one in trained if by_words or (adapters[one.name] / FILE).exists()]
    if by_words and not trained:
        finding = [Method(f"beacon-{UNTRAINED[-1]}", "beacon", anchors=UNTRAINED[-1])]
    for kind in (kind for kind in LOOKS if kind in names):
        end = kind.removeprefix("beacon")
        found += [replace(one, name=f"{one.name}{end}", kind=kind, finder=finder) for one in finding]
    if "control" in names:
        adapter, anchors = (trained[0].adapter, None) if trained else (None, UNTRAINED[-1])
        found.append(Method("control", "beacon", adapter=adapter, anchors=anchors, foreign=True))
    if "control-full" in names:
        found.append(Method("control-full", "full", foreign=True))
    return found


def common_settings(adapters: Mapping[str, Path]) -> BeaconConfig:
    """The windows and sinks that all methods are measured with: the first adapter's, else the defaults."""
    return adapter_config(next(iter(adapters.values())))[0] if adapters else BeaconConfig()


def attach(lm: Any, tokenizer: Any, method: Method, common: BeaconConfig) -> BeaconModel:
    """The base model with what a method needs; `detach` gives it back."""
    config = adapter_config(method.adapter)[0] if method.adapter else BeaconConfig(anchors=method.anchors or "last")
    config = config.replace(window=common.window, document_windows=common.document_windows, sink=common.sink)
    return BeaconModel(lm, tokenizer, config, adapter=method.adapter, finder=method.finder)
