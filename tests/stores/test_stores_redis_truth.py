"""What is read from Redis is what was written there, by us, in that place: or it is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import beacon_memory
from beacon_memory import BeaconConfig, BeaconMemory
from beacon_memory.errors import (
    ConfigError,
    IntegrityError,
    QuotaExceeded,
    SegmentMissing,
    SessionNotFound,
    SessionRolledBack,
    StoreError,
    StoreFull,
)
from beacon_memory.stores import Head
from beacon_memory.stores.delta import shared
from beacon_memory.stores.redis import RedisStore
from beacon_memory.stores.signing import Signer
from beacon_memory.testing import tiny_model
from beacon_memory.testing.stores import digest, holds, put

KEY = b"a key of this deployment"
BEACON = "beacon:{default}"


@pytest.fixture
def client(server: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server) as client:
        client.flushall()
        yield client


@pytest.fixture
def keyed(client: redis.Redis) -> RedisStore:
    return RedisStore(client=client, key=KEY)


def blob_key(blob: bytes, space: str = BEACON) -> str:
    return f"{space}:blob:{digest(blob)}"


def read(client: redis.Redis, *, key: bytes | None = KEY, session: str = "alice") -> list[bytes]:
    """A whole session as another worker reads it: nothing on hand."""
    store = RedisStore(client=client, key=key)
    head, _ = store.load(session)
    return [head.body, *store.read(head.digests)]


def edit_field(client: redis.Redis, field: str, change: Callable[[bytes], bytes], session: str = "alice") -> None:
    key = f"{BEACON}:head:{session}"
    client.hset(key, field, change(client.hget(key, field) or b""))


# The nine edits of the agent-memory-integrity catalogue.


def content(client: redis.Redis) -> None:
    key = blob_key(b"one")
    client.setrange(key, client.strlen(key) - 1, b"E")


def content_of_head(client: redis.Redis) -> None:
    edit_field(client, "body", lambda body: body.replace(b"Lyon", b"Rome"))


def truncation(client: redis.Redis) -> None:
    edit_field(client, "digests", lambda value: json.dumps(json.loads(value)[:1], separators=(",", ":")).encode())


def truncation_of_blob(client: redis.Redis) -> None:
    client.set(blob_key(b"one"), (client.get(blob_key(b"one")) or b"")[:-1])


def deletion(client: redis.Redis) -> None:
    client.delete(blob_key(b"one"))


def deletion_of_head(client: redis.Redis) -> None:
    client.delete(f"{BEACON}:head:alice")


def deletion_of_mark(client: redis.Redis) -> None:
    client.delete(f"{BEACON}:ledger")


def reorder(client: redis.Redis) -> None:
    edit_field(client, "digests", lambda value: json.dumps(json.loads(value)[::-1], separators=(",", ":")).encode())


def reorder_of_blobs(client: redis.Redis) -> None:
    one, two = (client.get(blob_key(blob)) or b"" for blob in (b"one", b"two"))
    client.mset({blob_key(b"one"): two, blob_key(b"two"): one})


def forged_insertion(client: redis.Redis) -> None:
    """By someone who knows the format and has no key."""
    put(RedisStore(client=client), "mallory", b"forged")
    edit_field(client, "digests", lambda value: json.dumps([*json.loads(value), digest(b"forged")]).encode())


def forged_session(client: redis.Redis) -> None:
    other = RedisStore(client=client)
    # All that would tell our own code that there was a session.
    client.delete(f"{BEACON}:head:alice", f"{BEACON}:sessions", f"{BEACON}:ledger")
    put(other, "alice", b"forged")


def cross_context_replay(client: redis.Redis) -> None:
    put(RedisStore(client=client, key=KEY), "bob", b"his", body=b"I live in Oslo.")
    client.restore(f"{BEACON}:head:alice", 0, client.dump(f"{BEACON}:head:bob") or b"", replace=True)


def cross_tenant_replay(client: redis.Redis) -> None:
    put(RedisStore(client=client, key=KEY, namespace="other"), "alice", b"one")
    client.set(blob_key(b"one"), client.get(blob_key(b"one", "beacon:{other}")) or b"")


def rollback_replay(client: redis.Redis) -> None:
    before = client.dump(f"{BEACON}:head:alice") or b""
    store = RedisStore(client=client, key=KEY)
    version = store.version("alice")
    put(store, "alice", b"one", b"two", b"three", expected=version, body=b"I live in Oslo.")
    client.restore(f"{BEACON}:head:alice", 0, before, replace=True)


def metadata(client: redis.Redis) -> None:
    edit_field(client, "version", lambda value: b"%d" % (int(value) + 1))


def metadata_of_mark(client: redis.Redis) -> None:
    client.hset(f"{BEACON}:ledger", "v:alice", b"1 " + b"x" * 33)


EDITS = [
    content, content_of_head, truncation, truncation_of_blob, deletion, deletion_of_head, deletion_of_mark, reorder,
    reorder_of_blobs, forged_insertion, forged_session, cross_context_replay, cross_tenant_replay, rollback_replay,
    metadata, metadata_of_mark,
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edit_is_refused_on_read(
    client: redis.Redis, keyed: RedisStore, edit: Callable[[redis.Redis], None]
) -> None:
    put(keyed, "alice", b"one", b"two", body=b"I live in Lyon.")
    assert read(client) == [b"I live in Lyon.", b"one", b"two"]
    edit(client)
    with pytest.raises((IntegrityError, SegmentMissing)) as caught:
        read(client)
    assert KEY.decode() not in str(caught.value)
    RedisStore(client=client, key=KEY).delete("alice")
    with pytest.raises(SessionNotFound):
        read(client)


def test_a_whole_snapshot_put_back_is_seen_by_who_pins_a_version(client: redis.Redis, server: str) -> None:
    model = tiny_model(config=BeaconConfig(window=32, keep_last=8, sink=2, anchors="last"))

    def opened() -> BeaconMemory:
        return BeaconMemory.open(model, server, key=KEY)

    opened().session("alice").add("I live in Lyon. " * 9)
    snapshot = {key: client.dump(key) or b"" for key in client.scan_iter()}
    first = opened().session("alice").info().version
    opened().session("alice", at_least=first).add("I moved to Oslo. " * 9)
    second = opened().session("alice").info().version
    assert second > first
    client.flushall()
    for key, value in snapshot.items():
        client.restore(key, 0, value)
    assert opened().session("alice", at_least=first).info().version == first
    pinned = opened().session("alice", at_least=second)
    for act in (pinned.info, pinned.messages, pinned.state, lambda: pinned.add("More."), lambda: pinned.ask("Where?")):
        with pytest.raises(SessionRolledBack, match=str(second)):
            act()
    client.flushall()
    with pytest.raises(SessionRolledBack, match="gone"):
        pinned.add("More.")
    assert client.dbsize() == 0


@pytest.mark.parametrize(
    ("writes", "reads", "words"),
    [(KEY, None, "with a key"), (None, KEY, "without the store's key"), (KEY, KEY[::-1], "another key")],
)
def test_stores_of_other_keys_do_not_trust_each_other(
    client: redis.Redis, writes: bytes | None, reads: bytes | None, words: str
) -> None:
    put(RedisStore(client=client, key=writes), "alice", b"one")
    with pytest.raises(IntegrityError, match=words):
        read(client, key=reads)


def test_without_a_key_damage_and_mix_ups_are_seen(client: redis.Redis) -> None:
    store = RedisStore(client=client)
    put(store, "alice", b"one", b"two", body=b"I live in Lyon.")
    for edit in (content, truncation_of_blob, reorder_of_blobs):
        before = {key: client.dump(key) or b"" for key in client.scan_iter()}
        edit(client)
        with pytest.raises(IntegrityError):
            read(client, key=None)
        for key, value in before.items():
            client.restore(key, 0, value, replace=True)
    assert read(client, key=None) == [b"I live in Lyon.", b"one", b"two"]


def test_a_second_process_goes_on_with_the_conversation(client: redis.Redis, server: str) -> None:
    script = """
