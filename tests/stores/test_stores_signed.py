"""Signatures on SQLite and Redis alike: edits refused, keys changed, contents hidden, commits and forks told apart."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_memory.errors import (
    BlobDiffers,
    ConfigError,
    IntegrityError,
    SegmentMissing,
    SessionConflict,
    SessionNotFound,
)
from beacon_memory.stores import Head, StateStore, open_store
from beacon_memory.stores.chain import PAST, POINT, count, descends, drawn, grown
from beacon_memory.stores.redis import RedisStore
from beacon_memory.stores.sqlite import SqliteStore
from beacon_memory.testing import RedisServer, StoreContract, redis_server
from beacon_memory.testing.stores import digest, holds, put

KEY, OTHER = b"a key of this deployment", b"the key that comes after it"
SECRET = b"I live in Lyon, at 12 rue des Capucins."


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with redis_server("redis") as url:
        yield url


Opener = Callable[..., StateStore]


@pytest.fixture(params=["sqlite", "redis"])
def opener(request: pytest.FixtureRequest, tmp_path: Path, server: str) -> Iterator[Opener]:
    stores: list[StateStore] = []
    with redis.Redis.from_url(server) as client:
        client.flushall()

    def opened(**signing: object) -> StateStore:
        url = f"sqlite:///{tmp_path}/m.db" if request.param == "sqlite" else server
        stores.append(open_store(url, **signing))  # type: ignore[arg-type]
        return stores[-1]

    yield opened
    for store in stores:
        store.close()


class TestSqliteStoreUnderAKey(StoreContract):
    @pytest.fixture(params=[False, True], ids=["signed", "encrypted"])
    def store(self, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[StateStore]:
        with SqliteStore(tmp_path / "memory.db", key=KEY, encrypt=request.param) as store:
            yield store


class TestRedisStoreThatEncrypts(StoreContract):
    @pytest.fixture
    def store(self, server: str) -> Iterator[StateStore]:
        with redis.Redis.from_url(server) as client:
            client.flushall()
        with RedisStore(server, key=KEY, encrypt=True, ttl=600) as store:
            yield store


# The nine edits of the agent-memory-integrity catalogue in SQLite; those in Redis are in test_stores_redis_truth.py.

Edit = Callable[[sqlite3.Connection], object]
EDITS: dict[str, Edit] = {
    "content of a blob": lambda db: db.execute("UPDATE blobs SET bytes = x'00' WHERE digest = ?", (digest(b"one"),)),
    "content of a head": lambda db: db.execute("UPDATE heads SET body = replace(body, 'Lyon', 'Rome')"),
    "truncation": lambda db: db.execute("DELETE FROM refs WHERE session = 'alice' AND place = 1"),
    "truncation of a blob": lambda db: db.execute("UPDATE blobs SET bytes = substr(bytes, 1, length(bytes) - 1)"),
    "deletion": lambda db: db.execute("DELETE FROM blobs WHERE digest = ?", (digest(b"one"),)),
    "reorder": lambda db: [
        db.execute("UPDATE refs SET place = ? WHERE session = 'alice' AND place = ?", move)
        for move in ((9, 0), (0, 1), (1, 9))
    ],
    "reorder of blobs": lambda db: [
        db.execute("UPDATE blobs SET digest = ? WHERE digest = ?", move)
        for move in (("x", digest(b"one")), (digest(b"one"), digest(b"two")), (digest(b"two"), "x"))
    ],
    "forged insertion": lambda db: db.execute("INSERT INTO refs VALUES ('alice', 2, ?)", (digest(b"his"),)),
    "forged session": lambda db: db.execute("UPDATE heads SET tag = NULL, body = 'forged' WHERE session = 'alice'"),
    "cross-context replay": lambda db: [
        db.execute("DELETE FROM heads WHERE session = 'alice'"),
        db.execute("INSERT INTO heads SELECT 'alice', version, past, tag, body FROM heads WHERE session = 'bob'"),
        db.execute("DELETE FROM refs WHERE session = 'alice'"),
        db.execute("INSERT INTO refs SELECT 'alice', place, digest FROM refs WHERE session = 'bob'"),
    ],
    "metadata": lambda db: db.execute("UPDATE heads SET version = version || '0' WHERE session = 'alice'"),
    "metadata of the chain": lambda db: db.execute("UPDATE heads SET past = x'0000000000000001'"),
}


def edited(path: Path, edit: Edit) -> None:
    with sqlite3.connect(path) as db:
        edit(db)
    db.close()


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_an_edit_of_a_sqlite_file_is_refused_on_read(tmp_path: Path, edit: Edit) -> None:
    """SQLite had no key: whoever could write the file could write a memory."""
    path = tmp_path / "m.db"
    with SqliteStore(path, key=KEY) as store:
        first = put(store, "alice", b"one", body=b"I live in Lyon.")
        put(store, "alice", b"one", b"two", body=b"I live in Lyon.", expected=first)
        put(store, "bob", b"his", body=b"I live in Oslo.")
    edited(path, edit)
    with SqliteStore(path, key=KEY) as store:
        with pytest.raises((IntegrityError, SegmentMissing)):
            store.read(store.load("alice")[0].digests)
        store.delete("alice")
        with pytest.raises(SessionNotFound):
            store.load("alice")


def test_a_rollback_of_a_sqlite_row_is_seen_by_a_pin_also_after_later_turns(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with SqliteStore(path, key=KEY) as store:
        first = put(store, "alice", body=b"I live in Lyon.")
    kept: list[tuple[object, ...]] = []
    edited(path, lambda db: kept.extend(db.execute("SELECT * FROM heads").fetchall()))
    with SqliteStore(path, key=KEY) as store:
        second = put(store, "alice", body=b"I live in Oslo.", expected=first)
    edited(path, lambda db: db.execute("REPLACE INTO heads VALUES (?, ?, ?, ?, ?)", kept[0]))
    with SqliteStore(path, key=KEY) as store:
        for turn in range(4):
            head, version = store.load("alice")
            assert (descends(version, head.past, first), descends(version, head.past, second)) == (True, False)
            put(store, "alice", body=b"turn %d" % turn, expected=version)


def test_a_file_without_a_key_shows_damage_and_mix_ups(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    for name in ("content of a blob", "content of a head", "cross-context replay", "truncation", "reorder of blobs"):
        path.unlink(missing_ok=True)
        with SqliteStore(path) as store:
            put(store, "alice", b"one", b"two", body=b"I live in Lyon.")
            put(store, "bob", b"his", body=b"I live in Oslo.")
        edited(path, EDITS[name])
        with SqliteStore(path) as store, pytest.raises(IntegrityError):
            store.read(store.load("alice")[0].digests)


# Blobs are never replaced


def test_a_blob_that_is_there_is_not_replaced(opener: Opener) -> None:
    for name, signing in (("plain", {}), ("keyed", {"key": KEY})):
        store = opener(**signing)
        store.gc()
        version = put(store, "alice", b"one")
        with pytest.raises(BlobDiffers, match=digest(b"one")):
            store.commit("mallory", Head(b"", (digest(b"one"),)), {digest(b"one"): b"other"}, expected=0)
        assert store.read([digest(b"one")]) == [b"one"]
        assert store.sessions() == ["alice"]
        store.commit("alice", Head(b"", (digest(b"one"),)), {digest(b"one"): b"one"}, expected=version)
        store.delete("alice")
        assert name


def test_blobs_in_front_of_their_commit_are_not_replaced(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beacon_memory.stores.redis.store.INLINE_BYTES", 4)
    with redis.Redis.from_url(server) as client, RedisStore(server, key=KEY) as store:
        client.flushall()
        put(store, "alice", b"one of many")
        forged = {digest(b"one of many"): b"another one"}
        with pytest.raises(BlobDiffers):
            store.commit("mallory", Head(b"", tuple(forged)), forged, expected=0)
        put(store, "bob", b"one of many")
        assert store.read([digest(b"one of many")]) == [b"one of many"]


def test_a_damaged_blob_is_replaced_when_the_caller_says_that_it_is(opener: Opener, server: str) -> None:
    store = opener(key=KEY)
    version = put(store, "alice", b"one")
    if isinstance(store, SqliteStore):
        store._db.execute("UPDATE blobs SET bytes = x'00'")
    else:
        with redis.Redis.from_url(server) as client:
            client.set(f"beacon:{{default}}:blob:{digest(b'one')}", b"junk")
    named = {digest(b"one"): b"one"}
    with pytest.raises(IntegrityError):
        store.commit("alice", Head(b"", tuple(named)), named, expected=version)
    store.commit("alice", Head(b"", tuple(named)), named, expected=version, damaged=set(named))
    assert holds(store, b"one")


# Keys


def signed_with(opener: Opener, *sessions: str, **signing: object) -> None:
    store = opener(**signing)
    for session in sessions:
        put(store, session, session.encode() + SECRET, b"shared", body=session.encode())


def read_all(store: StateStore) -> dict[str, list[bytes]]:
    return {name: store.read(store.load(name)[0].digests) for name in store.sessions()}


def test_a_key_is_changed_in_place(opener: Opener) -> None:
    signed_with(opener, "alice", "bob", key=KEY)
    before = {name: opener(key=KEY).load(name) for name in ("alice", "bob")}
    with pytest.raises(IntegrityError):
        opener(key=OTHER).load("alice")
    changing = opener(key=OTHER, old_key=KEY)
    wanted = read_all(changing)
    put(changing, "carol", b"shared", b"new")  # a blob that stands under the old key is found to be the same
    assert changing.reseal() > 0
    assert changing.reseal() == 0
    after = opener(key=OTHER)
    assert {name: after.load(name) for name in before} == before  # the versions too: who pinned one still may
    assert {name: blobs for name, blobs in read_all(after).items() if name in before} == wanted
    with pytest.raises(IntegrityError):
        opener(key=KEY).load("alice")
    put(after, "alice", b"shared", expected=before["alice"][1])


def test_a_store_without_a_key_is_taken_over_under_one(opener: Opener) -> None:
    signed_with(opener, "alice", "bob")
    with pytest.raises(IntegrityError, match="without the store's key"):
        opener(key=KEY).load("alice")
    opener(key=KEY, trust=True).reseal()
    assert len(read_all(opener(key=KEY))) == 2


def test_what_is_encrypted_is_not_found_in_what_is_kept(opener: Opener, tmp_path: Path, server: str) -> None:
    def kept() -> bytes:
        files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        with redis.Redis.from_url(server) as client:
            client.config_set("rdbcompression", "no")
            return files + b"".join(client.dump(key) or b"" for key in client.scan_iter())

    store = opener(key=KEY)
    put(store, "alice", SECRET, body=SECRET)
    assert kept().count(SECRET) >= 2
    hiding = opener(key=KEY, encrypt=True)
    assert hiding.load("alice")[0].body == SECRET
    assert hiding.reseal() == 2
    put(hiding, "bob", SECRET, SECRET * 3, body=SECRET * 2)
    assert SECRET not in kept()
    assert store.load("bob")[0].body == SECRET * 2  # a key is enough to read
    with pytest.raises(IntegrityError):
        opener(key=OTHER).load("bob")


@pytest.mark.parametrize("signing", [{"encrypt": True}, {"old_key": KEY}, {"key": b"short"}, {"key": b""}])
def test_a_key_that_cannot_work_is_refused(opener: Opener, signing: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        opener(**signing)


# The chain


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 39), st.integers(0, 12), st.booleans())
def test_a_head_descends_from_what_it_was_and_from_nothing_else(long: int, at: int, more: int, older: bool) -> None:
    versions, pasts = [drawn(0)], [b""]
    if older:
        versions, pasts = [7355115069876346860], [b""]
    for _ in range(long):
        pasts.append(grown(pasts[-1], versions[-1]))
        versions.append(drawn(versions[-1]))
    assert versions == sorted(set(versions))
    at = min(at, long)
    for version, past in zip(versions[at:], pasts[at:], strict=True):
        assert descends(version, past, versions[at]) is True
    # Another branch from there: a lost write, and what came after it.
    version, past = versions[at], pasts[at]
    for step in range(more):
        past, version = grown(past, version), drawn(version)
        assert all(descends(version, past, one) for one in versions[: at + 1])
        assert not any(descends(version, past, one) for one in versions[at + 1 :]), step
    assert descends(drawn(0), b"", versions[-1]) is False


def test_what_is_too_long_ago_cannot_be_told() -> None:
    version, past, first = drawn(0), b"", 0
    for _ in range(PAST + 5):
        first = first or version
        past, version = grown(past, version), drawn(version)
    assert (len(past), count(version)) == (POINT * PAST, PAST + 6)
    assert descends(version, past, first) is None


class Overtaken(redis.Redis):
    """A client whose commit is sent twice because the reply was lost, and another writer comes in between."""

    between: Callable[[], object] | None = None

    def evalsha(self, *args: object) -> object:
        reply = super().evalsha(*args)
        if self.between is None:
            return reply
        between, self.between = self.between, None
        between()
        return super().evalsha(*args)


def overtaken(server: str, store: RedisStore, between: Callable[[], object]) -> None:
    client = Overtaken.from_url(server)
    client.between = between
    store._commit.registered_client = store._delete.registered_client = client


@pytest.mark.parametrize("turns", [1, 2, 50])
def test_a_commit_sent_again_is_recognised_whoever_came_between(server: str, turns: int) -> None:
    """One `add` was stored twice: the retry was told of a conflict, and added again."""
    with (
        redis.Redis.from_url(server) as client,
        RedisStore(server, key=KEY) as mine,
        RedisStore(server, key=KEY) as his,
    ):
        client.flushall()
        first = put(mine, "alice", body=b"0")

        def between() -> None:
            for turn in range(turns):
                put(his, "alice", body=b"his %d" % turn, expected=his.version("alice"))

        overtaken(server, mine, between)
        version = put(mine, "alice", body=b"mine", expected=first)
        head, newest = mine.load("alice")
        assert head.body == b"his %d" % (turns - 1)
        assert descends(newest, head.past, version)
        with pytest.raises(SessionConflict):
            put(mine, "alice", expected=version)


def test_a_deletion_sent_again_does_not_delete_what_was_begun_since(server: str) -> None:
    with redis.Redis.from_url(server) as client, RedisStore(server) as mine, RedisStore(server) as his:
        client.flushall()
        put(mine, "alice", b"one")
        overtaken(server, mine, lambda: put(his, "alice", b"his"))
        mine.delete("alice")
        assert his.load("alice")[0].digests == (digest(b"his"),)


@pytest.mark.parametrize("ahead", [0, 20])
def test_no_version_comes_twice_after_a_failover_that_lost_a_write(ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions were read from a clock: with clocks apart, a lost write and the next one had the same."""
    monkeypatch.setattr("time.time_ns", lambda: 10**18 + ahead * 10**9)
    with (
        RedisServer("valkey") as old,
        RedisServer("valkey") as new,
        RedisStore(old.url) as a,
        RedisStore(new.url) as b,
        redis.Redis(port=old.port) as there,
        redis.Redis(port=new.port) as here,
    ):
        first = put(a, "alice", body=b"t1")
        for key in there.scan_iter():
            here.restore(key, 0, there.dump(key) or b"")
        lost = put(a, "alice", b"lost", body=b"t2 lost", expected=first)
        kept = put(b, "alice", body=b"t2", expected=first)
        assert lost != kept
        # The worker that holds the lost version meets the new master.
        a._link.client = a._client = here
        for script in (a._look_script, a._commit):
            script.registered_client = here
        with pytest.raises(SessionConflict):
            put(a, "alice", body=b"t3", expected=lost)
        head, version = a.load("alice")
        assert (head.body, version) == (b"t2", kept)
        assert descends(version, head.past, lost) is False
