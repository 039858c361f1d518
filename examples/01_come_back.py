"""The main job: read a book and a conversation, end the process, come back in a new one and be asked about both.

    python examples/01_come_back.py [--model MODEL] [--book FILE]

The first process folds `kjv_stories.txt` (16.6K tokens, twice the model's own window) and a short conversation into
one session of an SQLite file. The second one opens the session, answers beside the same model with the newest tokens
alone and with nothing, and prints what it all cost.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers.utils import logging

from beacon_memory import BeaconMemory

BOOK = Path(__file__).with_name("kjv_stories.txt")
TALK = [
    {"role": "user", "content": "Hello! My name is Ada. I live in Lyon, and I have a dog called Rex."},
    {
        "role": "assistant",
        "content": "Nice to meet you, Ada! I will remember that you live in Lyon and that your dog is Rex.",
    },
    {"role": "user", "content": "I am a carpenter, and my favourite colour is green."},
    {"role": "assistant", "content": "A carpenter who likes green. Noted!"},
]
QUESTIONS = {  # and what a right answer says
    "What is the name of my dog?": "Rex",
    "Where do I live?": "Lyon",
    "What is my favourite colour?": "green",
    "How long was Jonah in the belly of the fish?": "three days",
    "What did the LORD prepare to swallow up Jonah?": "great fish",
}

console = Console()


def remember(url: str, model: str, book: Path) -> None:
    """The first process: read, and keep."""
    with opened(url, model) as memory:
        session = memory.session("ada")
        tokens = len(memory.model.encode(book.read_text(encoding="utf-8")))
        columns = (TextColumn("reading {task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"))
        began = time.perf_counter()
        with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(book.name, total=tokens)
            session.add_document(book, progress=lambda read: bar.advance(task, read))
        session.add(TALK)
        seconds = time.perf_counter() - began
        console.print(f"read and kept in {seconds:.0f} s: {session.info().tokens} tokens, {session.info().slots} slots")


def recall(url: str, model: str, book: Path) -> None:
    """The second process: come back, answer, and count."""
    with opened(url, model) as memory:
        session = memory.session("ada")
        began = time.perf_counter()
        first = next(session.ask(next(iter(QUESTIONS)), stream=True), None)
        back = time.perf_counter() - began
        del first
        with console.status("asking, with memory and without …"):
            console.print(answers(memory, book))
        again = read_again(memory)
        report(session.info(), back, again)


def answers(memory: BeaconMemory, book: Path) -> Table:
    """What is answered with the memory, with as many of the newest tokens as it has KV entries, and with nothing."""
    session = memory.session("ada")
    info, ids = session.info(), memory.model.encode(book.read_text(encoding="utf-8"))
    newest = memory.session("newest", ratio=1)  # a slot for each token: nothing is compressed
    newest.add_text(memory.model.decode(ids[-info.slots :]), name="the newest tokens")
    newest.add(TALK)
    nothing = memory.session("nothing")
    nothing.set([])
    table = Table(title="what it answers")
    for column in ("", "memory", f"the newest {info.slots} tokens alone", "nothing"):
        table.add_column(column, ratio=1)
    for question, right in QUESTIONS.items():
        said = [
            session.ask(question, max_new_tokens=32),
            newest.ask(question, max_new_tokens=32, recall_tokens=0),
            nothing.ask(question, max_new_tokens=32),
        ]
        table.add_row(
            question, *(f"{'[green]✓' if right.lower() in one.lower() else '[red]✗'}[/] {escape(one)}" for one in said)
        )
    return table


def read_again(memory: BeaconMemory) -> float:
    """Seconds for the base model to read the same tokens again, up to its first answered token."""
    session = memory.session("ada")
    ids = [i for segment in session.state().segments for i in segment.ids] + list(session.state().tail)
    lm = memory.model.detach()
    with console.status("reading it all again, without memory, to compare …"), torch.inference_mode():
        began = time.perf_counter()
        lm(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
        return time.perf_counter() - began


def report(info, back: float, again: float) -> None:  # type: ignore[no-untyped-def]
    """The table at the end."""
    table = Table(title="what it cost")
    for column in ("", "memory", "raw KV cache, bf16", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("tokens read", f"{info.tokens}", f"{info.tokens}", "")
    table.add_row(
        "KV entries kept",
        f"{info.slots} + {info.tail} raw",
        f"{info.tokens}",
        f"{info.tokens / (info.slots + info.tail):.1f}x",
    )
    table.add_row(
        "bytes kept",
        f"{info.bytes / 2**20:.0f} MiB",
        f"{info.raw_bytes / 2**20:.0f} MiB",
        f"{info.raw_bytes / info.bytes:.1f}x",
    )
    table.add_row("seconds to the first word", f"{back:.1f}", f"{again:.1f} (reading again)", f"{again / back:.0f}x")
    console.print()
    console.print(table)
    console.print(
        "A model of 135M parameters, with memory or without, forgets and invents. No index and no embeddings: what it "
        "knows it has from the slots, and from passages that its own attention to them found."
    )


def opened(url: str, model: str) -> BeaconMemory:
    """The memory, its model loaded."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with console.status("loading the model (the first time unpacks its file: half a minute) …"):
        return BeaconMemory.open(model, url)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--book", type=Path, default=BOOK)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    parser.add_argument("--stage", choices=("remember", "recall"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage == "remember":
        remember(args.store, args.model, args.book)
    elif args.stage == "recall":
        recall(args.store, args.model, args.book)
    else:
        with tempfile.TemporaryDirectory() as folder:
            for number, stage in (("one", "remember"), ("two", "recall")):
                console.rule(f"process {number}: {stage}")
                how = ["--stage", stage, "--store", f"sqlite:///{folder}/memory.db"]
                what = ["--model", args.model, "--book", str(args.book)]
                subprocess.run([sys.executable, __file__, *how, *what], check=True)


if __name__ == "__main__":
    main()
