"""How often a finder puts the passage that answers a question first, and how often it finds where nothing answers.

Memories are made as `beacon-memory fit-finder` makes them, folded at 2x to 32x in turn: with another `--seed`, at other
places and with other facts. `first` and `second`: the right passage has the best score, or one of the best two.
`read again`: it is first and scores at least the threshold. `false`: a question of another memory finds something.
`unfitted`: the mean of all heads, without a finder.

    python -m benchmarks.quality.found_passages NOVELS fairytaleqa/val.jsonl --lengths 1024,2048 --memories 60
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from beacon_memory import BeaconModel
from beacon_memory.config import RATIOS
from beacon_memory.fold.family import kv_heads
from beacon_memory.models.finder import Finder, levelled
from beacon_memory.training.data import read_corpus
from beacon_memory.training.finder import Looked, look
from benchmarks.record import stamp


@dataclass(frozen=True)
class Asked:
    """A question of a memory at one ratio, and what a finder made of it."""

    ratio: int
    scores: Tensor  # (passages,)
    right: Tensor  # (passages,), bool
    foreign: bool


def asked_of(
    finder: Finder, looked: Sequence[Looked], *, ratio: int, all_heads: Sequence[tuple[int, int]]
) -> list[Asked]:
    """What a finder makes of the questions of one memory, at which `all_heads` looked."""
    heads = torch.tensor([all_heads.index(head) for head in finder.heads])
    weights = torch.tensor(finder.weights)

    def scores(one: Looked) -> Tensor:
        return levelled(weights @ one.attention[heads], finder.baseline * (weights @ one.idle[heads]))

    return [Asked(ratio, scores(one), one.right, one.foreign) for one in looked]


def row(found: Iterable[Asked], threshold: float) -> dict[str, float]:
    """The shares of these questions."""
    found = list(found)
    answered = [one for one in found if one.right.any()]
    foreign = [one for one in found if one.foreign]

    def share(asked: Sequence[Asked], which: Callable[[Asked], bool]) -> float:
        return round(sum(map(which, asked)) / max(len(asked), 1), 3)

    def best(one: Asked, count: int) -> bool:
        return bool(one.right[one.scores.argsort(descending=True)[:count]].any())

    return {
        "questions": len(answered),
        "first": share(answered, lambda one: best(one, 1)),
        "second": share(answered, lambda one: best(one, 2)),
        "read again": share(answered, lambda one: best(one, 1) and float(one.scores.max()) >= threshold),
        "foreign": len(foreign),
        "false": share(foreign, lambda one: float(one.scores.max()) >= threshold),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="as fit-finder takes them")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--adapter", default="auto", help="the folder that the finder is in")
    parser.add_argument("--lengths", default="1024,2048", help="tokens of a memory")
    parser.add_argument("--memories", type=int, default=60)
    parser.add_argument("--seed", type=int, default=99, help="another than the finder was fitted with, which was 0")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    model = BeaconModel.from_pretrained(args.model, adapter=args.adapter)
    if model.finder is None:
        sys.exit("this model has no finder")
    lengths = [int(length) for length in args.lengths.split(",")]
    ratios = [ratio for ratio in RATIOS[1:] if not model.config.window % ratio]  # in turn, as `look` takes them
    all_heads = kv_heads(model.lm.config)
    alike = Finder(tuple(all_heads), (1.0,) * len(all_heads), float("inf"))
    found, unfitted = list[Asked](), list[Asked]()
    looks = look(model, read_corpus(args.files), memories=args.memories, lengths=lengths, seed=args.seed)
    for number, looked in enumerate(track(looks, total=args.memories, description="looking", transient=True)):
        ratio = ratios[number % len(ratios)]
        found += asked_of(model.finder, looked, ratio=ratio, all_heads=all_heads)
        unfitted += asked_of(alike, looked, ratio=ratio, all_heads=all_heads)
    rows = {f"{ratio}x": row([one for one in found if one.ratio == ratio], model.finder.threshold) for ratio in ratios}
    rows |= {"all": row(found, model.finder.threshold), "unfitted": row(unfitted, alike.threshold)}
    for name, shares in rows.items():
        print(f"{name:>8}", "  ".join(f"{what} {value}" for what, value in shares.items()))
    if args.out:
        args.out.write_text(json.dumps({**stamp(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
