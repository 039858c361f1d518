"""The tables of docs/ranking.md, from the cells that collect_evaluation.py keeps. Run by it, or by itself:

python -m benchmarks.reports.quality_tables
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import HERE
from benchmarks.reports.speed_tables import fill

RESULTS = HERE / "results" / "evaluation"
Cell = dict[str, Any]
Cells = Mapping[tuple[str, str, int], Cell]  # by task, method, ratio

NAMES = {
    "full": "full context",
    "none": "nothing",
    "last-window": "newest tokens, raw",
    "bm25": "BM25 chunks, read raw",
    "kv-subsample": "every n-th KV entry",
    "eviction": "eviction (Expected Attention, 2510.00636)",
    "beacon-last": "beacons untrained: last token of each unit",
    "beacon-reconstruct": "beacons untrained: chosen by a second pass",
    "beacon-interleave": "the paper's `interleave` and objective",
    "beacon-scorer": "beacons, scorer alone",
    "beacon": "**beacons, trained**",
    "control": "control: memory of another text, 4x",
    "control-full": "the whole of that text, raw",
}
NONE = "–"  # was not measured
AIMS = {  # at 2x, 4x, 8x
    ("copy", "loss"): "0.4 / 0.9 / 1.6",
    ("prose", "kept"): "0.95 / 0.88 / 0.80",
    ("dialogue", "share"): "0.97 / 0.90 / 0.80",
    ("qa", "kept"): "0.92 / 0.80 / 0.65",
}
TABLES = {  # the columns of each: task, figure, heading
    "quality": (
        ("copy", "loss", "copy: loss"),
        ("prose", "kept", "prose: gap kept"),
        ("dialogue", "accuracy", "dialogue: right of 8"),
        ("dialogue", "share", "share of full's"),
    ),
    "qa": (("qa", "kept", "kept"), ("qa", "accuracy", "right of 8"), ("qa", "f1", "F1")),
    "needle": (("needle", "accuracy", "right of 10"), ("needle", "loss", "nats a token of the right code")),
}


def cells(folder: Path) -> dict[tuple[str, str, int], Cell]:
    """Every cell of these results; of `long`, whose runs ask different things, see `by_length`."""
    found: dict[tuple[str, str, int], Cell] = {}
    for file in sorted(folder.glob("*.cells.jsonl")):
        for cell in map(json.loads, file.read_text().splitlines()):
            found.setdefault((cell["task"], cell["method"], cell["ratio"]), cell)
    return found


def compared(found: Cells, columns: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """A row for each method that was measured, a column for each figure: its values at all ratios."""
    yield from _head("", [heading for *_, heading in columns])
    for method in NAMES:
        values = [_values(found, task, method, figure) for task, figure, _ in columns]
        if any(value != NONE for value in values):
            yield _row(method, values)
    aims = [AIMS.get((task, figure), "") for task, figure, _ in columns]
    if any(aims):
        yield "| aim | " + " | ".join(aims) + " |"


def by_length(file: Path) -> Iterator[str]:
    """A row for each method of one run of `long`, a column for each length."""
    found = {cell["method"]: cell["groups"] for cell in map(json.loads, file.read_text().splitlines())}
    lengths = sorted({group for groups in found.values() for group in groups}, key=lambda name: int(name.split()[0]))
    yield from _head("tokens before", [f"{int(name.split()[0]) // 1024}K" for name in lengths])
    for method in NAMES:
        if groups := found.get(method):
            yield _row(method, [f"{groups[length]:.2f}" if length in groups else NONE for length in lengths])


def _head(corner: str, headings: Sequence[str]) -> list[str]:
    return [f"| {corner}".rstrip() + " | " + " | ".join(headings) + " |", "|---" * (1 + len(headings)) + "|"]


def _row(method: str, values: Sequence[str]) -> str:
    shown = [f"**{value}**" for value in values] if method == "beacon" else values
    return f"| {NAMES[method]} | " + " | ".join(shown) + " |"


def _values(found: Cells, task: str, method: str, figure: str) -> str:
    of_method = {ratio: cell["figures"] for (t, m, ratio), cell in found.items() if (t, m) == (task, method)}
    return " / ".join(f"{of_method[ratio][figure]['value']:.2f}" for ratio in sorted(of_method)) or NONE


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "ranking.md")
    args = parser.parse_args(argv)
    found = cells(args.results)
    blocks = {name: list(compared(found, columns)) for name, columns in TABLES.items()}
    for name, run in (("long 8x", "F5"), ("long 4x", "F6")):
        blocks[name] = list(by_length(args.results / f"{run}.cells.jsonl"))
    fill(args.page, blocks)


if __name__ == "__main__":
    main()
