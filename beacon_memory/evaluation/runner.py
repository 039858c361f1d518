"""Measuring: every task with every method at every ratio, item by item, what is on disk already left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import groupby
from typing import Any

from beacon_memory.config import RECALL_TOKENS, BeaconConfig
from beacon_memory.errors import ConfigError
from beacon_memory.evaluation.items import ANSWERS, Item, Question, Task
from beacon_memory.evaluation.looking import LOOKS, looking
from beacon_memory.evaluation.memories import Memories, Recent
from beacon_memory.evaluation.methods import Method, attach
from beacon_memory.evaluation.reading import answer_losses, greedy
from beacon_memory.evaluation.reporting.figures import Score
from beacon_memory.evaluation.reporting.results import Cell, Results, Row
from beacon_memory.evaluation.scoring import f1, rank_right, said
from beacon_memory.fold.prefix import Prefix
from beacon_memory.models.model import BeaconModel

ANSWER = 40  # tokens of an answer that is written
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
    answers: Sequence[str] = ANSWERS,
    progress: Progress | None = None,
) -> list[Cell]:
    """The cells of a task, measured: `results` has a row for each item, up to so many seconds a cell.

    Items are the outer loop, so that cells share a raw pass and an interrupted run has as many items of each. A row
    that lacks some of `answers` gets them beside what it has. Raises ConfigError for a task none of them suits.
    """
    wanted = suitable(task, answers)
    measured: list[Cell] = []
    for _, group in groupby(sorted(methods, key=_attached), key=_attached):
        sharing = list(group)
        model = attach(lm, tokenizer, sharing[0], common)
        try:
            measured += _measure(model, task, sharing, ratios, wanted, results, seconds=seconds, progress=progress)
        finally:
            model.detach()
    return measured


def cells(task: Task, methods: Sequence[Method], ratios: Sequence[int]) -> int:
    """How many cells a task has."""
    return len(_planned(task, methods, ratios))


def _planned(task: Task, methods: Sequence[Method], ratios: Sequence[int]) -> list[tuple[Method, int]]:
    """The methods that a task is measured with, each with its ratios: where nobody asks, nothing is looked for."""
    asking = [method for method in methods if method.kind not in LOOKS or task.written]
    return [(method, ratio) for method in asking for ratio in method.ratios([task.ratio] if task.ratio else ratios)]


def suitable(task: Task, answers: Sequence[str]) -> tuple[str, ...]:
    """Those of `answers` that a task's questions have. Raises ConfigError where there is none."""
    found = tuple(name for name in answers if name == "ranked" or task.written)
    if not found:
        raise ConfigError(f"nobody asks anything in task {task.name}: it has ranked answers only")
    return found


def _attached(method: Method) -> tuple[str, str, str]:
    return str(method.adapter or ""), method.anchors or "", method.finder


def _measure(
    model: BeaconModel,
    task: Task,
    methods: Sequence[Method],
    ratios: Sequence[int],
    answers: Sequence[str],
    results: Results,
    *,
    seconds: float,
    progress: Progress | None,
) -> list[Cell]:
    planned = [
        (method, Cell(task.name, method.name, ratio, _weights(model, method)))
        for method, ratio in _planned(task, methods, ratios)
    ]
    spent = {cell: sum(row.seconds for row in results.rows.values() if row.cell == cell) for _, cell in planned}
    recent = Recent()
    for index, item in enumerate(task.items):
        memories = Memories(model, item, recent=recent)
        for method, cell in planned:
            row = results.rows.get((cell, item.digest))
            missing = [name for name in answers if row is None or not _has(row, name)]
            if missing and spent[cell] < seconds:
                other = _another(task, index) if method.foreign else item
                if other is None:
                    continue
                began = time.perf_counter()
                made = Memories(model, other, recent=recent) if method.foreign else memories
                entries, scores = _score(made, method, cell.ratio, item, missing)
                took = round(time.perf_counter() - began, 3)
                results.add(_beside(row, Row(cell, item.digest, entries, took, scores)))
                spent[cell] += took
            if progress:
                progress(f"{task.name}, {method.name}", 1)
    return [cell for _, cell in planned]


