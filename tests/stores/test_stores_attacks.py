"""Attacks of whole kinds, over generated inputs: whatever is mutated gives what was committed, or one of our errors."""

from __future__ import annotations

import json
import random
import sqlite3
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beacon_memory import BeaconMemory, BeaconModel
from beacon_memory.errors import BeaconError, CodecError, ConfigError, InputError, IntegrityError
from beacon_memory.state.codec import HEAD, decode_json, seal, unseal
from beacon_memory.state.head import SessionHead
from beacon_memory.stores import Head
from beacon_memory.stores.memory import MemoryStore
from beacon_memory.stores.redis import RedisStore
from beacon_memory.stores.signing import NONCE, Signer
from beacon_memory.stores.sqlite import SqliteStore
from beacon_memory.testing.stores import digest, put

KEY = b"a key of this deployment"
LEASE = "The lease ends on 31 March 2027. The rent is 900 euros a month. " * 3
SAME = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# Files of SQLite with bytes changed

SQLITE_ACTS: dict[str, Callable[[SqliteStore], object]] = {
    "load": lambda store: store.load("alice"),
    "read": lambda store: store.read(store.load("alice")[0].digests),
    "sessions": lambda store: store.sessions(),
    "version": lambda store: store.version("alice"),
    "fork": lambda store: store.fork("alice", "carol"),
    "delete": lambda store: store.delete("alice"),
    "reseal": lambda store: store.reseal(),
    "scrub": lambda store: store.scrub(),
}


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "keyed"])
@pytest.mark.parametrize("act", SQLITE_ACTS)
def test_a_file_with_damaged_bytes_gives_the_truth_or_our_errors(tmp_path: Path, act: str, key: bytes | None) -> None:
    """A damaged schema raised a raw UnicodeDecodeError: one in fifteen mutated files."""
    path, damaged = tmp_path / "m.db", tmp_path / "damaged.db"
    with SqliteStore(path, key=key) as store:
        put(store, "alice", b"one" * 50, b"two" * 3000, body=b"I live in Lyon. " * 20)
        put(store, "bob", b"his" * 40)
        head = store.load("alice")[0]
        truth = {"load": head, "read": store.read(head.digests)}
    whole = path.read_bytes()
    chosen = random.Random(act)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chosen.choice([1, 3, 20])):
            # Half of them in the first page, where the schema is.
            data[chosen.randrange(4096 if chosen.random() < 0.5 else len(data))] = chosen.randrange(256)
        if chosen.random() < 0.1:
            del data[chosen.randrange(len(data)) :]
        damaged.write_bytes(data)
        try:
            with SqliteStore(damaged, key=key, timeout=0) as store:
                found: Any = SQLITE_ACTS[act](store)
        except BeaconError:
            continue
        finally:
            for file in tmp_path.glob("damaged.db-*"):
                file.unlink()
        if act in truth:
            assert (found[0] if act == "load" else found) == truth[act]


@pytest.mark.parametrize("column", ["session", "version", "past", "tag", "body", "digest", "bytes"])
@pytest.mark.parametrize("value", ["x", 7, 2**62, 1.5, None, b"\xff\xfe", "\u0663", "9" * 5000, b""])
def test_a_value_of_another_type_raises_our_errors(tmp_path: Path, column: str, value: object) -> None:
    """`reseal` raised a raw TypeError for a blob that was a text."""
    table = "blobs" if column in ("digest", "bytes") else "heads"
    with SqliteStore(tmp_path / "m.db", key=KEY) as store:
        put(store, "alice", b"one")
    with sqlite3.connect(tmp_path / "m.db") as db:
        for also in (table, "blobs") if column == "tag" else (table,):
            db.execute(f"UPDATE OR IGNORE {also} SET {column} = ?", (value,)) if value is not None else db.execute(
                f"DELETE FROM {also}"
            )
    db.close()
    for act in SQLITE_ACTS.values():
        with SqliteStore(tmp_path / "m.db", key=KEY) as store:
            try:
                act(store)
            except BeaconError:
                continue


# Values in a store, moved about by somebody without the key

