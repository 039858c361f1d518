"""Measuring: every task with every method at every ratio, item by item, what is on disk already left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from beacon_memory.config import BeaconConfig
from beacon_memory.evaluation.items import Item, Task
from beacon_memory.evaluation.memories import Memories
from beacon_memory.evaluation.methods import Method, attach
from beacon_memory.evaluation.reading import answer_losses, greedy
from beacon_memory.evaluation.reporting.figures import Score, f1, rank_right
from beacon_memory.evaluation.reporting.results import Cell, Results, Row
from beacon_memory.models.model import BeaconModel

ANSWER = 16  # tokens of an answer that is written
Progress = Callable[[str, int], None]  # what is measured, and how many items of a cell are done


def measure(
    lm: Any,
    tokenizer: Any,
    task: Task,
    methods: Sequence[Method],
    ratios: Sequence[int],
    *,
    results: Results,
    common: BeaconConfig,
    seconds: float,
    progress: Progress | None = None,
) -> list[Cell]:
    """The cells of a task, measured: `results` has a row for each item, up to so many seconds a cell.

    Items are the outer loop, so that cells share a raw pass and an interrupted run has as many items of each.
    """
    cells: list[Cell] = []
    for _, group in groupby(sorted(methods, key=_attached), key=_attached):
        sharing = list(group)
        model = attach(lm, tokenizer, sharing[0], common)
        try:
            cells += _measure(model, task, sharing, ratios, results=results, seconds=seconds, progress=progress)
        finally:
            model.detach()
    return cells


def _attached(method: Method) -> tuple[str, str]:
    return str(method.adapter or ""), method.anchors or ""


def _measure(
    model: BeaconModel,
    task: Task,
    methods: Sequence[Method],
    ratios: Sequence[int],
    *,
    results: Results,
    seconds: float,
    progress: Progress | None,
) -> list[Cell]:
    planned = [
        (method, Cell(task.name, method.name, ratio, _weights(model)))
        for method in methods
        for ratio in method.ratios(ratios)
    ]
    spent = {cell: sum(row.seconds for row in results.rows.values() if row.cell == cell) for _, cell in planned}
    for index, item in enumerate(task.items):
        memories = Memories(model, item, raw=task.raw)
        for method, cell in planned:
            if (cell, item.digest) not in results.rows and spent[cell] < seconds:
                other = _another(task, index) if method.foreign else item
                if other is None:
                    continue
                began = time.perf_counter()
                made = Memories(model, other, raw=task.raw) if method.foreign else memories
                entries, scores = _score(made, method, cell.ratio, item)
                row = Row(cell, item.digest, entries, round(time.perf_counter() - began, 3), scores)
                results.add(row)
                spent[cell] += row.seconds
            if progress:
                progress(f"{task.name}, {method.name}", 1)
    return [cell for _, cell in planned]


def _weights(model: BeaconModel) -> str:
    """Whose figures they are: another one's, or those of other windows, are other figures."""
    overlap = f"+{model.config.overlap}" if model.config.overlap else ""
    return f"{model.fingerprint}/{model.config.document_window}{overlap}"


def _score(memories: Memories, method: Method, ratio: int, item: Item) -> tuple[int, tuple[Score, ...]]:
    """The entries of an item's memory and what each question gave; no score where it does not fit."""
    model, questions = memories.model, item.questions
    apart = method.kind == "bm25"  # a retriever reads something else for each question
    shared = None if apart else memories.make(method.kind, ratio)
    found: list[Score] = []
    entries: list[int] = []
    written: list[list[int]] = []
    for question in questions:
        memory = memories.make(method.kind, ratio, question) if apart else shared
        if memory is None or memory.slots + _room(item) > model.positions:
            return 0, ()
        entries.append(memory.slots)
        losses = answer_losses(model, memory, item, question)
        right = rank_right([float(loss.sum()) for loss in losses])
        found.append(Score(round(float(losses[0].mean()), 5), right, group=question.group))
        if apart and question.gold:
            written += greedy(model, memory, item, [question], limit=ANSWER)
    if shared is not None and questions[0].gold:
        written = greedy(model, shared, item, questions, limit=ANSWER)
    if written:
        answers = zip(found, written, questions, strict=True)
        found = [_with_f1(score, model.decode(ids), question.gold) for score, ids, question in answers]
    return round(sum(entries) / len(entries)), tuple(found)


def _with_f1(score: Score, answer: str, gold: Sequence[str]) -> Score:
    return Score(score.loss, score.right, round(f1(answer, gold), 5), score.group)


def _room(item: Item) -> int:
    """The positions that reading an item's questions takes."""
    longest = max(len(q.prompt) + max(max(map(len, q.answers)), ANSWER if q.gold else 0) for q in item.questions)
    return len(item.start) + longest


def _another(task: Task, index: int) -> Item | None:
    """The item of another document that is nearest in length; of equals, the nearest one before."""
    own = task.items[index]
    others = [task.items[index - back] for back in range(1, len(task.items))]
    foreign = [item for item in others if item.source != own.source]
    return min(foreign, key=lambda item: abs(len(item.context) - len(own.context)), default=None)
