"""Figures of a cell from the scores of its questions, with bootstrap intervals over items."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

ROUNDS = 1000


@dataclass(frozen=True)
class Score:
    """What one question gave; what was not asked for is None."""

    loss: float | None = None  # mean over the right answer's tokens, in nats
    right: float | None = None  # 1 where the right answer is the likeliest, else 0
    f1: float | None = None  # of the answer written
    group: str = ""
    said: float | None = None  # 1 where the answer written says the right value, else 0
    answer: str | None = None  # what was written


@dataclass(frozen=True)
class Figure:
    """A mean and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


# A cell's scores: by item, those of its questions.
Scores = Mapping[str, Sequence[Score]]


def figures(own: Scores, *, full: Scores, none: Scores, seed: int = 0) -> dict[str, Figure]:
    """All figures of a cell that its scores allow: said, f1, loss, accuracy, and the shares of what `full` keeps.

    `kept` is (none - own) / (none - full) in loss, `share` is own / full in accuracy, `said_share` the same in what is
    said, on the items all of them have.
    """
    found: dict[str, Figure] = {}
    for figure, name in (("said", "said"), ("f1", "f1"), ("loss", "loss"), ("accuracy", "right")):
        if items := _with(own, name):
            found[figure] = _bootstrap(items, _Mean(own, name), seed=seed)
    for figure, name in (("said_share", "said"), ("share", "right")):
        if common := [item for item in _with(own, name) if item in {*_with(full, name)}]:
            found[figure] = _bootstrap(common, _share(_Mean(own, name), _Mean(full, name)), seed=seed)
    ends = {*_with(full, "loss")} & {*_with(none, "loss")}
    if common := [item for item in _with(own, "loss") if item in ends]:
        loss, least, most = (_Mean(scores, "loss") for scores in (own, none, full))

        def kept(drawn: Sequence[str]) -> float:
            return (least(drawn) - loss(drawn)) / ((least(drawn) - most(drawn)) or float("nan"))

        found["kept"] = _bootstrap(common, kept, seed=seed)
    return found


def grouped(own: Scores, name: str) -> dict[str, float]:
    """The mean of a score by group of questions, in the order the groups came; a question may be of several."""
    values: dict[str, list[float]] = {}
    for scores in own.values():
        for score in scores:
            if (value := getattr(score, name)) is not None:
                for group in score.group.split("; "):
                    values.setdefault(group, []).append(float(value))
    return {group: sum(found) / len(found) for group, found in values.items()}


def _with(scores: Scores, name: str) -> list[str]:
    """The items all of whose questions have this score."""
    return [item for item, found in scores.items() if all(getattr(score, name) is not None for score in found)]


def _share(own: _Mean, full: _Mean) -> Callable[[Sequence[str]], float]:
    return lambda drawn: own(drawn) / (full(drawn) or float("nan"))


class _Mean:
    """The mean of a score over the questions of some items; summed by item once, since it is drawn a thousand times."""

    def __init__(self, scores: Scores, name: str) -> None:
        whole = _with(scores, name)
        self._sums = {item: sum(float(getattr(score, name)) for score in scores[item]) for item in whole}
        self._counts = {item: len(scores[item]) for item in whole}

    def __call__(self, items: Sequence[str]) -> float:
        return sum(map(self._sums.__getitem__, items)) / sum(map(self._counts.__getitem__, items))


def _bootstrap(items: Sequence[str], figure: Callable[[Sequence[str]], float], *, seed: int) -> Figure:
    """The figure on all items, and on items drawn again and again."""
    draw = random.Random(seed)
    drawn = sorted(
        value
        for _ in range(ROUNDS)
        if (value := figure(draw.choices(items, k=len(items)))) == value  # NaN is not
    )
    value = figure(items)
    if not drawn:
        return Figure(value, value, value)
    return Figure(value, drawn[int(0.025 * len(drawn))], drawn[min(int(0.975 * len(drawn)), len(drawn) - 1)])
