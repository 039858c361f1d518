"""Servers that go, come back, are full, slow, or cut a reply in two: nothing acknowledged is lost, nothing is wrong."""

from __future__ import annotations

import os
import random
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

import beacon_memory
from beacon_memory.errors import SessionConflict, SessionNotFound, StoreUnavailable
from beacon_memory.stores import Head, StateStore
from beacon_memory.stores.redis import RedisStore
from beacon_memory.testing import RedisServer, redis_cluster, redis_sentinel, redis_server
from beacon_memory.testing.servers import Proxy, until
from beacon_memory.testing.stores import digest, put

WRITERS = Path(__file__).with_name("store_writers.py")
# The package that is tested here, not one that is installed.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(beacon_memory.__file__).parents[1])}


def impatient(port: int, **settings: object) -> redis.Redis:
    return redis.Redis(port=port, retry=Retry(NoBackoff(), 0), **settings)  # type: ignore[arg-type]


class Cut(Proxy):
    """A way to a server that ends after so many bytes of replies, each time it is used, until it is mended."""

    left: int | None = None  # bytes of replies that still come through; None for all
    cuts = 0

    def carry(self, client: socket.socket, server: socket.socket) -> None:
        while True:
            for source in select.select([client, server], [], [])[0]:
                if not (data := source.recv(65536)):
                    return
                if source is client:
                    server.sendall(data)
                    continue
                through = data if self.left is None else data[: self.left]
                if self.left is not None:
                    self.left -= len(through)
                client.sendall(through)
                if len(through) < len(data):
                    self.cuts += 1
                    return


@contextmanager
def cut_store(port: int, *, retries: int) -> Iterator[tuple[Cut, RedisStore]]:
    way = Cut(port)
    client = redis.Redis(port=way.port, retry=Retry(NoBackoff(), retries))
    try:
        yield way, RedisStore(client=client)
    finally:
        client.close()
        way.close()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer("valkey") as server:
        yield server


def test_a_connection_cut_anywhere_in_a_reply_gives_an_error_or_the_truth(server: RedisServer) -> None:
    with cut_store(server.port, retries=0) as (way, store), redis.Redis(port=server.port) as direct:
        blobs = [b"%d" % number * 50 for number in range(4)]
        truth = RedisStore(client=direct)
        for left in [*range(0, 60, 3), *range(60, 1200, 61)]:
            direct.flushdb()
            first = put(truth, "alice", *blobs, body=b"first")
            store.version("alice")  # a connection, and whatever else greets it
            for act in (
                lambda: store.load("alice"),
                lambda: store.read([digest(blob) for blob in blobs]),
                store.sessions,
                partial(put, store, "alice", *blobs, b"new", expected=first, body=b"second"),
            ):
                way.left = left
                try:
                    found = act()
                except StoreUnavailable:
                    continue
                if isinstance(found, tuple):
                    assert found == (Head(b"first", tuple(map(digest, blobs))), first)
                elif isinstance(found, list):
                    assert found in (blobs, ["alice"])
            way.left = None
            head, version = truth.load("alice")
            assert (head.body, version == first) in ((b"first", True), (b"second", False))
            assert store.load("alice") == (head, version), "what was on hand is not the truth"
        assert way.cuts > 20


def test_a_commit_whose_reply_is_lost_is_sent_again_and_is_one_commit(server: RedisServer) -> None:
    with cut_store(server.port, retries=3) as (way, store), redis.Redis(port=server.port) as direct:
        direct.flushdb()
        version = put(store, "alice", b"one")
        for number in range(20):
            way.left = number % 4
            timer = threading.Timer(0.02, lambda: setattr(way, "left", None))
            timer.start()
            try:
                version = put(store, "alice", b"one", b"%d" % number, expected=version)
            except StoreUnavailable:
                timer.join()
                version = store.load("alice")[1]
            timer.join()
            way.left = None
            assert store.version("alice") == version


def test_a_slow_server_is_unavailable_and_then_not(server: RedisServer) -> None:
    with redis.Redis(port=server.port) as direct, impatient(server.port, socket_timeout=0.1) as client:
        direct.flushdb()
        store = RedisStore(client=client)
        version = put(store, "alice", b"one")
        direct.client_pause(400)
        with pytest.raises(StoreUnavailable, match=r"(?i)timeout"):
            put(store, "alice", b"one", b"two", expected=version)
        until(lambda: direct.ping(), 10)
        head, moved = store.load("alice")
        assert (moved == version) == (head.digests == (digest(b"one"),))


def test_a_server_that_starts_again_is_found_again_without_anyones_help() -> None:
    with RedisServer("redis", appendonly="yes", appendfsync="always") as server:
        store = RedisStore(server.url)
        version = put(store, "alice", b"one")
        server.kill()
        again = threading.Timer(0.5, server.start)
        again.start()
        # The retries of the store's own client outlive the restart.
        assert put(store, "alice", b"one", b"two", expected=version) == store.version("alice")
        assert store.read([digest(b"two")]) == [b"two"]
        again.join()  # it may still be waiting for the server's first answer, which the store has already
        store.close()


def more(acknowledged: dict[str, list[bytes]], turns: int) -> Callable[[], bool]:
    """Whether so many turns more than now were acknowledged."""
    now = sum(map(len, acknowledged.values()))
    return lambda: sum(map(len, acknowledged.values())) >= now + turns


