"""How a memory folds: window, ratio, layout, anchors, sinks and what stays raw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from typing import Any, Self

from beacon_memory.errors import ConfigError, MissingExtra

RATIOS = (1, 2, 4, 8, 16, 32)
LAYOUTS = ("select", "shadow", "interleave")
ANCHORS = ("last", "surprise", "reconstruct", "learned", "spread")
# Bits of a number of a slot; a group of 64 shares a scale and a low, which is half a bit more for each (quantise.py).
SLOT_BITS = {"bfloat16": 16, "float16": 16, "float32": 32, "int8": 8.5, "int4": 4.5}
SLOT_DTYPES = tuple(SLOT_BITS)
# Tokens of what was folded that are read again in front of a question about them, where the model has a finder.
RECALL_TOKENS = 256
# What finds them: the model's attention to the slots, the words of the question, or both.
FINDERS = ("attention", "words", "attention+words")


@dataclass(frozen=True)
class BeaconConfig:
    """The settings of a fold, checked when made.

    `anchors` names one rule or a mix: "reconstruct+last" gives each rule half of the slots, "reconstruct:3+last:1"
    three quarters and one. Raises ConfigError.

    >>> BeaconConfig(ratio=8, anchors="surprise+last").shares
    (('surprise', 0.5), ('last', 0.5))
    """

    ratio: int = 4  # raw tokens a slot stands for; 1 keeps every token
    window: int = 512  # tokens folded at once
    layout: str = "select"
    anchors: str = "reconstruct"
    sink: int = 4  # first tokens of a stream, kept raw for ever
    keep_last: int = 128  # newest tokens, never folded
    slot_dtype: str = "bfloat16"  # what slots are kept in, in memory and in every store
    # Tokens of the window before that are read again in front of a window: what its edge cuts in two is read whole.
    overlap: int = 0
    document_windows: int = 1  # windows of a document that are folded as one: all of it is there at once

    def __post_init__(self) -> None:
        check_ratio(self.ratio, self.window)
        if self.layout not in LAYOUTS:
            raise ConfigError(f"layout is one of {', '.join(LAYOUTS)}, not {self.layout!r}")
        if self.slot_dtype not in SLOT_DTYPES:
            raise ConfigError(f"slot_dtype is one of {', '.join(SLOT_DTYPES)}, not {self.slot_dtype!r}")
        for name in ("sink", "keep_last", "overlap"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ConfigError(f"{name} is a number of tokens, 0 or more, not {value!r}")
        if not isinstance(self.document_windows, int) or self.document_windows < 1:
            raise ConfigError(f"document_windows is a number of windows, 1 or more, not {self.document_windows!r}")
        rules = [rule for rule, _ in self.shares]
        if self.layout != "select" and "spread" in rules:
            raise ConfigError(f"anchors 'spread' differ between heads: layout must be 'select', not {self.layout!r}")
        if self.layout == "interleave" and rules != ["last"]:
            raise ConfigError(
                f"layout 'interleave' puts a beacon after each unit: anchors must be 'last', not {self.anchors!r}"
            )

    @property
    def document_window(self) -> int:
        """The tokens of a document that are folded at once."""
        return self.window * self.document_windows

    @property
    def shares(self) -> tuple[tuple[str, float], ...]:
        """The anchor rules and the share of the slots each one fills, summing to 1."""
        weights: dict[str, float] = {}
        for part in str(self.anchors).split("+"):
            rule, _, weight = part.strip().partition(":")
            try:
                value = float(weight) if weight else 1.0
            except ValueError:
                value = -1.0
            if rule not in ANCHORS or not 0 < value < float("inf") or rule in weights:
                raise ConfigError(
                    f"anchors name {', '.join(ANCHORS)}, alone or mixed ('reconstruct:3+last:1'), not {self.anchors!r}"
                )
            weights[rule] = value
        total = sum(weights.values())
        return tuple((rule, weight / total) for rule, weight in weights.items())

    def replace(self, **changes: Any) -> Self:
        """The same settings with some changed."""
        return type(self).from_dict({**asdict(self), **changes})

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """The settings back from `to_dict`. Raises ConfigError for a name this version does not know."""
        unknown = sorted(set(settings) - {field.name for field in fields(cls)})
        if unknown:
            raise ConfigError(f"unknown setting {', '.join(unknown)}; known: {', '.join(f.name for f in fields(cls))}")
        return cls(**settings)


def known_ratio(ratio: int) -> int:
    """The ratio, when it is one of RATIOS. Raises ConfigError."""
    if type(ratio) is not int or ratio not in RATIOS:
        raise ConfigError(f"ratio is one of {', '.join(map(str, RATIOS))}, not {ratio!r}")
    return ratio


def check_ratio(ratio: int, window: int) -> int:
    """The ratio, when it is one a window can be folded at. Raises ConfigError."""
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise ConfigError(f"window is a number of tokens, 1 or more, not {window!r}")
    if window % known_ratio(ratio):
        raise ConfigError(
            f"ratio {ratio} does not divide the window of {window} tokens: choose a window that is a multiple"
        )
    return ratio


def slot_count(tokens: int, ratio: int) -> int:
    """How many slots `tokens` fold into; a partial last unit gets one too."""
    return -(-tokens // ratio)


def check_recall(tokens: int) -> int:
    """The number of tokens that may be read again in front of a question, when it is one. Raises ConfigError."""
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
        raise ConfigError(f"recall_tokens is a number of tokens, 0 or more, not {tokens!r}")
    return tokens


def check_finder(kind: str) -> str:
    """What finds the passages that a question is about, when there is such a thing. Raises ConfigError,
    and MissingExtra for words without the package that finds by them.
    """
    if kind not in FINDERS:
        raise ConfigError(f"finder is one of {', '.join(FINDERS)}, not {kind!r:.80}")
    if "words" in kind and find_spec("bm25s") is None:
        raise MissingExtra("finding by words needs the package bm25s: pip install 'beacon-memory[words]'")
    return kind


def check_bytes(limit: int, *, what: str) -> int:
    """The number of bytes that a cache may take, when it is one. Raises ConfigError."""
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= 0:
        raise ConfigError(f"{what} is a number of bytes, 0 or more, not {limit!r:.80}")
    return limit