import sys
from beacon_memory import BeaconConfig, BeaconMemory
from beacon_memory.testing import tiny_model
model = tiny_model(config=BeaconConfig(window=32, keep_last=8, sink=2, anchors="last"))
with BeaconMemory.open(model, sys.argv[1], key=sys.argv[2].encode()) as memory:
    alice = memory.session("alice")
    alice.add(sys.argv[3])
    print(*(message["content"] for message in alice.messages()), alice.state().tokens, sep="|")
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(beacon_memory.__file__).parents[1])}
    said = ["I live in Lyon. " * 9, "I have moved to Oslo since. " * 9]
    out = [
        subprocess.run(
            [sys.executable, "-c", script, f"{server}?ttl=600", KEY.decode(), text],
            check=True, capture_output=True, text=True, env=environment,
        ).stdout.strip().split("|")
        for text in said
    ]  # fmt: skip
    assert (out[0][:-1], out[1][:-1]) == (said[:1], said)
    assert int(out[1][-1]) > int(out[0][-1])


def test_a_session_whose_head_was_evicted_is_never_begun_anew_in_silence(client: redis.Redis) -> None:
    store = RedisStore(client=client)
    version = put(store, "alice", b"one")
    client.delete(f"{BEACON}:head:alice")
    for act in (store.load, store.version, store.touch, lambda name: put(store, name, b"two")):
        with pytest.raises(IntegrityError, match="evicted"):
            act("alice")
    with pytest.raises(StoreError):
        put(store, "alice", b"two", expected=version)
    store.delete("alice")
    assert store.gc() == 1
    assert client.dbsize() == 0
    put(store, "alice", b"two")
    assert holds(store, b"two")


