"""Train an adapter: fit the anchors' scorer, train beacons for a minute, and see what the memory has gained.

    python examples/02_train_an_adapter.py [--model MODEL] [--steps 60] [--out FOLDER]

Without --model it makes a tiny model with random weights and is over in seconds; with "smollm2" it takes
a few minutes on a CPU. The same from a terminal:

    beacon-memory fit-anchors TEXTS --model MODEL --out scorer
    beacon-memory train TEXTS --model MODEL --adapter scorer --out adapter
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers.utils import logging

from beacon_memory import BeaconConfig, BeaconModel
from beacon_memory.testing import tiny_model
from beacon_memory.training.data import Corpus
from beacon_memory.training.examples import Examples, Mixture
from beacon_memory.training.fit import fit_anchors
from beacon_memory.training.objective import Objective, Weights
from beacon_memory.training.trainer import Plan, train

BOOK = Path(__file__).with_name("kjv_stories.txt")
MIXTURE = Mixture(text=1, question=0, dialogue=0, windows=(32, 64), depth=2, tail=32)
console = Console()


def apart(model: BeaconModel, text: str) -> float:
    """How far answers from memory are from answers with the full context, on text that was not trained on: KL, nats."""
    weights = Weights(next_token=0, teacher=1, hidden=0)
    held_out = Examples(Corpus(texts=[text]), model, config=model.config, mixture=MIXTURE, seed=1, count=24)
    objective = Objective(model.beacons, config=model.config, weights=weights)
    with torch.inference_mode():
        return sum(float(objective(held_out[number])) for number in range(len(held_out))) / len(held_out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a directory, hub id, GGUF file or 'smollm2'; a tiny one is made if not given")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()) / "adapter")
    args = parser.parse_args()
    logging.disable_progress_bar()
    config = BeaconConfig(window=64, anchors="last")
    model = BeaconModel.from_pretrained(args.model, config, adapter=None) if args.model else tiny_model(config=config)
    text = BOOK.read_text(encoding="utf-8")
    seen, unseen = text[: len(text) * 4 // 5], text[len(text) * 4 // 5 :]

    measured = [("last token of each unit", apart(model, unseen))]
    fit_anchors(model, [seen], tokens=4000)
    measured.append(("anchors by a fitted scorer", apart(model, unseen)))
    with Progress(console=console) as bar:
        task = bar.add_task("training", total=args.steps)
        plan = Plan(steps=args.steps, learning_rate=4e-3, rank=8, reach=1, save_every=20, warmup=5)
        train(
            model,
            Corpus(texts=[seen]),
            args.out,
            plan=plan,
            mixture=MIXTURE,
            progress=lambda now: bar.update(task, completed=now.step),
        )
    measured.append((f"and beacons trained for {args.steps} steps", apart(model, unseen)))

    table = Table("memory", "KL from the full context, nats")
    for name, value in measured:
        table.add_row(name, f"{value:.3f}")
    console.print(table)
    console.print(
        f"the adapter: {args.out} (BeaconModel.from_pretrained(..., adapter={str(args.out)!r})); its losses: loss.png"
    )


if __name__ == "__main__":
    main()
