"""What a session costs in Redis: per turn, per load, per number kept. A real server, started here; no model is loaded.

Segments have SmolLM2-135M's shape (30 layers, 3 KV heads, 64 channels: 23,040 bytes a token in bfloat16) and hold
random numbers. Raw KV is kept as others keep it: one value per 512 tokens, nothing checked, read by MGET in the same
batches.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import redis
import torch

from beacon_memory import BeaconConfig
from beacon_memory.state.codec import decode_segment, encode_segment
from beacon_memory.state.quantise import BITS, pack
from beacon_memory.state.state import Fingerprint, Segment, segment_digest
from beacon_memory.stores import Head
from beacon_memory.stores.redis import RedisStore
from beacon_memory.testing import redis_server
from benchmarks.baselines import get
from benchmarks.bench import Bench
from benchmarks.record import Against, Result
from benchmarks.timing import Act, times

LAYERS, HEADS, WIDTH, WINDOW, RATIO = 30, 3, 64, 512, 8
OURS = Fingerprint("0" * 16, "none", "0" * 16, "select")
FORMS = ("bfloat16", "int8", "int4")
RAW = "raw"
DAY = 86_400


def lines(bench: Bench) -> Iterator[Result]:
    """A turn by the number of segments a session names, with and without a time to live; a load by its length."""
    with redis_server("valkey") as url:
        for length in bench.form.segments:
            for ttl in (None, DAY):
                bench.told(f"a turn on {length} segments, ttl {ttl}")
                yield turns(url, length, ttl=ttl, alone=True, count=bench.form.repeats * 4)
        for tokens in bench.cases("store", bench.form.loads):
            yield loads(bench, url, tokens)


def segment(number: int, form: str) -> tuple[str, bytes]:
    """A folded window of 512 tokens at 8x: its digest and its bytes."""
    config = BeaconConfig(slot_dtype=form)
    ids = tuple(range(number, number + WINDOW))
    digest = segment_digest(ids, ratio=RATIO, sink=0, parent="", config=config, fingerprint=OURS)
    random = torch.Generator().manual_seed(number)
    keys, values = (torch.randn(LAYERS, HEADS, WINDOW // RATIO, WIDTH, generator=random) for _ in range(2))
    packed = pack(keys, values, sink=0, dtype=form) if form in BITS else None
    made = Segment(digest, "", ids, RATIO, 0, packed or (keys.bfloat16(), values.bfloat16()))
    return digest, encode_segment(made, fingerprint=OURS, config=config)


def turns(url: str, length: int, *, ttl: int | None, count: int, alone: bool = False, **signing: Any) -> Result:
    """What a turn costs a session that names so many segments: seconds, bytes both ways, round trips. Who is `alone`
    does not wait for other writers' turns.

    A turn loads the session, as a worker does that has seen the last one, and commits one segment more of 1,000 bytes
    (a real one would hide what the rest costs) and a tail of 600 tokens.
    """
    entries = [_entry(number) for number in range(length)]

    def head(tail: int) -> Head:
        # As SessionHead.to_bytes: a checksum that differs each time, then what hardly does.
        body = json.dumps({"entries": entries, "tail": list(range(tail, tail + 600))}, separators=(",", ":")).encode()
        return Head(b"BCNMHEAD" + bytes(8) + os.urandom(32) + body, tuple(entry[0] for entry in entries))

    with RedisStore(url, ttl=ttl, **signing) as store, redis.Redis.from_url(url) as client:
        client.flushall()
        small = {entry[0]: b"x" * 1000 for entry in entries}
        version = [store.commit("alice", head(0), small, expected=0)]
        store.load("alice")
        calls = [0]
        execute = store._client.execute_command

        def counted(*args: Any, **options: Any) -> Any:
            calls[0] += 1
            return execute(*args, **options)

        def ready() -> Head:
            entries.append(_entry(len(entries)))
            return head(len(entries))

        def turn(new: Head) -> None:
            with nullcontext() if alone else store.turn("alice"):
                assert store.load("alice")[1] == version[0]
                version[0] = store.commit("alice", new, {new.digests[-1]: b"x" * 1000}, expected=version[0])

        store._client.execute_command = counted
        before = client.info("stats")
        values = times({"turn": Act(turn, ready)}, repeats=count, told=lambda _: None, warm=False)
        after = client.info("stats")
    facts = {
        "segments": length,
        "ttl": ttl,
        "sent": (after["total_net_input_bytes"] - before["total_net_input_bytes"]) // count,
        # The answer to INFO itself is among them, once.
        "received": (after["total_net_output_bytes"] - before["total_net_output_bytes"]) // count,
        "round_trips": calls[0] / count,
    }
    return Result("store turn", f"{length} segments, ttl {ttl or 'none'}", "turn", values, facts=facts)


def _entry(number: int) -> list[Any]:
    """A segment as a head names it: digest, tokens, slots, ratio, document, checksum."""
    digest, checksum = (hashlib.sha256(b"%s %d" % (kind, number)).hexdigest() for kind in (b"digest", b"checksum"))
    return [digest, WINDOW, WINDOW // RATIO, RATIO, "", checksum]


def loads(bench: Bench, url: str, tokens: int) -> Result:
    """Seconds to have a session of so many raw tokens back, in a worker that holds nothing of it, read and decoded."""
    size = WINDOW * LAYERS * HEADS * WIDTH * 2 * 2
    names = [f"raw:{number}" for number in range(tokens // WINDOW)]
    with redis.Redis.from_url(url) as client:
        client.flushall()
        kept = {}
        for form in FORMS:
            bench.told(f"{tokens} tokens in {form}")
            kept[form] = _committed(url, tokens, form)
        for name in names:
            client.set(name, os.urandom(size))

        def raw(_: object) -> None:
            get(client, names, size=size * len(names), each=lambda v: torch.frombuffer(bytearray(v), dtype=torch.int16))

        acts = {form: Act(lambda store, form=form: _loaded(store, form), lambda: RedisStore(url)) for form in FORMS}
        values = times(acts | {RAW: Act(raw)}, repeats=bench.form.repeats, told=bench.told, warm=False)
        client.flushall()
    facts = {"tokens": tokens, "bytes": kept | {RAW: size * len(names)}}
    return Result("store load", str(tokens), "bfloat16", values, [Against(RAW, faster=True)], facts=facts)


def _committed(url: str, tokens: int, form: str) -> int:
    """A session named after its form; gives the bytes of its blobs."""
    with RedisStore(url) as writer:
        version, size, named = 0, 0, []
        # Committed bit by bit, as it would have grown.
        for number in range(tokens // WINDOW):
            digest, blob = segment(number, form)
            named.append(digest)
            size += len(blob)
            version = writer.commit(form, Head(b"", tuple(named)), {digest: blob}, expected=version)
    return size


def _loaded(store: RedisStore, form: str) -> None:
    with store:
        head, _ = store.load(form)
        for digest, blob in zip(head.digests, store.stream(head.digests), strict=True):
            found = decode_segment(blob, fingerprint=OURS, digest=digest)
            assert found.keys.shape == found.values.shape  # what is quantised is unpacked, as a turn does