def hammer(store: StateStore, session: str, ended: threading.Event, acknowledged: dict[str, list[bytes]]) -> None:
    """Append turn after turn, noting those that were acknowledged; what is in doubt is looked up."""
    said: list[bytes] = []
    version, number = 0, 0
    while not ended.is_set():
        turn = b"%s %d" % (session.encode(), number)
        try:
            version = put(store, session, *said, turn, body=b"%d" % (number + 1), expected=version)
            said, number = [*said, turn], number + 1
        except (StoreUnavailable, SessionConflict):
            try:
                head, version = store.load(session)
            except SessionNotFound:
                version = 0
                continue
            except StoreUnavailable:
                continue
            # A commit without an answer may have been made: nothing else may have happened.
            assert int(head.body) in (number, number + 1)
            if int(head.body) > number:
                said, number = [*said, turn], number + 1
        acknowledged[session] = said


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_nothing_acknowledged_is_lost_when_the_server_is_killed_under_load(kind: str) -> None:
    with RedisServer(kind, appendonly="yes", appendfsync="always") as server:
        ended, acknowledged = threading.Event(), dict[str, list[bytes]]()
        stores = [RedisStore(client=impatient(server.port)) for _ in range(4)]
        threads = [
            threading.Thread(target=hammer, args=(store, f"writer {number}", ended, acknowledged))
            for number, store in enumerate(stores)
        ]
        for thread in threads:
            thread.start()
        seconds = []
        for _ in range(2):
            until(more(acknowledged, 40), 30)
            server.kill()
            start = time.monotonic()
            server.start()
            until(more(acknowledged, 1), 30)
            seconds.append(time.monotonic() - start)
        ended.set()
        for thread in threads:
            thread.join()
        with RedisStore(server.url) as store:
            for session, said in acknowledged.items():
                head, _ = store.load(session)
                assert store.read(head.digests)[: len(said)] == said
            assert store.gc() == 0
        print(f"{kind}: {sum(map(len, acknowledged.values()))} turns, back after {seconds}")


def test_a_cluster_that_fails_over_loses_nothing_it_had_replicated() -> None:
    with redis_cluster("valkey", replicas=1) as servers:
        store = RedisStore(f"redis+cluster://127.0.0.1:{servers[0].port}")
        version, said = 0, []
        for number in range(30):
            said.append(b"turn %d" % number)
            version = put(store, "alice", *said, expected=version)
        node = store._client.get_node_from_key("beacon:{default}:sessions")
        (master,) = [server for server in servers if server.port == node.port]
        with redis.Redis(port=master.port) as client:
            assert client.wait(1, 5000) == 1
        master.kill()
        start = time.monotonic()

        def back() -> bool:
            try:
                return store.load("alice")[1] == version
            except StoreUnavailable:
                return False

        until(back, 30)
        version = put(store, "alice", *said, b"and on", expected=version)
        print(f"back after {time.monotonic() - start:.1f} s")
        other = RedisStore(f"redis+cluster://127.0.0.1:{next(s.port for s in servers if s is not master)}")
        head, found = other.load("alice")
        assert (other.read(head.digests), found) == ([*said, b"and on"], version)
        store.close()
        other.close()


def test_a_sentinel_names_the_next_master() -> None:
    with redis_sentinel("redis") as (url, (master, replica)):
        store = RedisStore(url)
        version = put(store, "alice", b"one")
        with redis.Redis(port=master.port) as client:
            assert client.wait(1, 5000) == 1
        master.kill()

        def back() -> bool:
            nonlocal version
            try:
                version = put(store, "alice", b"one", b"two", expected=store.load("alice")[1])
            except StoreUnavailable:
                return False
            return True

        print(f"sentinel: back after {until(back, 30):.1f} s")
        with RedisStore(replica.url) as other:
            assert other.load("alice")[1] == version
        store.close()


def test_writers_in_many_processes_lose_nothing_and_write_nothing_twice() -> None:
    with redis_server("valkey") as url:
        writers = [
            subprocess.Popen(
                [sys.executable, WRITERS, "append", url, f"writer-{number}", "50"],
                stdout=subprocess.PIPE,
                text=True,
                env=ENVIRONMENT,
            )
            for number in range(8)
        ]
        acknowledged: dict[str, list[str]] = {}
        for writer in writers:
            said, _ = writer.communicate()
            assert writer.returncode == 0
            for line in said.splitlines():
                session, turn = line.split(" ")
                acknowledged.setdefault(session, []).append(turn)
        with RedisStore(url) as store:
            assert store.sessions() == sorted(acknowledged)
            for session in store.sessions():
                head, _ = store.load(session)
                turns = [blob.decode() for blob in store.read(head.digests)]
                assert sorted(turns) == sorted(acknowledged[session])
                for writer_name in {turn.rpartition("-")[0] for turn in turns}:
                    own = [turn for turn in turns if turn.startswith(f"{writer_name}-")]
                    assert own == [f"{writer_name}-{number}" for number in range(50)]
            assert store.gc() == 0


def killed(kind: str, times: int) -> str:
    with redis_server(kind) as url:
        seed = str(random.randrange(10_000))
        command = [sys.executable, str(WRITERS), "kill", url, str(times), seed]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
        assert done.returncode == 0, f"seed {seed}: {done.stderr}"
        return done.stdout


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_a_writer_killed_at_any_moment_leaves_every_session_at_a_committed_version(kind: str) -> None:
    assert killed(kind, 25).startswith("25 kills")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_a_writer_killed_300_times_leaves_every_session_at_a_committed_version(kind: str) -> None:
    print(killed(kind, 300))
