"""Folding a text, against reading it plainly, the floor of its own FLOPs, and evicting down to as many entries."""

from __future__ import annotations

from collections.abc import Iterator

from beacon_memory.evaluation.eviction import evict, most_expected
from benchmarks.baselines import prefill
from benchmarks.bench import RATIO, READ, Bench
from benchmarks.record import Against, Result
from benchmarks.speed import flops_floor
from benchmarks.timing import Act, times

TARGETS = {1024: 1.20, 8192: 0.80, 32768: 0.35}
FOLD, FLOOR, EVICTION = "beacon fold", "bare matmuls", "eviction (Expected Attention)"
OWN_READ = 8192  # longer plain prefills are measured once, by `--only read`


def lines(bench: Bench) -> Iterator[Result]:
    """One result a length."""
    for length in bench.cases("fold", bench.form.fold):
        repeats, model, ids = bench.form.fold[length], bench.model, bench.ids(length)
        bare, flops = flops_floor.fold(model, length, ratio=RATIO)
        slots = flops_floor.slots(model, length, ratio=RATIO)

        def folded(_: object, ids: list[int] = ids) -> object:
            return bench.model.compress(ids, document=True)

        def read(_: object, ids: list[int] = ids) -> object:
            return prefill(bench.plain, ids)

        def evicted(_: object, ids: list[int] = ids, slots: int = slots) -> object:
            return evict(bench.model, bench.model.empty, tuple(ids), slots, most_expected, sink=4, tail=0)

        acts = {FOLD: Act(folded), FLOOR: Act(lambda _, bare=bare: bare())}
        if length <= OWN_READ:
            assert bench.plain is not None
            acts |= {READ: Act(read)}
        values = times(acts, repeats=repeats, told=bench.told, warm=length <= 1024)
        if length <= OWN_READ:
            values |= times({EVICTION: Act(evicted)}, repeats=1, told=bench.told, warm=length <= 1024)
        against = [Against(FLOOR, most=1.25)]
        if length > OWN_READ and (found := bench.read(length)):
            values[READ] = found
        if READ in values:
            against.insert(0, Against(READ, most=TARGETS.get(length)))
        if EVICTION in values:
            against.append(Against(EVICTION))
        facts = {"tokens": length, "slots": slots, "flops": flops, "gigaflops_bare": flops / min(values[FLOOR]) / 1e9}
        yield Result("fold", str(length), FOLD, values, against, facts=facts)


def read(bench: Bench) -> Iterator[Result]:
    """The plain prefill of the longest text: minutes, so once, and used by the others of the same run."""
    length = max(bench.form.fold)
    yield Result("read", str(length), READ, {READ: [bench.read_now(length)]}, facts={"tokens": length})
