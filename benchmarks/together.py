"""Many sessions answered in one batch, against one after another."""

from __future__ import annotations

from collections.abc import Iterator

import made
from bench import QUESTION, Bench
from clock import Act, times
from decode import Ticks
from record import Against, Result

from beacon_memory.generation import end_ids

BATCH, ONE = "one batch", "one after another"
TARGETS = {512: 4.0, 4096: 2.5}


def lines(bench: Bench) -> Iterator[Result]:
    """One result for each number of slots."""
    for slots in bench.cases("together", bench.form.slots):
        model, count, new = bench.model, bench.form.together, bench.form.new
        states = [made.slots(model, slots, seed=seed) for seed in range(count)]
        asked = [model.encode(QUESTION)] * count
        ends = end_ids(model.lm)

        def batch(_: object, states=states, asked=asked, new=new, ends=ends) -> object:  # type: ignore[no-untyped-def]
            return bench.model.answers(asked, states, max_new_tokens=new, constraint=Ticks(ends))

        def alone(_: object, states=states, asked=asked, new=new, ends=ends) -> object:  # type: ignore[no-untyped-def]
            return [
                bench.model.answers([one], [state], max_new_tokens=new, constraint=Ticks(ends))
                for one, state in zip(asked, states, strict=True)
            ]

        values = times(
            {BATCH: Act(batch), ONE: Act(alone)}, repeats=bench.form.slots[slots], told=bench.told, warm=slots <= 512
        )
        facts = {"slots": slots, "sessions": count, "answer": new}
        yield Result("together", str(slots), BATCH, values, [Against(ONE, least=TARGETS.get(slots))], facts=facts)
