"""Which training recipe buys most: variants at equal tokens, side by side, on held-out prose and exact recall.

Each variant begins with the same scorer and no beacons, trains on the same examples (a context of 192 tokens of a
novel, the 128 that follow, and 128 of it again) and is then measured: `prose`, the next-token loss behind 256 folded
tokens; `copy`, the same behind 128 folded tokens that are said again.

    beacon-memory fit-anchors NOVELS --tokens 40000 --out SCORER
    python -m benchmarks.quality.training_recipes --texts DIR_OF_TXT --scorer SCORER --variants base,interleave \
        --out benchmarks/results/recipe.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from beacon_memory import BeaconModel
from beacon_memory.training.data import Corpus
from beacon_memory.training.examples import Mixture
from beacon_memory.training.objective import Weights
from beacon_memory.training.trainer import Plan, settings, train
from benchmarks.quality.next_token_loss import loss, places
from benchmarks.record import stamp

BASE = {"rank": 32, "reach": 2, "learning_rate": 3e-3, "schedule": "linear"}
MIXTURE = Mixture(text=1, question=0, dialogue=0, windows=(192,), depth=1, tail=128, batch=2)
VARIANTS: dict[str, dict[str, Any]] = {
    "untrained": {"steps": 0},
    "untrained-learned": {"steps": 0, "anchors": "learned"},
    "base": {},
    "learned": {"anchors": "learned"},
    "anchors": {"learn": "anchors"},
    "reach0": {"reach": 0},
    "reach1": {"reach": 1},
    "full": {"rank": 0, "reach": 0, "learning_rate": 1e-3},
    "lr3e-4": {"learning_rate": 3e-4},
    "lr1e-3": {"learning_rate": 1e-3},
    "lr6e-3": {"learning_rate": 6e-3},
    "next-token": {"weights": Weights(next_token=1, teacher=0, hidden=0, context=None)},
    "hidden": {"weights": Weights(hidden=1)},
    "no-copy": {"again": False},
    "last": {"anchors": "last"},
    "spread:3+last:1": {"anchors": "spread:3+last:1"},
    "shadow": {"layout": "shadow", "anchors": "last", "reach": 0},
    # The paper's own: full projections, next-token loss on what follows.
    "interleave": {
        "layout": "interleave",
        "anchors": "last",
        "rank": 0,
        "reach": 0,
        "learning_rate": 1e-3,
        "weights": Weights(next_token=1, teacher=0, hidden=0, context=None),
        "again": False,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--texts", type=Path, required=True, help="a folder of .txt files")
    parser.add_argument("--scorer", required=True, help="what all variants begin with: an adapter of fit-anchors")
    parser.add_argument("--held-out", type=int, default=10, help="how many of them, the last by name")
    parser.add_argument("--tokens", type=int, default=50_000, help="of contexts and tails, for each variant")
    parser.add_argument("--places", type=int, default=10)
    parser.add_argument("--variants", default="untrained,base")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    logging.disable_progress_bar()
    corpus = Corpus(texts=[file.read_text("utf-8") for file in sorted(args.texts.glob("*.txt"))[: -args.held_out]])
    for name in args.variants.split(","):
        how = BASE | VARIANTS[name]
        layout, anchors = how.pop("layout", None), how.pop("anchors", "spread")
        weights, again = how.pop("weights", Weights()), how.pop("again", True)
        model = BeaconModel.from_pretrained(args.model, adapter=args.scorer)
        model.adapted(settings(model, layout=layout, anchors=anchors))
        found = places(model, args.texts, held_out=args.held_out, count=args.places)
        began = time.perf_counter()
        example = MIXTURE.batch * (sum(MIXTURE.windows) + MIXTURE.tail * (1 + again))
        if how.setdefault("steps", args.tokens // example):
            with tempfile.TemporaryDirectory() as folder:
                mixture = replace(MIXTURE, again=again)
                train(model, corpus, folder, plan=Plan(**how, save_every=10_000), mixture=mixture, weights=weights)
        row: dict[str, Any] = {"variant": name, "steps": how["steps"], "seconds": round(time.perf_counter() - began)}
        for ratio in (2, 4, 8):
            model.adapted(model.config.replace(ratio=ratio, window=256))
            prose = [loss(model, ids[256:], model.compress(ids[:256], close=True)) for ids in found]
            copy = [loss(model, ids[:128], model.compress(ids[:128], close=True)) for ids in found]
            row[f"prose {ratio}x"], row[f"copy {ratio}x"] = (round(sum(v) / len(v), 3) for v in (prose, copy))
        print(json.dumps(row), file=sys.stdout, flush=True)
        if args.out:
            with args.out.open("a") as file:
                file.write(json.dumps(row | stamp()) + "\n")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