@pytest.mark.parametrize("key", [b"short", "a text is no key of bytes", b""])
def test_a_key_that_is_none_is_refused(client: redis.Redis, key: bytes) -> None:
    with pytest.raises(ConfigError, match="16"):
        RedisStore(client=client, key=key)


def test_a_tag_depends_on_all_that_it_is_made_of() -> None:
    signer = Signer("a", KEY)
    tags = {
        signer.tag("blob", "d", b"ab", b"c"),
        signer.tag("blob", "d", b"a", b"bc"),
        signer.tag("blob", "da", b"b", b"c"),
        signer.tag("head", "d", b"ab", b"c"),
        Signer("b", KEY).tag("blob", "d", b"ab", b"c"),
        Signer("a", KEY + b"!").tag("blob", "d", b"ab", b"c"),
        Signer("a").tag("blob", "d", b"ab", b"c"),
    }
    assert len(tags) == 7
    assert KEY.decode() not in repr(signer)


# Isolation

ODD = st.text(alphabet="{}:*%?[]\\ab\0é\U0001f600", min_size=1, max_size=6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(ODD, ODD), min_size=2, max_size=6, unique=True))
def test_tenants_and_sessions_of_any_names_are_kept_apart(client: redis.Redis, pairs: list[tuple[str, str]]) -> None:
    client.flushall()
    tenants = {tenant: RedisStore(client=client, namespace=tenant) for tenant, _ in pairs}
    for tenant, session in pairs:
        put(tenants[tenant], session, repr((tenant, session)).encode(), b"shared", body=session.encode())
    for tenant, session in pairs:
        store = tenants[tenant]
        mine = sorted(other for space, other in pairs if space == tenant)
        assert store.sessions() == mine
        head, _ = store.load(session)
        assert (head.body, store.read(head.digests)[0]) == (session.encode(), repr((tenant, session)).encode())
        assert store.gc() == 0
    for number, (tenant, session) in enumerate(pairs):
        tenants[tenant].delete(session)
        assert tenants[tenant].gc() == 0
        for space, other in pairs[number + 1 :]:
            assert tenants[space].load(other)[0].body == other.encode()
            assert holds(tenants[space], b"shared")
    assert client.dbsize() == 0


# Budgets


def test_a_session_keeps_within_its_bytes(client: redis.Redis) -> None:
    store = RedisStore(client=client, session_bytes=1000)
    version = put(store, "alice", b"a" * 400, b"b" * 400)
    for blobs in ([b"a" * 400, b"b" * 400, b"c" * 400], [b"d" * 1200]):
        with pytest.raises(QuotaExceeded, match="1000"):
            put(store, "alice", *blobs, expected=version)
        assert not holds(store, blobs[-1])
    version = put(store, "alice", b"b" * 400, b"c" * 400, expected=version)
    put(store, "bob", b"d" * 900)
    assert store.load("alice")[1] == version
    assert issubclass(QuotaExceeded, StoreFull)


def test_a_namespace_keeps_within_its_bytes_and_counts_what_is_shared_once(client: redis.Redis) -> None:
    store = RedisStore(client=client, namespace_bytes=1000)
    put(store, "alice", b"a" * 400)
    for number in range(5):
        put(store, f"reader {number}", b"a" * 400)
    put(store, "bob", b"b" * 400)
    with pytest.raises(QuotaExceeded, match="namespace"):
        put(store, "carol", b"c" * 400)
    assert not holds(store, b"c" * 400)
    assert "carol" not in store.sessions()
    put(RedisStore(client=client, namespace="other", namespace_bytes=1000), "carol", b"c" * 400)
    store.delete("bob")
    put(store, "carol", b"c" * 400)
    assert int(client.hget(f"{BEACON}:ledger", "bytes") or 0) == 2 * 433


def test_what_has_expired_makes_room(client: redis.Redis) -> None:
    store = RedisStore(client=client, namespace_bytes=1000, ttl=1)
    put(store, "alice", b"a" * 800)
    with pytest.raises(QuotaExceeded):
        put(store, "bob", b"b" * 800)
    while client.exists(blob_key(b"a" * 800)):
        client.blpop(["nothing"], timeout=0.1)
    put(store, "bob", b"b" * 800)
    assert store.sessions() == ["bob"]


