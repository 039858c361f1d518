"""Where the time goes: the operators that take most of it, for each thing that has a target."""

from __future__ import annotations

import cProfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from beacon_memory import BeaconMemory
from beacon_memory.models.generation import end_ids
from beacon_memory.stores import open_store
from beacon_memory.testing import redis_server
from benchmarks import synthetic
from benchmarks.bench import QUESTION, RATIO, Bench
from benchmarks.record import Result
from benchmarks.speed import turn
from benchmarks.speed.decode import Ticks

MOST = 8  # operators named
WHOLE = "benchmark"


def lines(bench: Bench) -> Iterator[Result]:
    """A profile of the fold, the turns and the batch."""
    model = bench.model
    slots, length = max(bench.form.slots), max(bench.form.turn)
    past = synthetic.slots(model, slots, seed=0)
    asked, ends = model.encode(QUESTION), end_ids(model.lm)
    states = [synthetic.slots(model, slots, seed=seed) for seed in range(bench.form.batch)]
    rows, questions, read = bench.ids(model.config.window), turn.questions(), min(bench.form.fold)
    acts: dict[str, Callable[[], object]] = {
        f"fold of {read} tokens": lambda: model.compress(bench.ids(read), document=True),
        f"a window folded behind {slots} slots": lambda: model.compress(rows, past, close=True),
        f"{len(states)} sessions of {slots} slots in one batch": lambda: model.answers(
            [asked] * len(states), states, max_new_tokens=bench.form.new, constraint=Ticks(ends)
        ),
    }
    for name, act in acts.items():
        act()
        yield _profiled(bench, name, act)
    with redis_server() as url, redis.Redis.from_url(url) as client:
        for kind, make in (("document", synthetic.document), ("talk", synthetic.talk)):
            client.flushall()
            memory = BeaconMemory(model, open_store(url), recall_tokens=0)
            make(memory, kind, bench.ids(length), ratio=RATIO)
            memory.close()
            memory = BeaconMemory(model, open_store(url), recall_tokens=0)
            for name in ("cold", "hot"):
                what = f"{name} turn, a {kind} of {length} tokens"
                yield _profiled(
                    bench, what, lambda memory=memory, kind=kind: turn.first_word(memory, kind, next(questions))
                )
            memory.close()
            memory = BeaconMemory(model, open_store(url), recall_tokens=0)
            for name in ("cold", "hot"):
                what = f"{name} turn, a {kind} of {length} tokens"
                yield _functions(
                    bench, what, lambda memory=memory, kind=kind: turn.first_word(memory, kind, next(questions))
                )
            memory.close()


def _profiled(bench: Bench, name: str, act: Callable[[], object]) -> Result:
    bench.told(f"profile: {name}")
    # generate() runs on a thread of its own.
    threads = torch.profiler._ExperimentalConfig(profile_all_threads=True)
    with profile(activities=[ProfilerActivity.CPU], experimental_config=threads) as found, record_function(WHOLE):
        act()
    events = found.key_averages()
    whole = max(event.cpu_time_total for event in events if event.key == WHOLE)
    operators = [event for event in events if event.key != WHOLE]
    most = sorted(operators, key=lambda event: event.self_cpu_time_total, reverse=True)[:MOST]
    shares = {event.key.removeprefix("aten::"): [event.self_cpu_time_total / whole, event.count] for event in most}
    rest = 1 - sum(event.self_cpu_time_total for event in operators) / whole
    facts = {"operators": shares | {"outside of operators": [max(0.0, rest), 1]}}
    return Result("profile", name, "seconds", {"seconds": [whole / 1e6]}, facts=facts)


def _functions(bench: Bench, name: str, act: Callable[[], object]) -> Result:
    """The same by Python function, of the calling thread alone; `acquire` is its wait for the model's thread."""
    bench.told(f"functions: {name}")
    seen = cProfile.Profile()
    began = time.perf_counter()
    seen.runcall(act)
    whole = time.perf_counter() - began
    entries = sorted(seen.getstats(), key=lambda entry: entry.inlinetime, reverse=True)[:MOST]
    shares = {_named(entry.code): [entry.inlinetime / whole, entry.callcount] for entry in entries}
    return Result("profile", f"{name}, by function", "seconds", {"seconds": [whole]}, facts={"operators": shares})


def _named(code: Any) -> str:
    if isinstance(code, str):
        return code.strip("<>").removeprefix("built-in method ").removeprefix("method ").split(" object")[0]
    return f"{Path(code.co_filename).stem}.{code.co_name}"
