"""What a session costs in Redis: per turn, per load, per number kept. A real server, started here; no model is loaded.

Segments have SmolLM2-135M's shape (30 layers, 3 KV heads, 64 channels: 23,040 bytes a token in bfloat16) and hold
random numbers. Raw KV is kept as others keep it: one value per 512 tokens, nothing checked, read by MGET in the same
batches.

    python benchmarks/store.py --out benchmarks/results/store.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import redis
import torch

from beacon_memory import BeaconConfig
from beacon_memory.codec import decode_segment, encode_segment
from beacon_memory.quantise import BITS, pack, unpack
from beacon_memory.state import Fingerprint, Segment, segment_digest
from beacon_memory.stores import Head
from beacon_memory.stores.redis import BATCH_BYTES, RedisStore
from beacon_memory.testing import redis_server

LAYERS, HEADS, WIDTH, WINDOW, RATIO = 30, 3, 64, 512, 8
OURS = Fingerprint("0" * 16, "none", "0" * 16, "select")
TURNS = 20


def segment(number: int, form: str) -> tuple[str, bytes]:
    """A folded window of 512 tokens at 8x: its digest and its bytes."""
    config = BeaconConfig(slot_dtype=form)
    ids = tuple(range(number, number + WINDOW))
    digest = segment_digest(ids, ratio=RATIO, sink=0, parent="", config=config, fingerprint=OURS)
    random = torch.Generator().manual_seed(number)
    keys, values = (torch.randn(LAYERS, HEADS, WINDOW // RATIO, WIDTH, generator=random) for _ in range(2))
    packed = pack(keys, values, sink=0, dtype=form) if form in BITS else None
    keys, values = unpack(packed) if packed else (keys.bfloat16(), values.bfloat16())
    made = Segment(digest, "", ids, RATIO, 0, keys, values, packed)
    return digest, encode_segment(made, fingerprint=OURS, config=config)


def turns(url: str, length: int, *, ttl: int | None) -> dict[str, Any]:
    """What a turn costs a session that names so many segments: bytes both ways, round trips, seconds.

    A turn loads the session, as a worker does that has seen the last one, and commits one segment more of 1,000 bytes
    (a real one would hide what the rest costs) and a tail of 600 tokens.
    """
    entries = [[hashlib.sha256(b"%d" % n).hexdigest(), WINDOW, WINDOW // RATIO, RATIO, ""] for n in range(length)]

    def head(tail: int) -> Head:
        # As SessionHead.to_bytes: a checksum that differs each time, then what hardly does.
        body = json.dumps({"entries": entries, "tail": list(range(tail, tail + 600))}, separators=(",", ":")).encode()
        return Head(b"BCNMHEAD" + bytes(8) + os.urandom(32) + body, tuple(entry[0] for entry in entries))

    with RedisStore(url, ttl=ttl) as store, redis.Redis.from_url(url) as client:
        client.flushall()
        small = {entry[0]: b"x" * 1000 for entry in entries}
        version = store.commit("alice", head(0), small, expected=0)
        store.load("alice")
        calls = [0]
        execute = store._client.execute_command

        def counted(*args: Any, **options: Any) -> Any:
            calls[0] += 1
            return execute(*args, **options)

        store._client.execute_command = counted
        seconds, before = [], client.info("stats")
        for turn in range(TURNS):
            entries.append([hashlib.sha256(b"%d" % (length + turn)).hexdigest(), WINDOW, WINDOW // RATIO, RATIO, ""])
            new = head(turn + 1)
            start = time.perf_counter()
            assert store.load("alice")[1] == version
            version = store.commit("alice", new, {entries[-1][0]: b"x" * 1000}, expected=version)
            seconds.append(time.perf_counter() - start)
        after = client.info("stats")
    return {
        "segments": length,
        "ttl": ttl,
        "sent": (after["total_net_input_bytes"] - before["total_net_input_bytes"]) // TURNS,
        # The answer to INFO itself is among them, once.
        "received": (after["total_net_output_bytes"] - before["total_net_output_bytes"]) // TURNS,
        "round_trips": calls[0] / TURNS,
        "milliseconds": round(1000 * statistics.median(seconds), 2),
    }


def loads(url: str, tokens: int, form: str, *, repeats: int) -> dict[str, Any]:
    """Seconds to have a session of so many raw tokens back, in a worker that holds nothing of it."""
    with redis.Redis.from_url(url) as client, RedisStore(url) as writer:
        client.flushall()
        blobs = dict(segment(number, form) for number in range(tokens // WINDOW))
        # Committed bit by bit, as it would have grown.
        version, named = 0, []
        for digest, blob in blobs.items():
            named.append(digest)
            version = writer.commit("alice", Head(b"", tuple(named)), {digest: blob}, expected=version)
        stored = client.info("memory")["used_memory_dataset"]
        seconds, decoded = [], []
        for _ in range(repeats):
            with RedisStore(url) as store:
                start = time.perf_counter()
                head, _ = store.load("alice")
                found = store.read(head.digests)
                seconds.append(time.perf_counter() - start)
                for digest, blob in zip(head.digests, found, strict=True):
                    decode_segment(blob, fingerprint=OURS, digest=digest)
                decoded.append(time.perf_counter() - start)
    return {
        "tokens": tokens,
        "kept": form,
        "bytes": sum(map(len, blobs.values())),
        "server_bytes": stored,
        "read": round(min(seconds), 3),
        "read_and_decoded": round(min(decoded), 3),
    }


def raw_loads(url: str, tokens: int, *, repeats: int) -> dict[str, Any]:
    """The same for raw keys and values in bfloat16."""
    size = WINDOW * LAYERS * HEADS * WIDTH * 2 * 2
    with redis.Redis.from_url(url) as client:
        client.flushall()
        names = [f"raw:{number}" for number in range(tokens // WINDOW)]
        for name in names:
            client.set(name, os.urandom(size))
        stored = client.info("memory")["used_memory_dataset"]
        seconds = []
        batch = max(1, BATCH_BYTES // size)
        for _ in range(repeats):
            with redis.Redis.from_url(url) as reader:
                start = time.perf_counter()
                for first in range(0, len(names), batch):
                    # Given back at once: all of 128K tokens would be 3 GB.
                    for value in reader.mget(names[first : first + batch]):
                        torch.frombuffer(bytearray(value), dtype=torch.bfloat16)
                seconds.append(time.perf_counter() - start)
        client.flushall()
    return {
        "tokens": tokens,
        "kept": "raw",
        "bytes": size * len(names),
        "server_bytes": stored,
        "read_and_decoded": round(min(seconds), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="valkey", choices=("redis", "valkey"))
    parser.add_argument("--lengths", default="10,100,1000,5000", help="segments that a session names before a turn")
    parser.add_argument("--tokens", default="4096,32768,131072")
    parser.add_argument("--repeats", type=int, default=3, help="loads of each, of which the fastest counts")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)

    results: dict[str, Any] = {"kind": args.kind, "turns": [], "loads": []}
    with redis_server(args.kind) as url:
        print("segments      ttl    sent  received  round trips  ms a turn")
        for length in map(int, args.lengths.split(",")):
            for ttl in (None, 86_400):
                row = turns(url, length, ttl=ttl)
                results["turns"].append(row)
                print(
                    f"{length:>8} {ttl or 'none':>8} {row['sent']:>7,} {row['received']:>9,} {row['round_trips']:>12} "
                    f"{row['milliseconds']:>10}"
                )
        print("  tokens      kept           bytes  read s  and decoded")
        for tokens in map(int, args.tokens.split(",")):
            rows = [loads(url, tokens, form, repeats=args.repeats) for form in ("bfloat16", "int8", "int4")]
            for row in [*rows, raw_loads(url, tokens, repeats=args.repeats)]:
                results["loads"].append(row)
                print(
                    f"{tokens:>8} {row['kept']:>9} {row['bytes']:>15,} {row.get('read', ''):>7} "
                    f"{row['read_and_decoded']:>12}",
                    flush=True,
                )
            if args.out:
                args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
