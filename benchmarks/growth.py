"""What a turn costs a session as it grows: turn 1000 against turn 10, in time and in bytes written to Redis.

The model is tiny, so that its time is small beside everything else that a turn is: the store, the head, the slots
joined and rotated. `turn.py` and `decode.py` have the real model's time by number of slots.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import redis
from bench import Bench
from record import Against, Result

from beacon_memory import BeaconConfig, BeaconMemory
from beacon_memory.stores import open_store
from beacon_memory.testing import redis_server, tiny_model

AROUND = 10  # turns before and after the one named: windows fill up in some turns and not in others
CONFIG = BeaconConfig(ratio=8, window=64, keep_last=16, anchors="last")
SAID = "Turn {}: the boat came in late and the harbour was closed."
CASES = {"within its slots": 32768, "over its slots": 2048}  # positions of the model


def lines(bench: Bench) -> Iterator[Result]:
    """Time and bytes, for a session that never fills its slots and for one whose old memories get coarser."""
    turns = bench.form.turns
    for case, positions in CASES.items():
        model = tiny_model(config=CONFIG, max_position_embeddings=positions)
        seconds, sent = [], []
        with redis_server() as url, redis.Redis.from_url(url) as client, BeaconMemory(model, open_store(url)) as memory:
            session = memory.session("long")
            for turn in range(1, turns + 1):
                bench.told(f"{case}: turn {turn} of {turns}")
                before = client.info("stats")["total_net_input_bytes"]
                began = time.perf_counter()
                session.chat(SAID.format(turn), max_new_tokens=8)
                seconds.append(time.perf_counter() - began)
                sent.append(client.info("stats")["total_net_input_bytes"] - before)
            info = session.info()
        early, late = slice(0, 2 * AROUND), slice(turns - 2 * AROUND, turns)
        names = [f"turn {turns - AROUND}", f"turn {AROUND}"]
        facts = {"tokens": info.tokens, "slots": info.slots, "model": "tiny"}
        for what, unit, found in (("time", "s", seconds), ("bytes written", "bytes", sent)):
            # The mean over the turns around: the fold of a window belongs to all of its turns.
            values = {names[0]: [statistics.mean(found[late])], names[1]: [statistics.mean(found[early])]}
            result = [Against(names[1], most=1.2)]
            yield Result("growth", f"{what}, {case}", names[0], values, result, unit=unit, facts=facts)
