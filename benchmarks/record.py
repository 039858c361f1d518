"""Results as JSON lines: what was measured, by which command, on which machine, with which versions."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
PACKAGES = ("torch", "transformers", "safetensors", "redis")


@dataclass(frozen=True)
class Against:
    """Ours beside one baseline: ours / baseline where less is better, baseline / ours where `faster` counts.

    Without a baseline the figure is ours alone.
    """

    baseline: str | None
    most: float | None = None  # the target, where there is one
    least: float | None = None
    faster: bool = False

    def row(self, ours: float, medians: Mapping[str, float]) -> dict[str, Any]:
        """The comparison as it is kept."""
        baseline = None if self.baseline is None else medians[self.baseline]
        figure = ours if baseline is None else baseline / ours if self.faster or self.least else ours / baseline
        met = None
        if self.most is not None:
            met = figure <= self.most
        elif self.least is not None:
            met = figure >= self.least
        return {
            "baseline": self.baseline,
            "figure": figure,
            "faster": bool(self.faster or self.least),
            "target": self.most if self.most is not None else self.least,
            "met": met,
        }


@dataclass(frozen=True)
class Result:
    """One measurement: everyone's numbers, each repeat."""

    line: str  # of the table
    case: str
    ours: str  # who of `values` we are
    values: Mapping[str, Sequence[float]]
    against: Sequence[Against] = ()
    unit: str = "s"
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self, *, form: str) -> dict[str, Any]:
        """The line that is written."""
        medians = {name: statistics.median(values) for name, values in self.values.items()}
        return {
            "line": self.line,
            "case": self.case,
            "form": form,
            "unit": self.unit,
            "ours": self.ours,
            "medians": medians,
            "values": {name: list(values) for name, values in self.values.items()},
            "others": {name: max(getattr(v, "others", 0.0) for v in values) for name, values in self.values.items()},
            "against": [one.row(medians[self.ours], medians) for one in self.against],
            "facts": dict(self.facts),
            **stamp(),
        }


def stamp() -> dict[str, Any]:
    """What every number carries: where, with what, by which command and when it was measured."""
    return {
        "machine": machine(),
        "load": round(os.getloadavg()[0], 1),  # of the minute before: other work makes a time longer
        "versions": versions(),
        "commit": commit(),
        "command": command(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def command() -> str:
    """The command of this process, as it is typed at the root of the repository."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # of `python -m`, where argv begins with a path
    return " ".join(["python", *(["-m", spec.name] if spec else sys.argv[:1]), *sys.argv[1:]])


def machine() -> dict[str, Any]:
    """The machine, as far as it matters to a time."""
    name = platform.processor() or platform.machine()
    try:
        found = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = found[0].split(":")[1].strip()
    except (OSError, IndexError):
        pass
    return {
        "cpu": name,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str]:
    """What was measured with what."""
    found = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def commit() -> str:
    """The commit that was measured; a plus where files differ from it."""
    try:
        git = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def read(path: Path) -> list[dict[str, Any]]:
    """The results of a file, oldest first; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def newest(results: Sequence[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """The newest result of each line and case."""
    return {(row["line"], row["case"]): row for row in results}


def write(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