def _weights(model: BeaconModel, method: Method) -> str:
    """Whose figures they are: another one's, those of other windows or of another finder, are other figures."""
    overlap = f"+{model.config.overlap}" if model.config.overlap else ""
    finder = f"/{sha256(repr(model.finder).encode()).hexdigest()[:8]}" if method.kind in LOOKS else ""
    return f"{model.fingerprint}/{model.config.document_window}{overlap}{finder}"


def _has(row: Row, name: str) -> bool:
    """Whether a row has these answers; one whose memory does not fit has none, and never will."""
    return all((score.said if name == "written" else score.loss) is not None for score in row.scores)


def _beside(before: Row | None, new: Row) -> Row:
    """A row with what was measured before, too."""
    if before is None or not before.scores or not new.scores:
        return new
    scores = []
    for old, score in zip(before.scores, new.scores, strict=True):
        found = {name: value for name, value in vars(score).items() if value is not None}
        scores.append(replace(old, **found))
    return replace(new, seconds=round(before.seconds + new.seconds, 3), scores=tuple(scores))


def _score(
    memories: Memories, method: Method, ratio: int, item: Item, answers: Sequence[str]
) -> tuple[int, tuple[Score, ...]]:
    """The entries of an item's memory and what each question gave; no score where it does not fit."""
    model = memories.model
    if method.kind in LOOKS:
        return _looked(memories, method, ratio, item, answers)
    # A retriever reads something else for each question.
    parts = [[question] for question in item.questions] if method.kind == "bm25" else [list(item.questions)]
    entries: list[int] = []
    found: list[Score] = []
    for questions in parts:
        memory = memories.make(method.kind, ratio, questions[0])
        if memory is None or memory.slots + _room(item) > model.positions:
            return 0, ()
        entries.append(memory.slots)
        found += _answered(model, memory, item, questions, answers)
    return round(sum(entries) / len(entries)), tuple(found)


def _looked(
    memories: Memories, method: Method, ratio: int, item: Item, answers: Sequence[str]
) -> tuple[int, tuple[Score, ...]]:
    """The same of a memory that looks again: its entries are what stands in front and what is read again."""
    model, memory = memories.model, looking(memories, method.kind, ratio)
    if memory is None or memory.past.slots + _room(item) + RECALL_TOKENS > model.positions:
        return 0, ()
    asked = [memory.asked(question) for question in item.questions]
    scores = _answered(model, memory.past, item, [question for question, _ in asked], answers)
    return round(memory.past.slots + sum(again for _, again in asked) / len(asked)), tuple(scores)


def _answered(
    model: BeaconModel, memory: Prefix, item: Item, questions: Sequence[Question], answers: Sequence[str]
) -> list[Score]:
    """What questions gave behind one memory."""
    scores = [Score(group=question.group) for question in questions]
    if "ranked" in answers:
        scores = [
            _ranked(score, model, memory, item, question) for score, question in zip(scores, questions, strict=True)
        ]
    if "written" in answers and questions[0].gold:
        written = greedy(model, memory, item, questions, limit=ANSWER)
        texts = [model.decode(ids).strip() for ids in written]
        scores = [_written(*one) for one in zip(scores, questions, texts, strict=True)]
    return scores


def _ranked(score: Score, model: BeaconModel, memory: Prefix, item: Item, question: Question) -> Score:
    losses = answer_losses(model, memory, item, question)
    right = rank_right([float(loss.sum()) for loss in losses])
    return replace(score, loss=round(float(losses[0].mean()), 5), right=right)


def _written(score: Score, question: Question, answer: str) -> Score:
    gold = question.gold
    return replace(score, said=said(answer, gold), f1=round(f1(answer, gold), 5), answer=answer)


def _room(item: Item) -> int:
    """The positions that reading an item's questions takes."""
    ranked = max(len(question.prompt) + max(map(len, question.answers)) for question in item.questions)
    written = max((len(question.asked) + ANSWER for question in item.questions if question.gold), default=0)
    return len(item.opening) + max(ranked, written)


def _another(task: Task, index: int) -> Item | None:
    """The item of another document that is nearest in length; of equals, the nearest one before."""
    own = task.items[index]
    others = [task.items[index - back] for back in range(1, len(task.items))]
    foreign = [item for item in others if item.source != own.source]
    return min(foreign, key=lambda item: abs(len(item.context) - len(own.context)), default=None)
