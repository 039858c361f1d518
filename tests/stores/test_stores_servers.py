"""Servers as they are run: with TLS and users, failed over under load, hanging, shared by many threads."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from beacon_memory.errors import MissingExtra, SessionConflict, SessionNotFound, StoreError, StoreUnavailable
from beacon_memory.stores import StateStore
from beacon_memory.stores.redis import RedisStore
from beacon_memory.testing import RedisServer, StoreContract, redis_cluster, redis_sentinel
from beacon_memory.testing.servers import until
from beacon_memory.testing.stores import digest, holds, put

KEY = b"a key of this deployment"
SYSTEM = ["system redis", "system valkey"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    try:
        subprocess.run([*command, "-keyout", "key", "-out", "cert"], cwd=folder, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl on this machine")
    return folder


@pytest.fixture(scope="module", params=SYSTEM)
def secure(request: pytest.FixtureRequest, certificate: Path) -> Iterator[RedisServer]:
    """A server of the system's with TLS, and a user who may do what docs/redis.md says."""
    port = RedisServer("redis").port
    tls = {"tls_cert_file": certificate / "cert", "tls_key_file": certificate / "key"}
    try:
        server = RedisServer(
            request.param, tls_port=port, tls_ca_cert_file=certificate / "cert", tls_auth_clients="no", **tls
        )
    except MissingExtra as exc:
        pytest.skip(str(exc))
    server.tls_url = f"rediss://beacon:s3cret@127.0.0.1:{port}/0?ssl_ca_certs={certificate}/cert"  # type: ignore[attr-defined]
    with server:
        with redis.Redis(port=server.port) as client:
            client.execute_command(
                "ACL", "SETUSER", "beacon", "on", ">s3cret", "~beacon:*",
                "+@read", "+@write", "+@scripting", "+@connection", "+time",
            )  # fmt: skip
        yield server


class TestRedisStoreOverTlsAsAUser(StoreContract):
    """The whole contract over TLS, as a user with the rights that the documents name and no others."""

    @pytest.fixture
    def store(self, secure: RedisServer) -> Iterator[StateStore]:
        with redis.Redis(port=secure.port) as client:
            client.flushall()
        with RedisStore(secure.tls_url, key=KEY, ttl=600) as store:  # type: ignore[attr-defined]
            yield store


def test_a_server_whose_certificate_nobody_vouches_for_is_unavailable(secure: RedisServer) -> None:
    url: str = secure.tls_url  # type: ignore[attr-defined]
    with RedisStore(url.partition("?")[0] + "?timeout=2") as store, pytest.raises(StoreUnavailable) as caught:
        store.load("alice")
    assert "s3cret" not in str(caught.value)


def test_a_user_without_rights_is_told_so(secure: RedisServer) -> None:
    with redis.Redis(port=secure.port) as client:
        client.execute_command("ACL", "SETUSER", "reader", "on", ">pw-s3cret", "~beacon:*", "+@read", "+@connection")
    url = f"redis://reader:pw-s3cret@127.0.0.1:{secure.port}/0"
    with RedisStore(url) as store, pytest.raises(StoreUnavailable, match=r"(?i)permission") as caught:
        put(store, "alice", b"one")
    assert "pw-s3cret" not in str(caught.value)


# Time


def test_a_server_that_hangs_is_given_up_within_the_stated_time() -> None:
    """It took 59 seconds until an error came."""
    with RedisServer("valkey") as server, RedisStore(f"{server.url}?timeout=3") as store:
        version = put(store, "alice", b"one")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for act in (
                lambda: store.load("alice"),
                lambda: store.read([digest(b"one")]),
                lambda: put(store, "alice", expected=version),
            ):
                start = time.monotonic()
                with pytest.raises(StoreUnavailable):
                    act()
                assert time.monotonic() - start < 4
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert store.read([digest(b"one")]) == [b"one"]