FIELDS = ("version", "point", "past", "tag", "digests", "body", "bytes")
SESSIONS = ("alice", "bob", "carol")
Moves = st.lists(
    st.one_of(
        st.tuples(st.just("field"), st.sampled_from(FIELDS), st.integers(0, 8), st.integers(0, 8)),
        st.tuples(st.just("head"), st.just(""), st.integers(0, 8), st.integers(0, 8)),
        st.tuples(st.just("blob"), st.just(""), st.integers(0, 8), st.integers(0, 8)),
        st.tuples(st.just("mark"), st.just(""), st.integers(0, 8), st.integers(0, 8)),
        st.tuples(st.just("flip"), st.sampled_from(FIELDS), st.integers(0, 8), st.integers(0, 10**6)),
        st.tuples(st.just("drop"), st.sampled_from(FIELDS), st.integers(0, 8), st.just(0)),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("encrypt", [False, True], ids=["signed", "encrypted"])
def test_no_moving_about_in_redis_gives_a_session_that_was_never_committed(server: str, encrypt: bool) -> None:
    """Fields, heads, blobs and ledger entries of any session and time, put in any other place."""
    with redis.Redis.from_url(server) as client:
        client.flushall()
        made: dict[str, set[tuple[bytes, tuple[bytes, ...]]]] = {name: set() for name in SESSIONS}
        times: list[dict[str, Any]] = []
        with RedisStore(server, key=KEY, encrypt=encrypt) as store:
            at = dict.fromkeys(SESSIONS, 0)
            for turn in range(3):
                for name in SESSIONS:
                    blobs = [f"{name} {n}".encode() for n in range(turn + 1)] + [b"shared"]
                    body = f"{name}'s turn {turn}".encode()
                    at[name] = put(store, name, *blobs, body=body, expected=at[name])
                    made[name].add((body, tuple(blobs)))
                times.append(
                    {
                        "heads": [client.hgetall(f"beacon:{{default}}:head:{name}") for name in SESSIONS],
                        "marks": [client.hget("beacon:{default}:ledger", f"v:{name}") for name in SESSIONS],
                    }
                )
        heads = [head for time in times for head in time["heads"]]
        marks = [mark for time in times for mark in time["marks"]]
        names = sorted(client.scan_iter(match="*:blob:*"))
        values = [client.get(name) or b"" for name in names]
        kept = {key: client.dump(key) or b"" for key in client.scan_iter()}

        def restored() -> None:
            client.flushall()
            for key, value in kept.items():
                client.restore(key, 0, value)

        def move(kind: str, field: str, source: int, target: int) -> None:
            head = f"beacon:{{default}}:head:{SESSIONS[target % 3]}"
            if kind == "field" and field.encode() in heads[source]:
                client.hset(head, field, heads[source][field.encode()])
            elif kind == "head":
                client.delete(head)
                client.hset(head, mapping=heads[source])
            elif kind == "blob":
                client.set(names[target % len(names)], values[source % len(values)])
            elif kind == "mark":
                client.hset("beacon:{default}:ledger", f"v:{SESSIONS[target % 3]}", marks[source])
            elif kind == "flip":
                head = f"beacon:{{default}}:head:{SESSIONS[source % 3]}"
                value = bytearray(client.hget(head, field) or b"x")
                value[target % len(value)] ^= 1 + target % 255
                client.hset(head, field, bytes(value))
            elif kind == "drop":
                client.hdel(f"beacon:{{default}}:head:{SESSIONS[source % 3]}", field)

        @settings(max_examples=150, deadline=None)
        @given(Moves)
        def attacked(moves: list[tuple[str, str, int, int]]) -> None:
            restored()
            for one in moves:
                move(*one)
            with RedisStore(server, key=KEY, encrypt=encrypt) as store:
                for name in SESSIONS:
                    try:
                        head, version = store.load(name)
                        found = (head.body, tuple(store.read(head.digests)))
                    except BeaconError:
                        continue
                    assert found in made[name]
                    # The ledger and the head say the same: an older one needs both, and a pin shows it.
                    assert version == at[name] or any(one[0] in ("mark", "head", "field") for one in moves)
                try:
                    store.gc()
                    store.reseal()
                except BeaconError:
                    pass

        attacked()


@SAME
@given(st.lists(st.binary(max_size=700), min_size=1, max_size=5))
def test_names_in_the_lists_that_are_none_stop_nobody(server: str, names: list[bytes]) -> None:
    """The lists of names are not signed: whoever writes to them must not keep others from cleaning up."""
    with redis.Redis.from_url(server) as client, RedisStore(server, key=KEY) as store:
        client.flushall()
        put(store, "alice", b"one")
        for name in names:
            client.zadd("beacon:{default}:sessions", {name: 1e18})
            client.zadd(f"beacon:{{default}}:refs:{digest(b'one')}", {name: 1e18})
            client.hset("beacon:{default}:ledger", b"v:" + name, b"7")
            client.set(b"beacon:{default}:blob:" + name, b"junk")
        store.gc()
        assert store.sessions() == ["alice"]
        assert store.read(store.load("alice")[0].digests) == [b"one"]
        store.delete("alice")


@pytest.mark.parametrize("name", ["namespace", "prefix"])
@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_a_namespace_that_is_no_unicode_is_refused(name: str, text: str) -> None:
    """It raised a raw UnicodeEncodeError."""
    with pytest.raises(ConfigError, match=name):
        RedisStore("redis://127.0.0.1:1", **{name: text})  # type: ignore[arg-type]


@pytest.mark.parametrize("database", ["x", "1.5", "-1", "0x1"])
def test_a_database_that_is_no_number_is_refused(database: str) -> None:
    """Sessions were written to database 0 instead."""
    with pytest.raises(ConfigError, match="database"):
        RedisStore(f"redis://127.0.0.1:1/{database}")


# Nonces


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["blob", "head"]), st.text(max_size=6), st.binary(max_size=6), st.binary(max_size=6)),
        min_size=2,
        max_size=8,
        unique=True,
    )
)
def test_no_two_contents_are_encrypted_with_one_nonce(written: list[tuple[str, str, bytes, bytes]]) -> None:
    """AES-GCM falls with the first nonce that is used twice for different contents."""
    pytest.importorskip("cryptography")
    signer = Signer("beacon:{default}", KEY, encrypt=True)
    found = {}
    for kind, name, data, about in written:
        tag, kept = signer.signed(kind, name, data, about)
        assert kept[:NONCE] not in found
        found[kept[:NONCE]] = written
        assert signer.signed(kind, name, data, about) == (tag, kept)
        assert signer.verified(tag, kind, name, kept, about) == data
        for other_kind, other, *_ in written:
            if (other_kind, other) != (kind, name):
                with pytest.raises(IntegrityError):
                    signer.verified(tag, other_kind, other, kept, about)


