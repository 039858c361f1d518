"""How often the passage that says the answer is found, in tasks of the evaluation: by the finder, by words, by both.

A passage is right if it has one of the answers in its words; questions whose answers stand in none, or in more than
three, are left out. `words` is BM25 over the same passages. `both` ranks by the sum of 1 / (60 + rank) of the two
(reciprocal rank fusion). `other words`: only questions that share no word with a right passage, stop words aside.

    python -m benchmarks.quality.found_in_tasks --data DATA --tasks needle,qa,dialogue --ratios 4,16 --items 60
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import track

from beacon_memory import BeaconModel
from beacon_memory.evaluation.data import Data
from beacon_memory.evaluation.items import Task
from beacon_memory.evaluation.looking import looking
from beacon_memory.evaluation.memories import Memories
from beacon_memory.evaluation.retrieval import word_scores
from beacon_memory.evaluation.tasks import make_task
from benchmarks.record import stamp

FUSED = 60  # of reciprocal rank fusion
AMBIGUOUS = 3  # right passages of a question, at most


@dataclass(frozen=True)
class Found:
    """What each passage scores for one question."""

    finder: list[float]
    words: list[float]
    right: list[bool]

    @property
    def both(self) -> list[float]:
        orders = [_order(scores) for scores in (self.finder, self.words)]
        ranks = [{place: rank for rank, place in enumerate(order)} for order in orders]
        return [sum(1 / (FUSED + rank[place]) for rank in ranks) for place in range(len(self.right))]

    @property
    def other_words(self) -> bool:
        return not any(score for score, right in zip(self.words, self.right, strict=True) if right)

    def best(self, scores: Sequence[float], count: int) -> bool:
        """Whether a right passage is among the first `count`."""
        return any(self.right[place] for place in _order(scores)[:count])


def _order(scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda place: (scores[place], place), reverse=True)


def found(model: BeaconModel, task: Task, *, ratio: int) -> Iterator[Found]:
    """What is found for each question of a task that has an answer to find."""
    for item in track(task.items, description=f"{task.name}, {ratio}x", transient=True):
        memory = looking(Memories(model, item), "beacon+recall", ratio)
        if memory is None:
            continue
        texts = memory.texts()
        lower = [text.lower() for text in texts]
        for question in item.questions:
            right = [any(gold.lower() in text for gold in question.gold) for text in lower]
            if 0 < sum(right) <= AMBIGUOUS and (scores := memory.scores(question.asked)):
                yield Found(scores, word_scores(texts, question.query), right)


def row(questions: Sequence[Found], *, threshold: float) -> dict[str, float]:
    """The shares of these questions."""

    def share(which: Sequence[bool]) -> float:
        return round(sum(which) / max(len(which), 1), 3)

    shares: dict[str, float] = {"questions": len(questions)}
    for name in ("finder", "words", "both"):
        for count in (1, 2):
            shares[f"{name}@{count}"] = share([one.best(getattr(one, name), count) for one in questions])
    shares["read again"] = share(
        [
            any(score >= threshold and right for score, right in zip(one.finder, one.right, strict=True))
            for one in questions
        ]
    )
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="as beacon-memory eval takes it")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--adapter", default="auto", help="the folder that the finder is in")
    parser.add_argument("--tasks", default="needle,qa,dialogue")
    parser.add_argument("--lengths", default="1024", help="tokens of needle's texts")
    parser.add_argument("--ratios", default="4,16")
    parser.add_argument("--items", type=int, default=60, help="questions of a task")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    model = BeaconModel.from_pretrained(args.model, adapter=args.adapter)
    if model.finder is None:
        parser.error("this model has no finder")
    rows: dict[str, dict[str, float]] = {}
    for name in args.tasks.split(","):
        lengths = {"lengths": [int(length) for length in args.lengths.split(",")]} if name == "needle" else {}
        task = make_task(name, model, Data(args.data), items=args.items, seed=0, **lengths)
        for ratio in map(int, args.ratios.split(",")):
            questions = list(found(model, task, ratio=ratio))
            rows[f"{name} {ratio}x"] = row(questions, threshold=model.finder.threshold)
            if other := [one for one in questions if one.other_words]:
                rows[f"{name} {ratio}x, other words"] = row(other, threshold=model.finder.threshold)
    for name, shares in rows.items():
        print(f"{name:>26}", "  ".join(f"{what} {value}" for what, value in shares.items()))
    if args.out:
        args.out.write_text(json.dumps({**stamp(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