def test_two_hundred_threads_wait_for_a_connection() -> None:
    """The 101st thread got an error."""
    with RedisServer("redis") as server, RedisStore(server.url) as store:
        put(store, "alice", b"one")
        start, results = threading.Barrier(200), Counter[str]()

        def work() -> None:
            start.wait()
            for _ in range(3):
                try:
                    store.load("alice")
                    results["read" if holds(store, b"one") else "lost"] += 1
                except StoreError as exc:
                    results[str(exc)] += 1

        threads = [threading.Thread(target=work) for _ in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with redis.Redis(port=server.port) as client:
            assert int(client.info("clients")["connected_clients"]) <= 65
        assert results == {"read": 600}


# Failing over under load


def hammered(url: str, act: Callable[[], object], *, writers: int = 3, seconds: float = 5) -> dict[str, int]:
    """What became of turns that were acknowledged, while `act` happened to the servers."""
    ended, said = threading.Event(), {f"s{number}": list[bytes]() for number in range(writers)}
    errors = Counter[str]()

    def write(session: str) -> None:
        number = 0
        with RedisStore(url, key=KEY) as store:
            while not ended.is_set():
                turn = b"%d" % number
                try:
                    try:
                        head, version = store.load(session)
                        named = list(store.read(head.digests[-1:])) and head.digests
                    except SessionNotFound:
                        version, named = 0, ()
                    unique = session.encode() + b" " + turn
                    blobs = {digest(unique): unique}
                    new = type(head)(b"", (*named, digest(unique))) if version else None
                    if new is None:
                        put(store, session, unique)
                    else:
                        store.commit(session, new, blobs, expected=version)
                    said[session].append(unique)
                except (StoreUnavailable, SessionConflict, StoreError) as exc:
                    errors[type(exc).__name__] += 1
                number += 1

    threads = [threading.Thread(target=write, args=[session]) for session in said]
    for thread in threads:
        thread.start()
    try:
        until(lambda: all(len(turns) > 20 for turns in said.values()), 30)
        act()
        time.sleep(seconds)
        now = {session: len(turns) for session, turns in said.items()}
        until(lambda: all(len(said[session]) > now[session] + 5 for session in said), 40)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    with RedisStore(url, key=KEY) as store:
        lost = 0
        for session, turns in said.items():
            head, _ = store.load(session)
            kept = set(store.read(head.digests))
            lost += sum(turn not in kept for turn in turns)
    return {"acknowledged": sum(map(len, said.values())), "lost": lost, **errors}


def planned(guard: redis.Redis) -> None:
    """Have the sentinel change the master, as soon as it thinks the replica fit for it."""

    def accepted() -> bool:
        try:
            guard.execute_command("SENTINEL", "FAILOVER", "beacon")
        except redis.ResponseError:
            return False
        return True

    until(accepted, 20)


@pytest.mark.parametrize("how", ["planned", "killed"])
def test_with_replicas_no_failover_of_a_sentinel_loses_an_acknowledged_turn(how: str) -> None:
    """A planned failover lost 3,200 of 5,867 acknowledged turns, without an error."""
    with redis_sentinel("redis") as (url, (master, _)), redis.Redis(port=int(url.split(":")[2].split("/")[0])) as guard:
        act = master.kill if how == "killed" else lambda: planned(guard)
        if how == "planned":
            found = hammered(f"{url}?replicas=1", act)
            print(f"planned, replicas=1: {found}")
            assert found["lost"] == 0
            return
        # There is nobody left to replicate to: nothing is acknowledged that could be lost.
        with RedisStore(f"{url}?replicas=1&timeout=3") as store:
            version = put(store, "alice", b"one")
            act()

            def back() -> bool:
                try:
                    return store.load("alice")[1] == version
                except StoreUnavailable:
                    return False

            until(back, 30)
            with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
                put(store, "alice", b"one", b"two", expected=version)


def test_with_replicas_no_failover_of_a_cluster_loses_an_acknowledged_turn() -> None:
    with redis_cluster("valkey", replicas=1) as servers:
        url = f"redis+cluster://127.0.0.1:{servers[0].port}"
        with RedisStore(url) as store:
            node = store._client.get_node_from_key("beacon:{default}:sessions")
            nodes = store._client.execute_command("CLUSTER NODES", target_nodes=node)
            (replica,) = [
                port
                for address, about in nodes.items()
                if about["master_id"] == next(a["node_id"] for n, a in nodes.items() if n.endswith(f":{node.port}"))
                for port in [int(address.rpartition(":")[2])]
            ]

        def hand_over() -> None:
            with redis.Redis(port=replica) as client:
                client.execute_command("CLUSTER", "FAILOVER")

        found = hammered(f"{url}?replicas=1", hand_over)
        print(f"cluster, planned, replicas=1: {found}")
        assert found["lost"] == 0


@pytest.mark.long
@pytest.mark.parametrize("options", ["", "?replicas=1"])
@pytest.mark.parametrize("how", ["planned", "killed"])
@pytest.mark.parametrize("kind", ["sentinel", "cluster"])
def test_what_a_failover_loses(kind: str, how: str, options: str) -> None:
    """Prints the counts; nothing may be lost with replicas, where one is left to take over and to be replicated to."""
    if kind == "sentinel":
        with redis_sentinel("redis") as (url, (master, _)), redis.Redis(port=int(url.split(":")[2][:5])) as guard:
            if how == "killed" and options:
                pytest.skip("the pair has nobody left to replicate to: see the test above")
            act = master.kill if how == "killed" else lambda: planned(guard)
            found = hammered(url + options, act, seconds=12)
    else:
        if how == "killed" and options:
            pytest.skip("the master's only replica has nobody left to replicate to")
        with redis_cluster("valkey", replicas=1) as servers:
            url = f"redis+cluster://127.0.0.1:{servers[1].port}"
            with RedisStore(url) as store:
                port = store._client.get_node_from_key("beacon:{default}:sessions").port
                (replica,) = [node.port for node in store._client.get_replicas() if _follows(node.port, port)]
            (master,) = [server for server in servers if server.port == port]
            url = f"redis+cluster://127.0.0.1:{next(s.port for s in servers[:3] if s is not master)}{options}"

            def hand_over() -> None:
                with redis.Redis(port=replica) as client:
                    client.execute_command("CLUSTER", "FAILOVER")

            found = hammered(url, master.kill if how == "killed" else hand_over, seconds=8)
    print(f"{kind}, {how}, {options or 'no option'}: {found}")
    assert not options or found["lost"] == 0


def _follows(replica: int, master: int) -> bool:
    with redis.Redis(port=replica) as client:
        return int(client.info("replication").get("master_port", 0)) == master


def test_a_master_that_the_sentinels_have_replaced_is_let_go() -> None:
    """Open connections went on writing to it for seconds. What is lost now is what it took before the sentinel knew."""
    with (
        redis_sentinel("valkey") as (url, servers),
        redis.Redis(port=int(url.split(":")[2].split("/")[0])) as guard,
        RedisStore(url) as store,
    ):

        def master() -> int:
            return int(guard.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "beacon")[1])

        version, before = put(store, "alice", b"one"), servers[0].port
        planned(guard)
        until(lambda: master() != before, 20)
        until(lambda: store.version("alice") and store._client.info("server")["tcp_port"] == master(), 2)
        assert store.version("alice") == version
