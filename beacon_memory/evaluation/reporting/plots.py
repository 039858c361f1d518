"""Pictures: quality against ratio for each task, needles by depth and length, and what many slots in front do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beacon_memory.errors import MissingExtra
from beacon_memory.evaluation.items import Task
from beacon_memory.evaluation.methods import CONTROLS
from beacon_memory.evaluation.reporting.tables import Summary

LINES = {"full": "black", "none": "grey", "control-full": "silver"}  # the same at every ratio
HEAT_RATIO = 4


def _canvas(rows: int, columns: int, *, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure and its panels, drawn without a display and without touching pyplot's state. Raises MissingExtra."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise MissingExtra("plots need matplotlib: pip install 'beacon-memory[eval]'") from exc
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def draw(task: Task, summaries: Sequence[Summary], folder: Path) -> list[Path]:
    """The pictures of a task, written to a folder; gives their paths. Raises MissingExtra."""
    found = [_by_ratio(task, summaries, folder)]
    if task.name == "needle":
        found.append(_heat(summaries, folder))
    if task.name == "long":
        found.append(_by_length(summaries, folder))
    if task.name == "near":
        found.append(_by_slots(summaries, folder))
    return found


def _by_ratio(task: Task, summaries: Sequence[Summary], folder: Path) -> Path:
    figure, panels = _canvas(1, 1, size=(7, 4.2))
    panel = panels[0][0]
    ratios = sorted({s.cell.ratio for s in summaries if s.cell.ratio > 1}) or [1]
    for method in dict.fromkeys(summary.cell.method for summary in summaries):
        own = [(s.cell.ratio, s.headline) for s in summaries if s.cell.method == method]
        known = [(ratio, head) for ratio, head in own if head is not None]
        if not known:
            continue
        if method in LINES:
            style: dict[str, Any] = {"color": LINES[method], "linestyle": ":"}
            panel.axhline(known[0][1].value, label=method, **style)
            continue
        values = [head.value for _, head in known]
        below = [head.value - head.low for _, head in known]
        above = [head.high - head.value for _, head in known]
        style = {"linestyle": "--"} if not method.startswith("beacon") else {"linewidth": 2.2}
        panel.errorbar([r for r, _ in known], values, yerr=[below, above], marker="o", capsize=2, label=method, **style)
    metric = summaries[0].metric if summaries else task.metric
    panel.set(title=f"{task.name}: {task.about}", xlabel="tokens per KV entry", ylabel=metric, xscale="log")
    panel.set_xticks(ratios, [f"{ratio}x" for ratio in ratios])
    panel.minorticks_off()
    panel.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    return _save(figure, folder / f"{task.name}.png")


def _heat(summaries: Sequence[Summary], folder: Path) -> Path:
    """Accuracy by depth and length, a panel per method, at 4x."""
    ratios = {s.cell.ratio for s in summaries if s.cell.ratio > 1}
    ratio = HEAT_RATIO if HEAT_RATIO in ratios else min(ratios, default=1)
    shown = [s for s in summaries if s.cell.ratio in (ratio, 1) and s.groups and s.cell.method not in CONTROLS]
    figure, panels = _canvas(1, max(len(shown), 1), size=(2.1 * max(len(shown), 1) + 1, 2.8))
    places = [tuple(group.split(" tokens, depth ")) for s in shown for group in s.groups]
    lengths = sorted({length for length, _ in places}, key=int)
    depths = sorted({depth for _, depth in places}, key=float)
    for panel, summary in zip(panels[0], shown, strict=False):
        nan = float("nan")
        grid = [[summary.groups.get(f"{n} tokens, depth {depth}", nan) for n in lengths] for depth in depths]
        panel.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        for row, values in enumerate(grid):
            for column, value in enumerate(values):
                if value == value:
                    panel.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=6)
        panel.set_xticks(range(len(lengths)), [f"{int(n) // 1024}K" if int(n) >= 1024 else n for n in lengths])
        panel.set_yticks(range(len(depths)), depths)
        panel.tick_params(labelsize=7)
        name = summary.cell.method if summary.cell.ratio == 1 else f"{summary.cell.method} {ratio}x"
        panel.set_title(name, fontsize=8)
    panels[0][0].set_ylabel("depth of the fact", fontsize=8)
    return _save(figure, folder / "needle-heat.png")


def _by_length(summaries: Sequence[Summary], folder: Path) -> Path:
    """Loss against length, a line per method, at 4x."""
    ratios = {s.cell.ratio for s in summaries if s.cell.ratio > 1}
    ratio = HEAT_RATIO if HEAT_RATIO in ratios else min(ratios, default=1)
    figure, panels = _canvas(1, 1, size=(7, 4.2))
    panel = panels[0][0]
    for summary in summaries:
        if summary.cell.ratio not in (0, 1, ratio) or summary.cell.method in CONTROLS or not summary.groups:
            continue
        lengths = [int(group.split()[0]) for group in summary.groups]
        panel.plot(lengths, list(summary.groups.values()), marker="o", label=summary.cell.method)
    panel.set(title=f"long: loss after more and more of a novel, {ratio}x", xlabel="tokens before", ylabel="loss")
    panel.set_xscale("log", base=2)
    panel.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    return _save(figure, folder / "long-length.png")


def _by_slots(summaries: Sequence[Summary], folder: Path) -> Path:
    """What is said of the raw tail against the slots in front of it, a line per method."""
    figure, panels = _canvas(1, 1, size=(7, 4.2))
    panel = panels[0][0]
    names: list[str] = []
    for summary in summaries:
        by_slots = {name.split()[0]: value for name, value in summary.groups.items() if name.endswith(" slots")}
        names += [name for name in by_slots if name not in names]
        panel.plot([names.index(name) for name in by_slots], list(by_slots.values()), marker="o", label=summary.label)
    panel.set_xticks(range(len(names)), names)
    metric = summaries[0].metric if summaries else ""
    panel.set(title="near: what was said just now", xlabel="slots of something else in front", ylabel=metric)
    panel.set_ylim(0, 1)
    panel.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    return _save(figure, folder / "near-slots.png")


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return path
