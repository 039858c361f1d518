"""Decoding behind n slots, against stock generate() behind n raw entries: seconds a token."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from transformers import LogitsProcessor

from beacon_memory.models.generation import end_ids
from benchmarks import synthetic
from benchmarks.baselines import answer, cache_of, random_entries
from benchmarks.bench import QUESTION, Bench
from benchmarks.record import Against, Result

OURS, STOCK = "beacon", "stock generate()"


class Ticks(LogitsProcessor):
    """Notes when each token's logits are there, and lets no answer end early. A constraint, as ours take one."""

    def __init__(self, ends: list[int]) -> None:
        self.seen: list[float] = []
        self._ends = ends

    def processor(self, tokenizer: Any, **how: Any) -> Ticks:
        return self

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.seen.append(time.perf_counter())
        scores[:, self._ends] = float("-inf")
        return scores

    @property
    def token(self) -> float:
        """Seconds from a token's logits to the next one's, the median."""
        return statistics.median(b - a for a, b in zip(self.seen, self.seen[1:], strict=False))


def lines(bench: Bench) -> Iterator[Result]:
    """One result for each number of slots."""
    for slots in bench.cases("decode", bench.form.slots):
        repeats, model, plain = bench.form.slots[slots], bench.model, bench.plain
        state, asked = synthetic.slots(model, slots, seed=0), model.encode(QUESTION)
        keys, values = random_entries(plain, slots)
        new = 2 * bench.form.new
        found: dict[str, list[float]] = {OURS: [], STOCK: []}
        for turn in range(-1, repeats):
            bench.told(f"decoding behind {slots}: {turn + 1} of {repeats}")
            ours, stock = Ticks(end_ids(model.lm)), Ticks(end_ids(plain))
            model.answers([asked], [state], max_new_tokens=new, constraint=ours)
            answer(plain, asked, cache_of(plain, keys, values), new=new, processors=[stock])
            if turn >= 0:
                found[OURS].append(ours.token)
                found[STOCK].append(stock.token)
        facts = {"slots": slots, "answer": new}
        yield Result("decode", str(slots), OURS, found, [Against(STOCK, most=1.05)], unit="s a token", facts=facts)
