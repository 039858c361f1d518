"""Summing up: a record for each cell, and tables of them for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from beacon_memory.evaluation.items import Task
from beacon_memory.evaluation.reporting.figures import Figure, Scores, figures, grouped
from beacon_memory.evaluation.reporting.results import Cell, Results

TITLE = "# What a memory is worth"
RAW = {"said": "said", "accuracy": "right"}  # the score that a headline is the mean of; the loss for any other
NONE_SAID = 0.1  # what may be said rightly by somebody who has read nothing: more, and the questions give it away
CONTROL_KEPT = 0.2  # what memory of another document may seem to keep: a text of any kind helps a little


@dataclass(frozen=True)
class Summary:
    """A cell summed up."""

    cell: Cell
    metric: str  # the headline's name
    figures: Mapping[str, Figure]
    groups: Mapping[str, float]  # the headline's raw score by group
    items: int  # contexts
    questions: int
    planned: int  # questions asked for; fewer were scored where time ran out or memory did not fit
    unfit: int  # contexts whose memory does not fit the model's window
    entries: float  # KV entries, the mean over contexts
    seconds: float

    @property
    def headline(self) -> Figure | None:
        """The task's figure, where there is one."""
        return self.figures.get(self.metric)

    @property
    def label(self) -> str:
        """The method, and its ratio where it has one."""
        return self.cell.method if self.cell.ratio < 2 else f"{self.cell.method} {self.cell.ratio}x"

    def record(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """The cell as a line of JSON."""
        head = self.headline
        return {
            "task": self.cell.task,
            "method": self.cell.method,
            "ratio": self.cell.ratio,
            "metric": self.metric,
            "value": head and round(head.value, 4),
            "interval": head and [round(head.low, 4), round(head.high, 4)],
            "items": self.questions,
            "planned": self.planned,
            "contexts": self.items,
            "unfit": self.unfit,
            "entries": round(self.entries, 1),
            "seconds": round(self.seconds, 1),
            "weights": self.cell.weights,
            "figures": {name: {k: round(v, 4) for k, v in asdict(f).items()} for name, f in self.figures.items()},
            "groups": {name: round(value, 4) for name, value in self.groups.items()},
            **about,
        }


def summarise(task: Task, cells: Sequence[Cell], results: Results, *, seed: int = 0) -> list[Summary]:
    """The cells of a task in the order they were measured; `kept` and `share` where `full` and `none` were too."""
    found: dict[Cell, Scores] = {}
    for cell in cells:
        rows = [results.rows[cell, item.digest] for item in task.items if (cell, item.digest) in results.rows]
        found[cell] = {row.item: row.scores for row in rows if row.scores}
    ends = [next((scores for cell, scores in found.items() if cell.method == name), {}) for name in ("full", "none")]
    written = any(score.said is not None for scores in found.values() for many in scores.values() for score in many)
    metric = "said" if written else task.metric
    summaries = []
    for cell, scores in found.items():
        rows = [results.rows[cell, item.digest] for item in task.items if (cell, item.digest) in results.rows]
        fitting = [row for row in rows if row.scores]
        summaries.append(
            Summary(
                cell=cell,
                metric=metric,
                figures=figures(scores, full=ends[0], none=ends[1], seed=seed),
                groups=grouped(scores, RAW.get(metric, "loss")),
                items=len(fitting),
                questions=sum(len(row.scores) for row in fitting),
                planned=sum(len(item.questions) for item in task.items),
                unfit=len(rows) - len(fitting),
                entries=sum(row.entries for row in fitting) / max(len(fitting), 1),
                seconds=sum(row.seconds for row in rows),
            )
        )
    return summaries


def rows(summaries: Sequence[Summary], figure: str) -> tuple[list[int], list[tuple[str, list[str]]]]:
    """The ratios, and for each method a figure at each of them; `full` and `none` have the same one at all."""
    ratios = sorted({s.cell.ratio for s in summaries if s.cell.ratio > 1}) or [1]
    by_method: dict[str, dict[int, Summary]] = {}
    for summary in summaries:
        by_method.setdefault(summary.cell.method, {})[summary.cell.ratio] = summary
    found = []
    for method, by_ratio in by_method.items():
        ends = by_ratio.get(1) or by_ratio.get(0)
        shown = [_shown(by_ratio.get(ratio) or ends, figure) for ratio in ratios]
        found.append((method, shown))
    return ratios, found


def _shown(summary: Summary | None, figure: str) -> str:
    found = summary.figures.get(figure) if summary else None
    if summary is None or found is None:
        return "—"
    early = "" if summary.questions + 0 >= summary.planned else f" ({summary.questions})"
    return f"{found.value:.2f} ±{(found.high - found.low) / 2:.2f}{early}"


def columns(task: Task, summaries: Sequence[Summary]) -> list[str]:
    """The figures worth a table: those of written answers, then those of ranked ones, where they were measured."""
    found = ["said", "said_share", "f1"]
    if task.metric == "accuracy":
        found += ["accuracy", "share"]
    elif task.name == "qa":
        found += ["kept", "accuracy"]
    else:
        found += [task.metric] if task.metric == "loss" else [task.metric, "loss"]
    measured = {name for summary in summaries for name in summary.figures}
    return [name for name in found if name in measured]


def terminal_tables(task: Task, summaries: Sequence[Summary]) -> list[Table]:
    """A table per figure, for a terminal."""
    found = []
    for figure in columns(task, summaries):
        ratios, lines = rows(summaries, figure)
        table = Table(title=f"{task.name}: {figure}", title_justify="left")
        table.add_column("")
        for ratio in ratios:
            table.add_column(f"{ratio}x", justify="right")
        for method, shown in lines:
            table.add_row(method, *shown)
        found.append(table)
    return found


def markdown(measured: Sequence[tuple[Task, Sequence[Summary]]], *, command: str, about: Mapping[str, Any]) -> str:
    """All tables as one page."""
    parts = [TITLE, f"```\n{command}\n```", _line(about)]
    for task, summaries in measured:
        parts.append(f"## {task.name}\n{task.about}.")
        for figure in columns(task, summaries):
            ratios, lines = rows(summaries, figure)
            head = f"| {figure} | {' | '.join(f'{ratio}x' for ratio in ratios)} |\n|---{'|---:' * len(ratios)}|"
            body = [f"| {method} | {' | '.join(shown)} |" for method, shown in lines]
            parts.append("\n".join([head, *body]))
        if by_group := _groups(summaries):
            parts.append(by_group)
        parts += [text for text in (verdict(summaries), _entries(summaries), seconds_spent(summaries)) if text]
    parts.append(
        "± is half of a 95 % bootstrap interval over contexts; a number in brackets is how many questions were scored "
        "where time ran out or some memories did not fit the model's window; — is none. kept: (none − method) / "
        "(none − full) in loss. share: accuracy / that of full. said: the right value stands in the answer that was "
        "written; said_share: the same / that of full; f1: the answer's overlap with the right one in words."
    )
    return "\n\n".join(parts) + "\n"


def _groups(summaries: Sequence[Summary]) -> str:
    """The headline's raw score by group, where there are groups."""
    names = list(dict.fromkeys(name for summary in summaries for name in summary.groups if name))
    if not names:
        return ""
    raw = summaries[0].metric if summaries[0].metric in RAW else "loss"
    lines = [f"| {raw} | {' | '.join(names)} |\n|---{'|---:' * len(names)}|"]
    for summary in summaries:
        shown = [f"{summary.groups[name]:.2f}" if name in summary.groups else "—" for name in names]
        lines.append(f"| {summary.label} | {' | '.join(shown)} |")
    return "\n".join(lines)


def verdict(summaries: Sequence[Summary]) -> str:
    """Whether the control fails as it must: the memory of another document, no better than none."""
    by_method = {summary.cell.method: summary for summary in summaries}
    control, none = by_method.get("control"), by_method.get("none")
    name = summaries[0].metric if summaries and summaries[0].metric in RAW else "kept"
    found = control.figures.get(name) if control else None
    least = none.figures.get(name) if none else None
    leak = ""
    if name == "said" and least is not None:
        known = "fails, as it must" if least.value < NONE_SAID else "DOES NOT FAIL: the questions give it away"
        leak = f"None: said {_interval(least)}, {known}. "
    if found is None or least is None:
        return leak.strip()
    limit = least.high if name in RAW else CONTROL_KEPT
    said = "fails, as it must"
    if found.low > limit:
        said = "DOES NOT FAIL: these figures flatter"
    elif found.value > limit:
        said = "may fail, as it must: too few items to tell"
    control_said = f"Control (memory of another document): {name} {_interval(found)}, {said}."
    return leak + control_said + _raw(by_method, name)


def _raw(by_method: Mapping[str, Summary], name: str) -> str:
    """What the figure owes to there being a text at all: the same document in front, whole and raw."""
    whole = by_method.get("control-full")
    found = whole.figures.get(name) if whole else None
    return f" The whole of that document, raw: {_interval(found)}." if found else ""


def _interval(figure: Figure) -> str:
    return f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]"


def _entries(summaries: Sequence[Summary]) -> str:
    by_ratio: dict[int, set[int]] = {}
    for summary in summaries:
        if summary.items:
            by_ratio.setdefault(summary.cell.ratio, set()).add(round(summary.entries))
    kept = ", ".join(
        f"{ratio}x {'–'.join(map(str, sorted({min(e), max(e)})))}" for ratio, e in sorted(by_ratio.items()) if ratio
    )
    return f"KV entries kept, sinks and raw tail counted (means): {kept}." if kept else ""


def seconds_spent(summaries: Sequence[Summary]) -> str:
    """What measuring took, by cell, so that a longer run can be planned."""
    found = [
        f"{summary.label} {summary.seconds:.0f} ({summary.seconds / summary.questions:.1f})"
        for summary in summaries
        if summary.questions
    ]
    return f"Seconds a cell (a question): {', '.join(found)}." if found else ""


def _line(about: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value}" for name, value in about.items() if isinstance(value, str | int) and name != "command"
    )
