"""What a turn costs a session as it grows: turn 1000 against turn 10, in time and in bytes written to Redis.

With a tiny model the session has every one of its turns, and nearly all of the time is what a turn is besides the
model: the store, the head, the slots joined and rotated. With the real model the session is made as it stands at either
turn (`synthetic.py`), and the turns around are taken: there the model reads more slots.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence

import redis

from beacon_memory import BeaconConfig, BeaconMemory, BeaconModel
from beacon_memory.stores import open_store
from beacon_memory.testing import redis_server, tiny_model
from benchmarks import synthetic
from benchmarks.bench import RATIO, Bench
from benchmarks.record import Against, Result

EARLY = 10
CONFIG = BeaconConfig(ratio=RATIO, anchors="last")  # windows and tail as the real model has them
# Tokens of a message: after 1000 turns of two, a session is within its slots or old memories have become coarser.
SESSIONS = {"within its slots": 15, "over its slots": 25}
POSITIONS = {"within its slots": 16_384, "over its slots": 8_192}  # of the tiny model: its slots are most of them
Cost = tuple[float, float]  # seconds, bytes to the server


def lines(bench: Bench) -> Iterator[Result]:
    """Time and bytes, tiny model and real, for a session that never fills its slots and for one that does."""
    late = bench.form.turns
    for case, each in SESSIONS.items():
        around = -(-(CONFIG.window // 2) // (2 * each))  # turns to either side: together they fill a window
        around = min(around, EARLY - 1)
        tiny = tiny_model(config=CONFIG, max_position_embeddings=POSITIONS[case])
        with redis_server() as url, BeaconMemory(tiny, open_store(url)) as memory:
            costs = _turns(bench, memory, url, each, range(late + around))
            coarser = set(memory.session("long").info().ratios) != {RATIO}
        # Few turns fill no slots: a short form only checks that it is not the other way round.
        if coarser != case.startswith("over") and (coarser or late >= 1000):
            raise RuntimeError(f"{case}: old memories are {'coarser' if coarser else 'as they were'}")
        yield from _results(f"tiny model, {case}", late, costs[EARLY - around : EARLY + around], costs[late - around :])
        if bench.name != "tiny":
            yield from _results(
                f"SmolLM2, {case}", late, *(_made(bench, bench.model, each, n, around) for n in (EARLY, late))
            )


def _made(bench: Bench, model: BeaconModel, each: int, turn: int, around: int) -> list[Cost]:
    """The turns around one, of a session made as it stands before them."""
    with redis_server() as url, BeaconMemory(model, open_store(url), recall_tokens=0) as memory:
        said = synthetic.messages(memory, bench.ids(2 * each * (turn - around)), each=each)
        synthetic.keep(memory, "long", said, ratio=RATIO)
        return _turns(bench, memory, url, each, range(turn - around, turn + around))


def _turns(bench: Bench, memory: BeaconMemory, url: str, each: int, turns: range) -> list[Cost]:
    """What each of these turns costs: a question, an answer of as many tokens, both remembered."""
    found: list[Cost] = []
    session, model = memory.session("long", ratio=RATIO), memory.model
    said = memory.model.encode(" ".join(["The boat came in late and the harbour was closed again."] * 20))
    with redis.Redis.from_url(url) as client:
        for turn in turns:
            bench.told(f"turn {turn + 1} of {turns.stop}")
            text = f"{turn} {model.decode(said[: each - 2])}"
            before = client.info("stats")["total_net_input_bytes"]
            began = time.perf_counter()
            session.chat(text, max_new_tokens=each)
            seconds = time.perf_counter() - began
            found.append((seconds, client.info("stats")["total_net_input_bytes"] - before))
    return found


def _results(case: str, turn: int, early: Sequence[Cost], late: Sequence[Cost]) -> Iterator[Result]:
    names = [f"turn {turn}", f"turn {EARLY}"]
    for index, (what, unit) in enumerate((("time", "s"), ("bytes written", "bytes"))):
        # The mean over the turns around: the fold of a window belongs to all of its turns.
        means = [statistics.mean(cost[index] for cost in costs) for costs in (late, early)]
        values = {name: [mean] for name, mean in zip(names, means, strict=True)}
        facts = {"turns": len(late), "each": [[cost[index] for cost in costs] for costs in (late, early)]}
        yield Result(
            "growth", f"{what}, {case}", names[0], values, [Against(names[1], most=1.2)], unit=unit, facts=facts
        )
