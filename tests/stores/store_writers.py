"""Writers in processes of their own, for tests that kill them: a store, and no torch.

    python tests/store_writers.py append URL WRITER TURNS    one writer's turns, to a session of all and one of its own
    python tests/store_writers.py kill URL KILLS SEED        writers killed at random moments, the store checked after

A session's body lists the digests it names: a head that does not match its list, or names what is not there, is torn.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time

from beacon_memory.errors import SessionConflict, SessionExists, SessionNotFound
from beacon_memory.stores import Head, StateStore, open_store
from beacon_memory.stores.base import retrying

SESSIONS = ("alice", "bob", "carol")


def digest(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def append(store: StateStore, session: str, turn: str) -> None:
    """One turn of a session, kept as a blob of its own."""
    blob = turn.encode()

    def once() -> None:
        try:
            head, version = store.load(session)
        except SessionNotFound:
            head, version = Head(b"[]"), 0
        grown = Head(json.dumps([*json.loads(head.body), turn]).encode(), (*head.digests, digest(blob)))
        store.commit(session, grown, {digest(blob): blob}, expected=version)

    retrying(once, attempts=100_000)


def appends(url: str, writer: str, turns: int) -> None:
    with open_store(url) as store:
        for number in range(turns):
            for session in ("all", writer):
                append(store, session, f"{writer}-{number}")
                print(session, f"{writer}-{number}", flush=True)  # acknowledged


def acts(store: StateStore, draw: random.Random) -> None:
    """Commits, forks, forgets and re-folds, for ever."""
    while True:
        session, other = draw.sample(SESSIONS, 2)
        try:
            act = draw.random()
            if act < 0.15:
                store.fork(session, other)
            elif act < 0.3:
                store.delete(session)
            else:
                write(store, session, draw, refold=act < 0.5)
        except (SessionConflict, SessionExists, SessionNotFound):
            continue


def write(store: StateStore, session: str, draw: random.Random, *, refold: bool) -> None:
    try:
        head, version = store.load(session)
    except SessionNotFound:
        head, version = Head(b"[]"), 0
    named = json.loads(head.body)
    blobs = {digest(blob): blob for blob in (draw.randbytes(draw.choice([50, 5_000, 200_000])) for _ in range(3))}
    # A re-fold puts new segments in the place of the oldest ones.
    after = [*blobs, *named[3:]] if refold else [*named, *blobs][-40:]
    store.commit(session, Head(json.dumps(after).encode(), tuple(after)), blobs, expected=version)


def check(url: str) -> int:
    """The number of blobs swept; before, every session stands at a committed version, after, nothing else is left."""
    with open_store(url) as store:
        named: set[str] = set()
        for session in store.sessions():
            head, _ = store.load(session)
            assert json.loads(head.body) == list(head.digests), f"{session} is torn"
            assert [digest(blob) for blob in store.read(head.digests)] == list(head.digests), f"{session} is wrong"
            named |= set(head.digests)
        swept = store.gc()
        client, prefix = store._client, store._prefix  # type: ignore[attr-defined]
        kept = {key.decode().removeprefix(prefix) for key in client.scan_iter(match="*", count=10_000)}
        fixed = {":sessions", ":ledger", ":lives"} if store.sessions() else set()
        expected = fixed | {f":head:{session}" for session in store.sessions()}
        expected |= {f":{kind}:{one}" for one in named for kind in ("blob", "refs")}
        assert kept == expected, f"left behind: {sorted(kept - expected)}, missing: {sorted(expected - kept)}"
        counted = sum(client.strlen(f"{prefix}:blob:{one}") for one in named)
        assert int(client.hget(f"{prefix}:ledger", "bytes") or 0) == counted, "the ledger does not add up"
    return swept


def kills(url: str, times: int, seed: int) -> None:
    draw = random.Random(seed)
    staged = 0
    for number in range(times):
        child = os.fork()
        if not child:
            from beacon_memory.stores.redis import store as module

            # Half of the writers send blobs in front of their commits.
            module.INLINE_BYTES = 100_000 if number % 2 else module.INLINE_BYTES
            with open_store(url) as store:
                acts(store, random.Random(seed * 1000 + number))
        time.sleep(0.005 + 0.05 * draw.random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        staged += check(url)
    print(f"{times} kills; {staged} blobs swept that were on their way to a commit", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "append":
        appends(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        kills(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
