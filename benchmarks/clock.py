"""Timing, once for all benchmarks: acts are taken in turn, so that a slow minute of the machine falls on all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Told = Callable[[str], None]


@dataclass(frozen=True)
class Act:
    """What is timed, and what is made ready before each time, untimed."""

    run: Callable[[Any], object]
    before: Callable[[], Any] = lambda: None  # gives what `run` gets


def times(acts: Mapping[str, Act], *, repeats: int, told: Told, warm: bool = True) -> dict[str, list[float]]:
    """Seconds of each act, each repeat; with `warm`, each has run once before."""
    found: dict[str, list[float]] = {name: [] for name in acts}
    for turn in range(-1 if warm else 0, repeats):
        for name, act in acts.items():
            told(f"{name}: " + ("warming up" if turn < 0 else f"{turn + 1} of {repeats}"))
            ready = act.before()
            began = time.perf_counter()
            kept = act.run(ready)
            seconds = time.perf_counter() - began
            del kept, ready
            if turn >= 0:
                found[name].append(seconds)
    return found
