"""Bytes kept for each raw token in Redis, all of a session counted: slots, ids, messages, head."""

from __future__ import annotations

from collections.abc import Iterator

import redis

from beacon_memory import BeaconMemory
from beacon_memory.stores import open_store
from beacon_memory.testing import redis_server
from benchmarks import synthetic
from benchmarks.bench import RATIO, Bench
from benchmarks.record import Against, Result

OURS, RAW = "beacon", "raw KV, bfloat16"
TARGETS = {"bfloat16": 7.5, "int8": 14.0, "int4": 26.0}
MAKERS = {"document": synthetic.document, "talk": synthetic.talk}


def lines(bench: Bench) -> Iterator[Result]:
    """One result for each length, form of slots, and kind of session."""
    with redis_server() as url, redis.Redis.from_url(url) as client:
        for length in bench.cases("size", bench.form.turn):
            for form, target in TARGETS.items():
                for kind, make in MAKERS.items():
                    bench.told(f"a {kind} of {length} tokens in {form}")
                    client.flushall()
                    with BeaconMemory(bench.model, open_store(url)) as memory:
                        make(memory, kind, bench.ids(length), ratio=RATIO, slot_dtype=form)
                        info = memory.session(kind).info()
                        head, _ = memory.store.load(kind)
                        size = len(head.body) + sum(map(len, memory.store.read(list(head.digests))))
                    server = client.info("memory")["used_memory_dataset"]
                    values = {OURS: [size / info.tokens], RAW: [float(bench.model.raw_bytes_per_token)]}
                    least = target if length == max(bench.form.turn) else None
                    facts = {
                        "tokens": info.tokens,
                        "slots": info.slots,
                        "tail": info.tail,
                        "bytes": size,
                        "server_bytes": server,
                        "slot_dtype": form,
                    }
                    against = [Against(RAW, least=least, faster=True)]
                    yield Result(
                        "bytes", f"{length} {form} {kind}", OURS, values, against, unit="bytes a token", facts=facts
                    )
