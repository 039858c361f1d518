"""Many hot sessions asked at once: `ask_many` in one batch, against `ask` one after another."""

from __future__ import annotations

from collections.abc import Iterator

from beacon_memory import BeaconMemory
from beacon_memory.models.generation import end_ids
from beacon_memory.stores import open_store
from benchmarks import synthetic
from benchmarks.bench import Bench
from benchmarks.record import Against, Result
from benchmarks.speed.decode import Ticks
from benchmarks.speed.turn import questions
from benchmarks.timing import Act, times

BATCH, ONE = "one batch", "one after another"
TARGETS = {512: 4.0, 4096: 2.5}
ROOM = 4 << 30  # bytes for hot sessions: eight of 4,096 slots take 1.6 GB in float32, more than the default


def lines(bench: Bench) -> Iterator[Result]:
    """One result for each number of slots."""
    asked, new = questions(), bench.form.new
    for slots in bench.cases("batched", bench.form.slots):
        bench.told(f"{bench.form.batch} sessions of {slots} slots")
        memory = BeaconMemory(
            bench.model, open_store("memory://"), cache_bytes=ROOM, resident_bytes=ROOM, recall_tokens=0
        )
        names = [f"session {number}" for number in range(bench.form.batch)]
        for seed, name in enumerate(names):
            synthetic.filled(memory, name, slots, seed=seed)
        ends = end_ids(bench.model.lm)

        def batch(memory: BeaconMemory, names: list[str] = names, ends: list[int] = ends) -> object:
            question = next(asked)
            return memory.ask_many([(name, question) for name in names], max_new_tokens=new, constraint=Ticks(ends))

        def alone(memory: BeaconMemory, names: list[str] = names, ends: list[int] = ends) -> object:
            question = next(asked)
            return [memory.session(n).ask(question, max_new_tokens=new, constraint=Ticks(ends)) for n in names]

        with memory:
            alone(memory)  # from here on they are hot
            acts = {name: Act(run, lambda memory=memory: memory) for name, run in ((BATCH, batch), (ONE, alone))}
            values = times(acts, repeats=bench.form.slots[slots], told=bench.told, warm=slots <= 512)
        facts = {"slots": slots, "sessions": len(names), "answer": new}
        yield Result("batched", str(slots), BATCH, values, [Against(ONE, least=TARGETS.get(slots))], facts=facts)
