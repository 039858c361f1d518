"""What the benchmarks share: the model with beacons, the same model without, a text, and how much of it is measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from beacon_memory import BeaconConfig, BeaconModel
from beacon_memory.models.loading import load
from beacon_memory.testing import tiny_model
from beacon_memory.testing.models import tiny_lm
from benchmarks import record
from benchmarks.baselines import prefill
from benchmarks.timing import Act, once

BOOK = Path(__file__).parent.parent / "examples" / "kjv_stories.txt"
RATIO = 8
QUESTION = "Who was Naomi's husband, and where did they live?"
READ = "plain prefill"


@dataclass(frozen=True)
class Form:
    """How much is measured."""

    name: str
    fold: dict[int, int]  # tokens -> repeats
    turn: Sequence[int]  # tokens
    slots: dict[int, int]  # slots -> repeats, of decoding and of answering in a batch
    turns: int  # of the long session
    peak: Sequence[int]  # tokens
    segments: Sequence[int]  # that a session names, of turns of the store alone
    loads: Sequence[int]  # tokens, of loads of the store alone
    repeats: int
    batch: int = 8  # sessions in a batch
    new: int = 32  # tokens of an answer
    read: int = 8192  # plain prefills of more are made only where `--only read` asks for them


FORMS = {
    "tiny": Form(
        "tiny", {64: 2, 256: 1}, (64, 256), {8: 2, 32: 2}, 40, (256,), (10,), (512,), repeats=2, batch=3, new=4
    ),
    "quick": Form(
        "quick",
        fold={1024: 3, 8192: 1},
        turn=(1024, 8192, 32768),
        slots={512: 3, 4096: 1},
        turns=300,
        peak=(8192,),
        segments=(10, 1000),
        loads=(4096,),
        repeats=3,
    ),
    "full": Form(
        "full",
        fold={1024: 5, 8192: 3, 32768: 1},
        turn=(1024, 8192, 32768),
        slots={512: 5, 4096: 3},
        turns=1000,
        peak=(8192, 32768, 131072),
        segments=(10, 100, 1000, 5000),
        loads=(4096, 32768),
        repeats=5,
    ),
}


class Bench:
    """One run."""

    def __init__(self, form: Form, *, model: str, text: Path, out: Path, console: Console) -> None:
        self.form = form
        self.name = model
        self.out = out
        self.console = console
        self._text = text
        self._status = console.status("")
        self.only: dict[str, set[str]] = {}  # group -> its cases, none meaning all

    @cached_property
    def model(self) -> BeaconModel:
        """The model with beacons, folding at the ratio measured."""
        self.told("loading the model")
        if self.name == "tiny":
            return tiny_model(config=BeaconConfig(ratio=RATIO, window=32, keep_last=16, anchors="last"))
        model = BeaconModel.from_pretrained(self.name)
        model.adapted(model.config.replace(ratio=RATIO))
        return model

    @cached_property
    def plain(self) -> Any:
        """The same model as transformers loads it, with weights of its own: nothing of ours is in its way."""
        self.told("loading the plain model")
        if self.name == "tiny":
            return tiny_lm()
        return load(self.name, dtype=torch.float32, device_map=None, attn_implementation="sdpa")[0]

    def ids(self, count: int) -> list[int]:
        """The first ids of the text, begun again as often as it takes."""
        return (self._ids * -(-count // len(self._ids)))[:count]

    @cached_property
    def _ids(self) -> list[int]:
        return self.model.encode(self._text.read_text(encoding="utf-8"))

    def cases(self, group: str, cases: Iterable[int]) -> Iterator[int]:
        """Those cases of a group that this run was asked for."""
        wanted = self.only.get(group)
        yield from (case for case in cases if not wanted or str(case) in wanted)

    def read(self, count: int) -> list[float] | None:
        """Seconds of a plain prefill of so many tokens, from this results file where it has been measured there.

        None for one that costs minutes and is not there: `--only read` measures it.
        """
        for row in reversed(record.read(self.out)):
            if (row["line"], row["case"]) == ("read", str(count)) and row["machine"] == record.machine():
                found: list[float] = row["values"][READ]
                return found
        return [self.read_now(count)] if count <= self.form.read else None

    def read_now(self, count: int) -> float:
        """Seconds of one plain prefill."""
        self.told(f"{READ} of {count} tokens")
        ids, lm = self.ids(count), self.plain
        return once(Act(lambda _: prefill(lm, ids)))

    def told(self, what: str) -> None:
        """Show what is being done."""
        self._status.update(what)

    def keep(self, result: record.Result) -> None:
        """Write a result, and say it."""
        row = result.as_json(form=self.form.name)
        record.write(self.out, row)
        medians = ", ".join(f"{name} {value:.4g}" for name, value in row["medians"].items())
        self.console.print(f"[bold]{result.line} {result.case}[/bold] {result.unit}: {medians}", highlight=False)
        for one in row["against"]:
            if one["target"] is not None:
                sign = "≥" if one["faster"] else "≤"
                word = "[green]met" if one["met"] else "[red]missed"
                beside = f" against {one['baseline']}" if one["baseline"] else ""
                self.console.print(f"  {one['figure']:.3g}{beside}, target {sign} {one['target']:g}: {word}")

    def __enter__(self) -> Bench:
        self._status.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._status.stop()
