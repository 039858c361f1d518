"""Figures of a cell from the scores of its questions, with bootstrap intervals over items."""

from __future__ import annotations

import random
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

ROUNDS = 1000


@dataclass(frozen=True)
class Score:
    """What one question gave."""

    loss: float  # mean over the right answer's tokens, in nats
    right: float  # 1 where the right answer is the likeliest, else 0
    f1: float | None = None  # of the answer written
    group: str = ""


@dataclass(frozen=True)
class Figure:
    """A mean and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def rank_right(losses: Sequence[float]) -> float:
    """1 where the first answer has the lowest loss of all, else 0; a tie is no hit.

    >>> rank_right([0.5, 0.7, 0.6]), rank_right([0.5, 0.5])
    (1.0, 0.0)
    """
    return float(all(losses[0] < other for other in losses[1:]))


def f1(answer: str, gold: Sequence[str]) -> float:
    """The best word overlap with a right answer (SQuAD's: no case, punctuation or articles).

    >>> f1("The old king!", ["an old man", "king"])
    0.6666666666666666
    """
    return max(_f1(_words(answer), _words(right)) for right in gold)


def _f1(said: list[str], right: list[str]) -> float:
    common = sum((Counter(said) & Counter(right)).values())
    if not common:
        return float(said == right)
    return 2 * common / (len(said) + len(right))


def _words(text: str) -> list[str]:
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


# A cell's scores: by item, those of its questions.
Scores = Mapping[str, Sequence[Score]]


def figures(own: Scores, *, full: Scores, none: Scores, seed: int = 0) -> dict[str, Figure]:
    """All figures of a cell that its scores allow: loss, accuracy, f1, and the shares of what `full` keeps.

    `kept` is (none - own) / (none - full) in loss, `share` is own / full in accuracy, on the items all of them have.
    """
    found: dict[str, Figure] = {}
    items = list(own)
    if not items:
        return found
    loss, right = _Mean(own, "loss"), _Mean(own, "right")
    found["loss"] = _bootstrap(items, loss, seed=seed)
    found["accuracy"] = _bootstrap(items, right, seed=seed)
    if all(score.f1 is not None for scores in own.values() for score in scores):
        found["f1"] = _bootstrap(items, _Mean(own, "f1"), seed=seed)
    if common := [item for item in items if item in full and item in none]:
        least, most, best = _Mean(none, "loss"), _Mean(full, "loss"), _Mean(full, "right")

        def kept(drawn: Sequence[str]) -> float:
            return (least(drawn) - loss(drawn)) / ((least(drawn) - most(drawn)) or float("nan"))

        def share(drawn: Sequence[str]) -> float:
            return right(drawn) / (best(drawn) or float("nan"))

        found["kept"] = _bootstrap(common, kept, seed=seed)
        found["share"] = _bootstrap(common, share, seed=seed)
    return found


def grouped(own: Scores, name: str) -> dict[str, float]:
    """The mean of a score by group of questions, in the order the groups came."""
    values: dict[str, list[float]] = {}
    for scores in own.values():
        for score in scores:
            values.setdefault(score.group, []).append(float(getattr(score, name)))
    return {group: sum(found) / len(found) for group, found in values.items()}


class _Mean:
    """The mean of a score over the questions of some items; summed by item once, since it is drawn a thousand times."""

    def __init__(self, scores: Scores, name: str) -> None:
        self._sums = {item: sum(float(getattr(score, name)) for score in found) for item, found in scores.items()}
        self._counts = {item: len(found) for item, found in scores.items()}

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