# Archives

Scalar = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 1, 2**31, 2**63, 10**400, 1e400, -1e400, "", "x", "\ud800", "a" * 64]),
    st.text(max_size=8),
)
Flat = st.one_of(Scalar, st.lists(Scalar, max_size=3), st.dictionaries(st.text(max_size=5), Scalar, max_size=3))
Json = st.one_of(Flat, st.lists(Flat, max_size=3), st.dictionaries(st.text(max_size=5), Flat, max_size=3))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values within a JSON value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    copy = json.loads(json.dumps(value))
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = new
    return copy


@pytest.fixture(scope="module")
def exported(model: BeaconModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a session's archive, with a document, a page of messages, and a conversation that is folded."""
    path = tmp_path_factory.mktemp("exported") / "x.zip"
    memory = BeaconMemory(model, MemoryStore())
    alice = memory.session("alice")
    alice.add_text(LEASE, name="lease")
    alice.set([*alice.messages()[1:], *({"role": "user", "content": f"Turn {n}."} for n in range(70))])
    alice.add_text(LEASE, name="lease")
    alice.export(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def used(memory: BeaconMemory, name: str) -> None:
    """Everything that a caller does with a session, each raising our errors alone."""
    session = memory.session(name)
    for act in (
        session.messages,
        session.info,
        session.state,
        lambda: session.ask("What?", max_new_tokens=1),
        lambda: session.add("More."),
        lambda: session.rewind(1),
        lambda: memory.repair(name),
        lambda: session.fork(f"{name}2"),
        session.forget,
    ):
        try:
            act()
        except BeaconError:
            continue


@settings(SAME, max_examples=120)
@given(st.data())
def test_a_head_with_any_value_in_any_place_raises_our_errors(
    model: BeaconModel, exported: dict[str, bytes], tmp_path: Path, data: st.DataObject
) -> None:
    """With checksums made anew: in an archive, and in a store that has no key."""
    head = json.loads(unseal(HEAD, exported["head"]))
    path = data.draw(st.sampled_from(list(places(head))))
    edited = seal(HEAD, json.dumps(changed(head, path, data.draw(Json))).encode())
    memory = BeaconMemory(model, MemoryStore())
    try:
        memory.import_session(packed(tmp_path / "y.zip", exported | {"head": edited}), name="y")
        used(memory, "y")
    except BeaconError:
        assert memory.sessions() == []
    memory = BeaconMemory(model, MemoryStore())
    blobs = {name.partition("/")[2]: blob for name, blob in exported.items() if name.startswith("blobs/")}
    memory.store.commit("y", Head(edited, tuple(blobs)), blobs, expected=0)
    used(memory, "y")


def test_half_a_letter_anywhere_in_a_head_is_refused(exported: dict[str, bytes]) -> None:
    """It was read, and what had read it could not be written again."""
    head = json.loads(unseal(HEAD, exported["head"]))
    for path in places(head):
        with pytest.raises(CodecError, match="not a readable payload"):
            SessionHead.from_bytes(seal(HEAD, json.dumps(changed(head, path, "\ud800")).encode()))
    said = json.dumps(head | {"extra": "\U0001f600 and \\ud800"})  # a whole letter, and words about half of one
    assert decode_json(HEAD, seal(HEAD, said.encode()))["extra"] == "\U0001f600 and \\ud800"


@settings(SAME, max_examples=200)
@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=5), st.booleans()
)
def test_an_archive_with_any_bytes_changed_raises_our_errors(
    model: BeaconModel, exported: dict[str, bytes], tmp_path: Path, changes: list[tuple[float, int]], late: bool
) -> None:
    """Half of the changes are in the directory at the end, which says where everything is."""
    path = packed(tmp_path / "y.zip", exported)
    whole = bytearray(path.read_bytes())
    first = whole.find(b"PK\x01\x02") if late else 0
    for at, byte in changes:
        whole[first + int(at * (len(whole) - first))] = byte
    path.write_bytes(whole)
    memory = BeaconMemory(model, MemoryStore())
    try:
        memory.import_session(path, name="y")
    except BeaconError:
        assert memory.sessions() == []
    else:
        used(memory, "y")


