"""Timing, once for all benchmarks: acts are taken in turn, so that a slow minute of the machine falls on all.

Where other processes took a tenth of the machine or more meanwhile, the act is taken once more, and the less disturbed
time counts. Each time carries what share others had.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Told = Callable[[str], None]

DISTURBED = 0.1  # of all cores, by others
LONG = 5  # seconds: what takes longer is taken as it is
SHORT = 0.5  # seconds: the kernel counts in hundredths, so no share is told of less


@dataclass(frozen=True)
class Act:
    """What is timed, and what is made ready before each time, untimed."""

    run: Callable[[Any], object]
    before: Callable[[], Any] = lambda: None  # gives what `run` gets


class Seconds(float):
    """A time, and the share of the machine that others had meanwhile."""

    others: float = 0.0


def times(acts: Mapping[str, Act], *, repeats: int, told: Told, warm: bool = True) -> dict[str, list[float]]:
    """Seconds of each act, each repeat; with `warm`, each has run once before."""
    found: dict[str, list[float]] = {name: [] for name in acts}
    for turn in range(-1 if warm else 0, repeats):
        for name, act in acts.items():
            told(f"{name}: " + ("warming up" if turn < 0 else f"{turn + 1} of {repeats}"))
            taken = once(act)
            if turn < 0:
                continue
            if taken.others > DISTURBED and taken < LONG:
                told(f"{name}: {turn + 1} of {repeats} again, others had {taken.others:.0%}")
                taken = min(taken, once(act), key=lambda seconds: seconds.others)
            found[name].append(taken)
    return found


def once(act: Act) -> Seconds:
    """One time of an act."""
    ready = act.before()
    before, began = _others(), time.perf_counter()
    kept = act.run(ready)
    seconds = Seconds(time.perf_counter() - began)
    if seconds > SHORT:
        seconds.others = max(0.0, (_others() - before) / (seconds * (os.cpu_count() or 1)))
    del kept, ready
    return seconds


def _others() -> float:
    """Seconds of all cores so far that neither this process nor its children (a Redis server) had; 0 if not told."""
    try:
        tick = os.sysconf("SC_CLK_TCK")
        user, nice, system, _, _, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
        ours = time.process_time()
        for task in Path("/proc/self/task").iterdir():
            for child in (task / "children").read_text().split():
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                ours += (int(fields[11]) + int(fields[12])) / tick
        return (user + nice + system + irq + soft + steal) / tick - ours
    except (OSError, ValueError):
        return 0.0
