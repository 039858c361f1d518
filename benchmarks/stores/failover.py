"""What becomes of acknowledged turns while a master dies, hands over, hangs, or is cut off from its replicas.

Three writers each add turns to a session of their own; a master with two replicas behind a Sentinel, or a cluster of
three such masters. "Hangs" stops the master's process (SIGSTOP) until another is master, then lets it go on: nobody
reaches it, and it does not know. "Cut off" puts a proxy in front of the master that lets clients through and stops
Sentinel and replicas, until another is master: clients reach both. A cluster's nodes speak on a bus of their own, so it
is not cut off. A turn is doubled when it stands twice in its session, lost when it was acknowledged and does not stand
there at the end.

python -m benchmarks.stores.failover [--kind "redis 8"] [--only sentinel]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import select
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise

import redis

from beacon_memory.errors import SessionNotFound, StoreError
from beacon_memory.stores import Head
from beacon_memory.stores.base import retrying
from beacon_memory.stores.redis import RedisStore
from beacon_memory.testing import RedisServer, redis_cluster
from beacon_memory.testing.servers import Proxy, _Sentinel, until

WRITERS, BEFORE_S, AFTER_S = 3, 2.0, 12.0
HOWS = ("killed", "planned", "hangs", "cut off")
INNER = (b"REPLCONF", b"PSYNC", b"sentinel")  # what only Sentinel and replicas say


class CutOff(Proxy):
    """Carries bytes to a server; while `cut`, not those of Sentinel and replicas."""

    cut = False

    def carry(self, client: socket.socket, server: socket.socket) -> None:
        inner = False
        while True:
            ready = select.select([client, server], [], [], 0.05)[0]
            if self.cut and inner:
                return
            for source in ready:
                data = source.recv(1 << 16)
                if not data:
                    return
                inner = inner or (source is client and any(word in data for word in INNER))
                if self.cut and inner:
                    return
                (server if source is client else client).sendall(data)


@dataclass
class Site:
    """Servers to write to: their URL, the master of the namespace, and what each way of changing it is."""

    url: str
    master: RedisServer
    plan: Callable[[], object]
    changed: Callable[[], bool]  # whether another is master
    proxy: CutOff | None = None

    def act(self, how: str) -> None:
        """Have it happen, until another server is master and the old one is back, if it lives."""
        assert self.master.pid is not None
        if how == "killed":
            self.master.kill()
        elif how == "planned":
            self.plan()
        elif how == "hangs":
            os.kill(self.master.pid, signal.SIGSTOP)
        elif self.proxy is not None:
            self.proxy.cut = True
        until(self.changed, 30)
        if how == "hangs":
            os.kill(self.master.pid, signal.SIGCONT)
        elif self.proxy is not None:
            time.sleep(2)  # both are masters
            self.proxy.cut = False


@contextmanager
def sentinel(kind: str) -> Iterator[Site]:
    """A master and two replicas, which reach it through a proxy, as everybody does."""
    with ExitStack() as stack:
        master = stack.enter_context(RedisServer(kind))
        proxy = CutOff(master.port)
        stack.callback(proxy.close)
        replicas = [stack.enter_context(RedisServer(kind, replicaof=f"127.0.0.1 {proxy.port}")) for _ in range(2)]
        for replica in replicas:
            with redis.Redis(port=replica.port) as client:
                until(lambda client=client: client.info("replication")["master_link_status"] == "up", 30)  # type: ignore[misc]
        guard = stack.enter_context(_Sentinel(kind, master=proxy.port))
        asked = stack.enter_context(redis.Redis(port=guard.port))
        until(lambda: len(asked.execute_command("SENTINEL", "REPLICAS", "beacon")) == 2, 30)

        def changed() -> bool:
            return int(asked.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "beacon")[1]) != proxy.port

        def plan() -> None:
            def accepted() -> bool:
                with suppress(redis.ResponseError):
                    asked.execute_command("SENTINEL", "FAILOVER", "beacon")
                    return True
                return False

            until(accepted, 20)

        yield Site(f"redis+sentinel://127.0.0.1:{guard.port}/beacon/0", master, plan, changed, proxy)


@contextmanager
def cluster(kind: str) -> Iterator[Site]:
    """Three masters with two replicas each."""
    with (
        redis_cluster(kind, replicas=2) as servers,
        RedisStore(f"redis+cluster://127.0.0.1:{servers[0].port}") as store,
    ):
        port = store._client.get_node_from_key("beacon:{default}:sessions").port
        (master,) = [server for server in servers if server.port == port]
        others = [server for server in servers if server is not master]

        def roles(role: str) -> list[int]:
            found = []
            for server in others:
                with redis.Redis(port=server.port, socket_timeout=1) as client, suppress(redis.RedisError):
                    about = client.info("replication")
                    if about["role"] == role and (role == "master" or about["master_port"] == port):
                        found.append(server.port)
            return found

        def plan() -> None:
            with redis.Redis(port=roles("slave")[0]) as client:
                client.execute_command("CLUSTER", "FAILOVER")

        living = next(server for server in servers[:3] if server is not master)
        yield Site(f"redis+cluster://127.0.0.1:{living.port}", master, plan, lambda: len(roles("master")) == 3)


@dataclass
class Told:
    """What a writer was told."""

    session: str
    said: list[str] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0  # seconds until an error came


def write(url: str, told: Told, ended: threading.Event) -> None:
    """Add turns until the end; a turn that fails is not tried again by us."""
    number = 0
    with RedisStore(url) as store:
        while not ended.is_set():
            turn = f"{told.session} {number}".encode()
            digest = hashlib.sha256(turn).hexdigest()

            def add(turn: bytes = turn, digest: str = digest) -> None:
                try:
                    head, version = store.load(told.session)
                except SessionNotFound:
                    head, version = Head(b"body"), 0
                store.commit(told.session, Head(b"body", (*head.digests, digest)), {digest: turn}, expected=version)

            start = time.monotonic()
            try:
                retrying(add, seconds=10)
                told.said.append(digest)
                told.at.append(time.monotonic())
            except StoreError as exc:
                told.errors[type(exc).__name__] += 1
                told.longest = max(told.longest, time.monotonic() - start)
            number += 1


def measured(site: Site, how: str, options: str) -> list[object]:
    """Acknowledged turns, lost, doubled, errors, longest error, longest time without an acknowledged turn."""
    ended, all_told = threading.Event(), [Told(f"s{number}") for number in range(WRITERS)]
    threads = [threading.Thread(target=write, args=[site.url + options, told, ended]) for told in all_told]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    try:
        until(lambda: all(told.said for told in all_told), 30)
        time.sleep(BEFORE_S)
        site.act(how)
        time.sleep(AFTER_S)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    end, lost, doubled, silent = time.monotonic(), 0, 0, 0.0
    with RedisStore(site.url) as store:
        for told in all_told:
            kept = Counter(store.load(told.session)[0].digests)
            lost += sum(digest not in kept for digest in told.said)
            doubled += sum(count > 1 for count in kept.values())
            times = [start, *told.at, end]
            silent = max(silent, *(after - before for before, after in pairwise(times)))
    errors = sum(told.errors.total() for told in all_told)
    longest = max(told.longest for told in all_told)
    acknowledged = sum(len(told.said) for told in all_told)
    return [acknowledged, lost, doubled, errors, f"{longest:.1f}", f"{silent:.1f}"]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="valkey", help="the servers, as beacon_memory.testing names them")
    parser.add_argument("--only", choices=["sentinel", "cluster"])
    chosen = parser.parse_args()
    print("| | option | acknowledged | lost | doubled | errors | longest error, s | longest pause, s |")
    print("|---|---|---|---|---|---|---|---|")
    for name, opened in (("sentinel", sentinel), ("cluster", cluster)):
        for how in HOWS:
            if chosen.only not in (None, name) or (name, how) == ("cluster", "cut off"):
                continue
            for options in ("", "?replicas=1", "?replicas=2"):
                with opened(chosen.kind) as site:
                    cells = [f"{name}, {how}", options.lstrip("?") or "none", *measured(site, how, options)]
                print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main()
