"""What an untrained memory is worth: next-token loss behind a folded context, on held-out prose.

`prose`: 256 tokens are folded, the next 128 scored. `copy`: 128 tokens are folded and the same 128 scored again (exact
recall). Every method sees the same places. `kept` is the share of the gap between no context and full context.

    python -m benchmarks.quality.next_token_loss --texts DIR_OF_TXT --places 64 --out quality.json
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch
from rich.progress import track

from beacon_memory import BeaconConfig, BeaconModel, BeaconState
from benchmarks.record import stamp

FOLDED, SCORED = 256, 128


def places(model: BeaconModel, folder: Path, *, held_out: int, count: int) -> list[list[int]]:
    """Runs of FOLDED + SCORED tokens, spread over the `held_out` texts whose names sort last."""
    files = sorted(folder.glob("*.txt"))[-held_out:]
    texts = [model.encode(file.read_text(encoding="utf-8")) for file in files]
    draw = random.Random(0)
    found = []
    for i in range(count):
        ids = texts[i % len(texts)]
        start = draw.randrange(len(ids) - FOLDED - SCORED)
        found.append(ids[start : start + FOLDED + SCORED])
    return found


def loss(model: BeaconModel, ids: list[int], state: BeaconState) -> float:
    """The mean loss of each of `ids` after the first, in nats."""
    logits = model.logits(ids, state)[:-1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])))


def interval(values: list[float]) -> float:
    """Half the width of a bootstrap 95 % interval of the mean."""
    draw = random.Random(0)
    means = sorted(sum(draw.choices(values, k=len(values))) / len(values) for _ in range(1000))
    return (means[974] - means[25]) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--texts", type=Path, required=True, help="a folder of .txt files")
    parser.add_argument("--held-out", type=int, default=10, help="how many of them, the last by name")
    parser.add_argument("--places", type=int, default=64)
    parser.add_argument("--layout", default="select")
    parser.add_argument("--anchors", default="last,surprise,reconstruct,reconstruct+last")
    parser.add_argument("--ratios", default="2,4,8")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    torch.manual_seed(0)
    model = BeaconModel.from_pretrained(args.model)
    found = places(model, args.texts, held_out=args.held_out, count=args.places)
    whole = BeaconConfig(window=FOLDED, ratio=1, layout=args.layout, anchors="last")
    cells = [("none", None), ("full", whole)] + [
        (f"{anchors} {ratio}x", BeaconConfig(window=FOLDED, ratio=int(ratio), layout=args.layout, anchors=anchors))
        for anchors in args.anchors.split(",")
        for ratio in args.ratios.split(",")
    ]
    rows = {}
    for name, config in cells:
        prose, copy, began = [], [], time.perf_counter()
        for ids in track(found, description=f"{name:>20}", transient=True):
            context, following = ids[:FOLDED], ids[FOLDED:]
            again = context[:SCORED]
            if config is None:
                states = [BeaconState(), BeaconState()]
            else:
                model.adapted(config)
                states = [model.compress(context, close=True), model.compress(again, close=True)]
            prose.append(loss(model, following, states[0]))
            copy.append(loss(model, again, states[1]))
        rows[name] = {
            "prose": sum(prose) / len(prose),
            "prose_interval": interval(prose),
            "copy": sum(copy) / len(copy),
            "seconds": round(time.perf_counter() - began, 1),
        }
        print(f"{name}: prose {rows[name]['prose']:.3f}, copy {rows[name]['copy']:.2f}", file=sys.stderr, flush=True)
    none, full = rows["none"]["prose"], rows["full"]["prose"]
    print(f"{args.places} places, layout {args.layout}; loss in nats")
    print(f"{'':>24} prose   kept   copy")
    for name, row in rows.items():
        row["kept"] = (none - row["prose"]) / (none - full)
        print(f"{name:>24} {row['prose']:.3f}  {row['kept']:5.2f}  {row['copy']:.2f}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(
            json.dumps({"places": args.places, "layout": args.layout, "rows": rows, **stamp()}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
