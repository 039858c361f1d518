"""How fast a memory reads and comes back, against the plain model on the same text, side by side in one run.

`fold`: seconds to fold a text, against a plain prefill of the same ids (both without generating). `come back`: from a
new memory object over a store on disk, the model loaded, to the first answered token, against reading the text again up
to its first token. `help`: the command's `--help`.

    python benchmarks/speed.py --text FILE --out benchmarks/results/speed.json
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils import logging

from beacon_memory import BeaconConfig, BeaconMemory, BeaconModel
from beacon_memory.stores import open_store

BOOK = Path(__file__).parent.parent / "examples" / "kjv_stories.txt"
console = Console(stderr=True)


def timed(what: str, act: Callable[[], Any], *, repeats: int) -> float:
    """The best of some runs, in seconds: what the machine can do when nothing else has it."""
    with console.status(what):
        best = float("inf")
        for _ in range(repeats):
            began = time.perf_counter()
            act()
            best = min(best, time.perf_counter() - began)
    return best


def prefill(model: BeaconModel, ids: list[int]) -> None:
    """Read ids as the plain model does, cache kept, up to the first next-token logits."""
    with torch.inference_mode():
        model.lm(torch.tensor([ids]), use_cache=True, logits_to_keep=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", type=Path, default=BOOK)
    parser.add_argument("--lengths", default="1024,4096,16384")
    parser.add_argument("--anchors", default="last,surprise,learned,reconstruct")
    parser.add_argument("--only-fold", action="store_true", help="leave out coming back and the command")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    logging.disable_progress_bar()

    with console.status("loading the model"):
        model = BeaconModel.from_pretrained(args.model)
    ids = model.encode(args.text.read_text(encoding="utf-8"))
    lengths = [int(n) for n in args.lengths.split(",")]
    if len(ids) < max(lengths):
        sys.exit(f"{args.text} has {len(ids)} tokens, {max(lengths)} are needed")
    model.compress(ids[:1024], close=True)  # warm up
    found: dict[str, Any] = {"machine": f"{platform.machine()}, {torch.get_num_threads()} threads", "fold": {}}
    for length in lengths:
        repeats = 3 if length < 4096 else 1
        row = {"prefill": timed(f"prefill {length}", lambda n=length: prefill(model, ids[:n]), repeats=repeats)}
        for anchors in args.anchors.split(","):
            model.adapted(BeaconConfig(anchors=anchors))
            row[anchors] = timed(
                f"fold {length} {anchors}", lambda n=length: model.compress(ids[:n], close=True), repeats=repeats
            )
        found["fold"][length] = row
        shown = ", ".join(f"{k} {v:.1f} s ({v / row['prefill']:.2f}x)" for k, v in row.items())
        print(f"{length} tokens: {shown}", flush=True)
    if not args.only_fold:
        found["come_back"] = come_back(model, ids[: max(lengths)])
        found["help_seconds"] = timed("--help", show_help, repeats=5)
        print(f"--help: {found['help_seconds']:.2f} s")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")


def come_back(model: BeaconModel, ids: list[int]) -> dict[str, float]:
    """From an open model to the first answered token: out of a store, and by reading everything again."""
    model.adapted(BeaconConfig(anchors="last"))
    question = "Who was Naomi's husband?"
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/memory.db"
        with BeaconMemory(model, open_store(url)) as memory:
            memory.session("reader").add_document(model.decode(ids))
            info = memory.session("reader").info()
            prompt = [*memory.transcript.turn({"role": "user", "content": question}), *memory.transcript.header()]

        def back() -> None:
            with BeaconMemory(model, open_store(url)) as fresh:
                next(fresh.session("reader").ask(question, stream=True, max_new_tokens=1), None)

        seconds = timed("coming back", back, repeats=3)
    again = timed("reading it all again", lambda: prefill(model, [*ids, *prompt]), repeats=1)
    row = {
        "tokens": info.tokens,
        "seconds": seconds,
        "again": again,
        "ratio": again / seconds,
        "bytes_per_token": info.bytes / info.tokens,
        "raw_bytes_per_token": float(model.raw_bytes_per_token),
    }
    print(
        f"{info.tokens} tokens: back in {seconds:.2f} s, read again in {again:.1f} s: {again / seconds:.0f}x less; "
        f"{row['bytes_per_token']:.0f} bytes per token against {model.raw_bytes_per_token} raw in bf16"
    )
    return row


def show_help() -> None:
    """The command's help, as a user runs it."""
    command = [str(Path(sys.executable).with_name("beacon-memory")), "--help"]
    subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main()
