"""What a release does in the situations of a table in docs/security.md, by names that old and new releases have.

Run it as a file, so that the release on PYTHONPATH is the one that is met:

git worktree add /tmp/old 3df28e9
PYTHONPATH=/tmp/old python benchmarks/stores/old_release.py
PYTHONPATH=. python benchmarks/stores/old_release.py
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis
import torch
from safetensors.torch import load, save

from beacon_memory import BeaconConfig, BeaconMemory
from beacon_memory.errors import BeaconError
from beacon_memory.stores import Head
from beacon_memory.stores.redis import RedisStore
from beacon_memory.testing import RedisServer, redis_server, tiny_model

try:
    from beacon_memory.state.codec import HEAD, SEGMENT, seal, unseal
except ImportError:  # before the package had rooms
    from beacon_memory.codec import HEAD, SEGMENT, seal, unseal  # type: ignore[import-not-found,no-redef]

KEY = b"a key of this deployment"
LEASE = "The lease ends on 31 March 2027. The rent is 900 euros a month. " * 4
SECRET = "ZEBRA-7731"
MODEL = tiny_model(config=BeaconConfig(window=32, keep_last=8, sink=2, anchors="last"), max_position_embeddings=2048)
HEAD_KEY, LEDGER, INDEX = "beacon:{default}:head:alice", "beacon:{default}:ledger", "beacon:{default}:sessions"


def opened(url: str, **options: Any) -> BeaconMemory:
    return BeaconMemory(MODEL, RedisStore(url, **options))


def tried(act: Callable[[], object]) -> str:
    """What came: "ok", one of our errors by name, or another one marked as raw."""
    try:
        act()
    except BeaconError as exc:
        return type(exc).__name__
    except Exception as exc:
        return f"raw {type(exc).__name__}"
    return "ok"


def crafted_import(url: str, folder: Path) -> str:
    victim = opened(url, key=KEY)
    victim.session("alice").add_text(LEASE, name="lease")
    before = [segment.keys.clone() for segment in victim.session("alice").state().segments]
    evil = BeaconMemory.open(MODEL, "memory://")
    evil.session("x").add_text(LEASE, name="lease")
    evil.session("x").export(folder / "x.zip")
    with zipfile.ZipFile(folder / "x.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    head = json.loads(unseal(HEAD, files["head"]))
    for name, blob in list(files.items()):
        if blob[4:8] == SEGMENT:
            payload = unseal(SEGMENT, blob)
            about = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])["__metadata__"]
            tensors = load(payload) | {"keys": torch.randn_like(load(payload)["keys"].float()).bfloat16()}
            tensors["keys"] = tensors["keys"].to(load(payload)["keys"].dtype)
            files[name] = seal(SEGMENT, save(tensors, metadata=about), version=int.from_bytes(blob[8:12], "little"))
    for entry in head["entries"]:
        del entry[5:]  # no checksum, as an old archive has it
    files["head"] = seal(HEAD, json.dumps(head).encode())
    with zipfile.ZipFile(folder / "y.zip", "w") as archive:
        for name, blob in files.items():
            archive.writestr(name, blob)
    said = tried(lambda: victim.import_session(folder / "y.zip", name="mallory"))
    after = [segment.keys for segment in opened(url, key=KEY).session("alice").state().segments]
    other = sum(not torch.equal(one, two) for one, two in zip(before, after, strict=True))
    return f"import {said}; {other} of {len(before)} segments of another session changed"


def reply_lost(url: str, folder: Path) -> str:
    mine, his = opened(url), opened(url)
    mine.session("alice").add("first " * 30)

    class Client(redis.Redis):
        waiting = True

        def evalsha(self, *args: Any) -> Any:
            reply = super().evalsha(*args)
            if self.waiting:
                self.waiting = False
                head, version = his.store.load("alice")
                his.store.commit("alice", Head(head.body, head.digests), {}, expected=version)
                return super().evalsha(*args)
            return reply

    mine.store._commit.registered_client = Client.from_url(url)  # type: ignore[attr-defined]
    mine.session("alice").add("said once")
    found = [m["content"] for m in opened(url).session("alice").messages()]
    return f"stored {found.count('said once')} times"


def rolled_back(url: str, folder: Path) -> str:
    with redis.Redis.from_url(url) as client:
        opened(url, key=KEY).session("alice").add("I live in Lyon.")
        kept = {key: client.dump(key) or b"" for key in client.scan_iter()}
        opened(url, key=KEY).session("alice").add("I moved to Oslo.")
        pin = opened(url, key=KEY).session("alice").info().version
        client.flushall()
        for key, value in kept.items():
            client.restore(key, 0, value)
        opened(url, key=KEY).session("alice").add("By a worker that knows nothing.")
    return "a pin, after one more turn: " + tried(lambda: opened(url, key=KEY).session("alice", at_least=pin).info())


def emptied(url: str, folder: Path) -> str:
    memory = opened(url, key=KEY)
    memory.session("alice").add("I live in Lyon.")
    with redis.Redis.from_url(url) as client:
        client.flushall()
    return "the next turn of a worker that has seen it: " + tried(lambda: memory.session("alice").add("More."))


def forgotten(url: str, folder: Path) -> str:
    memory, other = opened(url), opened(url)
    memory.session("alice").add("My secret. " * 9)
    stream: Any = memory.session("alice").chat("Tell me again", stream=True, max_new_tokens=6)
    next(stream)
    other.session("alice").forget()
    return f"the rest of the stream: {tried(lambda: list(stream))}; sessions then: {other.sessions()}"


def left_in_files(url: str, folder: Path) -> str:
    memory = BeaconMemory.open(MODEL, f"sqlite:///{folder}/m.db")
    for _ in range(20):
        memory.session("alice").add(f"My code is {SECRET}. " * 9)
    reader = sqlite3.connect(folder / "m.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM heads").fetchone()
    start = time.monotonic()
    memory.session("alice").forget()
    took = time.monotonic() - start
    reader.execute("COMMIT")
    reader.close()
    memory.session("bob").add("Another turn.")
    found = sum(path.read_bytes().count(SECRET.encode()) for path in folder.glob("m.db*"))
    return f"forget beside a reader took {took:.0f} s; {found} copies after the next turn"


def ledger_lost(url: str, folder: Path) -> str:
    opened(url, key=KEY).session("alice").add("I am Alice.")
    with redis.Redis.from_url(url) as client:
        client.delete(LEDGER)
    swept = tried(lambda: opened(url, key=KEY).store.gc())
    return f"gc: {swept}; then reading: " + tried(lambda: opened(url, key=KEY).session("alice").messages())


def hung(url: str, folder: Path) -> str:
    with RedisServer("valkey") as server:
        memory = opened(server.url)
        memory.session("alice").add("x")
        assert server._process is not None
        os.kill(server._process.pid, signal.SIGSTOP)
        start = time.monotonic()
        said = tried(lambda: memory.session("alice").add("y"))
        took = time.monotonic() - start
        os.kill(server._process.pid, signal.SIGCONT)
    return f"{said} after {took:.0f} s"


def crowd(url: str, folder: Path) -> str:
    memory = opened(url)
    memory.session("alice").add("x")
    start, found = threading.Barrier(200), list[str]()

    def work() -> None:
        start.wait()
        found.append(tried(lambda: memory.store.load("alice")))

    threads = [threading.Thread(target=work) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return f"{len(found) - found.count('ok')} of 200 threads got an error"


def damaged(url: str, folder: Path) -> str:
    found = []
    with redis.Redis.from_url(url) as client:
        for field, value in (("digests", "[" * 100_000), ("version", "abc"), ("version", "9" * 5000)):
            client.flushall()
            opened(url).session("alice").add("x")
            client.hset(HEAD_KEY, field, value)
            found += [tried(lambda: opened(url).session("alice").messages()), tried(lambda: opened(url).store.gc())]
        client.flushall()
        opened(url).session("alice").add("x")
        client.zadd(INDEX, {b"\xff\xfe": 1e18})
        found.append(tried(lambda: opened(url).sessions()))
    return ", ".join(sorted({one for one in found if one.startswith("raw")})) or "our errors alone"


def edited_file(url: str, folder: Path) -> str:
    def memory() -> BeaconMemory:
        with suppress(Exception):
            return BeaconMemory.open(MODEL, f"sqlite:///{folder}/m.db", key=KEY)
        return BeaconMemory.open(MODEL, f"sqlite:///{folder}/m.db")

    with memory() as first:
        first.session("alice").add("I live in Lyon.")
    with sqlite3.connect(folder / "m.db") as db:
        (body,) = db.execute("SELECT body FROM heads").fetchone()
        head = unseal(HEAD, body).replace(b"Lyon", b"Rome")
        db.execute("UPDATE heads SET body = ?", [seal(HEAD, head)])
    db.close()
    with memory() as later:
        return "a text changed in the file, read: " + tried(lambda: later.session("alice").messages())


ROWS = [crafted_import, reply_lost, rolled_back, emptied, forgotten, left_in_files, ledger_lost, hung, crowd, damaged]
ROWS += [edited_file]


def main() -> None:
    """Print a line for each situation."""
    print(Path(sys.modules["beacon_memory"].__file__ or "").parent)
    with redis_server("redis") as url, redis.Redis.from_url(url) as client:
        for row in ROWS:
            client.flushall()
            with tempfile.TemporaryDirectory() as folder:
                try:
                    found = row(url, Path(folder))
                except Exception as exc:
                    found = f"ended with {type(exc).__name__}: {exc}"
                print(f"{row.__name__}: {found}", flush=True)


if __name__ == "__main__":
    main()