def test_an_archive_that_asks_for_a_password_is_refused(
    model: BeaconModel, exported: dict[str, bytes], tmp_path: Path
) -> None:
    path = packed(tmp_path / "y.zip", exported)
    whole = bytearray(path.read_bytes())
    at = whole.find(b"PK\x01\x02")
    whole[at + 8] |= 1  # of the first file: encrypted
    path.write_bytes(whole)
    with pytest.raises(CodecError):
        BeaconMemory(model, MemoryStore()).import_session(path)


def test_an_archive_whose_files_overlap_is_refused_before_it_is_read(
    model: BeaconModel, exported: dict[str, bytes], tmp_path: Path
) -> None:
    """A bomb without compression: a thousand names for the same bytes."""
    path = packed(tmp_path / "y.zip", exported)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size).filename.encode()
    start = whole.rfind(largest) - 46
    assert whole[start : start + 4] == b"PK\x01\x02"
    (size,) = struct.unpack_from("<H", whole, start + 28)
    entry = whole[start : start + 46 + size]
    end = whole[whole.find(b"PK\x05\x06") :]
    count = len(exported) + 1000
    (length,) = struct.unpack_from("<I", end, 12)
    counted = struct.pack("<HHI", count, count, length + 1000 * len(entry))
    first = whole.find(b"PK\x01\x02")
    bomb = whole[: first + length] + entry * 1000 + end[:8] + counted + end[16:]
    path.write_bytes(bomb)
    with zipfile.ZipFile(path) as archive:
        assert len(archive.infolist()) == count
    with pytest.raises(CodecError, match="more bytes"):
        BeaconMemory(model, MemoryStore()).import_session(path)


@pytest.mark.parametrize("depth", [98, 100, 300, 500, 700, 900, 950, 990, 1200, 100_000])
def test_a_message_nested_however_deep_is_kept_or_refused(
    model: BeaconModel, exported: dict[str, bytes], tmp_path: Path, depth: int
) -> None:
    """A session could be written that another caller, deeper in the stack, could not read."""
    memory = BeaconMemory(model, MemoryStore())
    value: Any = "x"
    for _ in range(min(depth, 5000)):
        value = [value]
    said = {"role": "user", "content": "x", "extra": value}
    try:
        memory.session("alice").add(said)
    except InputError:
        assert memory.sessions() == []
        assert depth >= 100
    else:
        assert memory.session("alice").messages() == [said]
    text = unseal(HEAD, exported["head"]).decode()
    nested = '{"role":"user","content":"x","extra":' + "[" * depth + "]" * depth + "}"
    at = text.index('"recent":[') + len('"recent":[')
    edited = seal(HEAD, (text[:at] + nested + "," + text[at:]).encode())
    memory = BeaconMemory(model, MemoryStore())
    try:
        memory.import_session(packed(tmp_path / "y.zip", exported | {"head": edited}), name="y")
    except CodecError:
        assert memory.sessions() == []
    else:
        memory.session("y").messages()
        memory.session("y").export(tmp_path / "z.zip")
        used(memory, "y")