# Sweeping


def test_gc_removes_what_a_crash_left_in_front_of_its_commit(client: redis.Redis) -> None:
    store = RedisStore(client=client)
    put(store, "alice", b"one")
    before = set(client.scan_iter())
    signed = {digest(blob): store._signer.sign("blob", digest(blob), blob) for blob in (b"orphan", b"another")}
    store._stage_all(signed)
    assert all(0 < client.pttl(key) <= 15 * 60 * 1000 for key in set(client.scan_iter()) - before)
    assert store.gc() == 2
    assert set(client.scan_iter()) == before


def test_gc_gives_back_the_lists_that_a_server_evicted(client: redis.Redis) -> None:
    """A list of names that is lost would let the next session that drops the blob take it away from the others."""
    store = RedisStore(client=client)
    put(store, "alice", b"shared", b"own")
    put(store, "bob", b"shared")
    for key in (f"{BEACON}:refs:{digest(b'shared')}", f"{BEACON}:sessions", f"{BEACON}:lives"):
        client.delete(key)
    assert store.gc() == 0
    assert store.sessions() == ["alice", "bob"]
    store.delete("bob")
    assert store.gc() == 0
    assert read(client, key=None) == [b"body", b"shared", b"own"]
    store.delete("alice")
    assert client.dbsize() == 0


# What a turn costs


def commands(client: redis.Redis) -> int:
    return int(client.info("stats")["total_commands_processed"])


def test_a_turn_costs_the_same_whatever_the_sessions_length(client: redis.Redis) -> None:
    store = RedisStore(client=client, ttl=1000)
    numbers = count()
    body = json.dumps(list(range(20))).encode()
    version, named = 0, [b"%d" % next(numbers) for _ in range(3000)]
    head = Head(body * 4000, tuple(map(digest, named)))
    version = store.commit("alice", head, {digest(blob): blob for blob in named}, expected=0)
    store.load("alice")
    before, moved = commands(client), client.info("stats")["total_net_input_bytes"]
    sent = client.info("stats")["total_net_output_bytes"]
    for _ in range(10):
        head, version = store.load("alice")
        blob = b"%d" % next(numbers)
        grown = Head(head.body + body, (*head.digests, digest(blob)))
        version = store.commit("alice", grown, {digest(blob): blob}, expected=version)
    stats = client.info("stats")
    assert RedisStore(client=client).load("alice") == (grown, version)
    assert (stats["total_net_input_bytes"] - moved) / 10 < 4000
    assert (stats["total_net_output_bytes"] - sent - 2 * 8000) / 10 < 1000
    # INFO aside, a turn is two scripts, whatever they do inside.
    assert commands(client) - before < 10 * 80


def test_a_head_changed_in_two_places_is_not_sent_whole(client: redis.Redis) -> None:
    """A turn that folds an old window again changes that entry, and adds one at the end."""
    store = RedisStore(client=client)
    lines = [f'["{digest(b"%d" % i)}",512,64,8,""]' for i in range(400)]
    old = ",".join(lines).encode()
    lines[7] = lines[7].replace(",64,8", ",32,16").replace(lines[7][2:66], digest(b"again"))
    new = ",".join([*lines, f'["{digest(b"new")}",512,64,8,""]']).encode()
    assert shared(old, new, start=0).new < 400
    assert shared(old, new, start=0).applied(old) == new
    names = [b"%d" % i for i in range(400)]
    version = store.commit("alice", Head(old, tuple(map(digest, names))), {digest(n): n for n in names}, expected=0)
    names[7:8] = [b"again"]
    moved = client.info("stats")["total_net_input_bytes"]
    head = Head(new, tuple(map(digest, [*names, b"new"])))
    version = store.commit("alice", head, {digest(n): n for n in (b"again", b"new")}, expected=version)
    assert client.info("stats")["total_net_input_bytes"] - moved < 3000
    assert RedisStore(client=client).load("alice") == (head, version)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40), st.integers(0, 64))
def test_a_patch_gives_the_new_bytes(front: bytes, old: bytes, new: bytes, start: int) -> None:
    same = front * 100
    patch = shared(same + old, same + new, start=start)
    assert patch.applied(same + old) == same + new
    within = shared(same + old + same, same + new + same, start=start)
    assert within.applied(same + old + same) == same + new + same
    if start < len(same) > 1024:
        assert within.new <= start + max(len(old), len(new))
    twice = shared(same + old + same + new + same, same + new + same + old + same, start=start)
    assert twice.applied(same + old + same + new + same) == same + new + same + old + same
    assert shared(same, same, start=start).applied(same) == same
