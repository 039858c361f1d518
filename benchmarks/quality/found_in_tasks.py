"""How often the passage that says the answer is found, in tasks of the evaluation: by the finder, by words, by both.

A passage is right if it has one of the answers in its words; questions whose answers stand in none, or in more than
three, are left out. `attention`, `words` and `both` are what `finder=` names; `again` is how often a right passage is
read again. `bm25` is BM25 over the same passages, as a retriever does it. `ranks` ranks by the sum of
1 / (60 + rank) of attention and BM25 (reciprocal rank fusion). `other words`: only questions that share no word with a
right passage, stop words aside.

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
from beacon_memory.models.finder import Finder, finder_by
from beacon_memory.talk.transcript import Transcript
from beacon_memory.talk.words import shares
from benchmarks.record import stamp

FUSED = 60  # of reciprocal rank fusion
AMBIGUOUS = 3  # right passages of a question, at most


@dataclass(frozen=True)
class Found:
    """What each passage scores for one question."""

    attention: list[float]
    words: list[float]  # shares of the question's words
    bm25: list[float]
    right: list[bool]

    def scores(self, kind: str, heads: Finder) -> list[float]:
        """The scores by which a kind of finder ranks."""
        if kind == "both":
            weight = finder_by("attention+words", heads).words  # type: ignore[union-attr]
            return [paid + weight * share for paid, share in zip(self.attention, self.words, strict=True)]
        if kind == "ranks":
            orders = [_order(scores) for scores in (self.attention, self.bm25)]
            ranks = [{place: rank for rank, place in enumerate(order)} for order in orders]
            return [sum(1 / (FUSED + rank[place]) for rank in ranks) for place in range(len(self.right))]
        scores: list[float] = getattr(self, kind)
        return scores

    @property
    def other_words(self) -> bool:
        return not any(score for score, right in zip(self.bm25, self.right, strict=True) if right)

    def best(self, scores: Sequence[float], count: int) -> bool:
        """Whether a right passage is among the first `count`."""
        return any(self.right[place] for place in _order(scores)[:count])

    def again(self, scores: Sequence[float], threshold: float) -> bool:
        """Whether a right passage is read again, where there is room for all."""
        return any(score >= threshold and right for score, right in zip(scores, self.right, strict=True))


def _order(scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda place: (scores[place], place), reverse=True)


def found(model: BeaconModel, task: Task, *, ratio: int) -> Iterator[Found]:
    """What is found for each question of a task that has an answer to find."""
    talk = Transcript(model.tokenizer)
    frame = model.decode(talk.question("."))
    for item in track(task.items, description=f"{task.name}, {ratio}x", transient=True):
        memory = looking(Memories(model, item), "beacon+recall", ratio)
        if memory is None:
            continue
        texts = memory.texts()
        lower = [text.lower() for text in texts]
        for question in item.questions:
            right = [any(gold.lower() in text for gold in question.gold) for text in lower]
            if 0 < sum(right) <= AMBIGUOUS and (scores := memory.scores(question.asked)):
                said = shares(texts, question.query, frame=frame)
                yield Found(scores, said, word_scores(texts, question.query), right)


def row(questions: Sequence[Found], *, heads: Finder) -> dict[str, float]:
    """The shares of these questions."""

    def share(which: Sequence[bool]) -> float:
        return round(sum(which) / max(len(which), 1), 3)

    told: dict[str, float] = {"questions": len(questions)}
    finders = {"attention": heads, "words": finder_by("words", heads), "both": finder_by("attention+words", heads)}
    for kind in (*finders, "bm25", "ranks"):
        scored = [(one, one.scores(kind, heads)) for one in questions]
        for count in (1, 2):
            told[f"{kind}@{count}"] = share([one.best(scores, count) for one, scores in scored])
        if finder := finders.get(kind):
            told[f"{kind} again"] = share([one.again(scores, finder.threshold) for one, scores in scored])
    return told


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
            rows[f"{name} {ratio}x"] = row(questions, heads=model.finder)
            if other := [one for one in questions if one.other_words]:
                rows[f"{name} {ratio}x, other words"] = row(other, heads=model.finder)
    for name, told in rows.items():
        print(f"{name:>26}", "  ".join(f"{what} {value}" for what, value in told.items()))
    if args.out:
        args.out.write_text(json.dumps({**stamp(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
