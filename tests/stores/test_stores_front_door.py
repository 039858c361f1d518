"""What a session promises whatever happens to its store: attacked, put back, emptied, forgotten elsewhere."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import torch
from safetensors.torch import load, save

from beacon_memory import BeaconMemory, BeaconModel
from beacon_memory.errors import (
    BeaconError,
    BudgetExceeded,
    CodecError,
    IntegrityError,
    SessionNotFound,
    SessionRolledBack,
)
from beacon_memory.sessions.turn import Turn
from beacon_memory.state.codec import HEAD, SEGMENT, seal, unseal
from beacon_memory.stores import StateStore, open_store
from beacon_memory.stores.memory import MemoryStore
from beacon_memory.stores.redis import RedisStore
from beacon_memory.testing import RedisServer
from beacon_memory.testing.servers import until

KEY = b"a key of this deployment"
LEASE = "The lease ends on 31 March 2027. The rent is 900 euros a month. " * 4


@pytest.fixture(params=["memory", "sqlite", "sqlite keyed", "redis", "redis keyed"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, server: str) -> Iterator[Callable[[], StateStore]]:
    """Opens the store once more, as another worker does; the memory store is one for all."""
    kind, _, keyed = request.param.partition(" ")
    key = KEY if keyed else None
    stores: list[StateStore] = [MemoryStore()]
    with redis.Redis.from_url(server) as client:
        client.flushall()

    def another() -> StateStore:
        if kind != "memory":
            stores.append(open_store(f"sqlite:///{tmp_path}/m.db" if kind == "sqlite" else server, key=key))
        return stores[-1]

    yield another
    for store in stores:
        store.close()


# A crafted export


def crafted(source: Path, target: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> int:
    """The archive with other floats in every segment, all checksums made anew; gives how many."""
    with zipfile.ZipFile(source) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    head = json.loads(unseal(HEAD, files["head"]))
    count = 0
    for entry in head["entries"]:
        name = f"blobs/{entry[5] if entry[6:] else entry[0]}"
        payload = unseal(SEGMENT, files[name])
        about = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])["__metadata__"]
        tensors = load(payload)
        for kind in ("keys", "values"):
            tensors[kind] = change(tensors[kind].float()).to(tensors[kind].dtype)
        version = int.from_bytes(files[name][8:12], "little")
        files[name] = seal(SEGMENT, save(tensors, metadata=about), version=version)
        del entry[5:]  # as an older release wrote it: without a checksum
        count += 1
    files["head"] = seal(HEAD, json.dumps(head).encode())
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return count


def forged(model: BeaconModel, folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """An export made elsewhere, from the same public model and document, with slots of the attacker's choice."""
    evil = BeaconMemory(model, MemoryStore())
    evil.session("x").add_text(LEASE, name="lease")
    evil.session("x").export(folder / "x.zip")
    assert crafted(folder / "x.zip", folder / "evil.zip", change) > 2
    return folder / "evil.zip"


def noise(tensor: torch.Tensor) -> torch.Tensor:
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(7)) * 5


@pytest.mark.parametrize("first", ["victim", "attacker"])
def test_an_imported_session_changes_no_other(model, opened, tmp_path, first):
    """Blobs were named by ids alone, and written over: one import gave every reader of a document other slots."""
    honest = BeaconMemory(model, MemoryStore())
    honest.session("alice").add_text(LEASE, name="lease")
    honest.session("alice").add("I live in Lyon. " * 6)
    file = forged(model, tmp_path, noise)
    memory = BeaconMemory(model, opened())

    def attack() -> None:
        memory.import_session(file, name="mallory")
        memory.session("mallory").add("I live in Lyon. " * 6)  # windows that are folded behind the forged slots
        memory.session("mallory").ask("When?", max_new_tokens=2)

    def read(memory: BeaconMemory, name: str) -> None:
        memory.session(name).add_text(LEASE, name="lease")
        memory.session(name).add("I live in Lyon. " * 6)

    for act in (
        (attack, lambda: read(memory, "alice"))
        if first == "attacker"
        else (
            lambda: read(memory, "alice"),
            attack,
        )
    ):
        act()
    read(memory, "bob")
    other = BeaconMemory(model, opened())
    read(other, "carol")
    wanted = honest.session("alice").state()
    for worker in (memory, other, BeaconMemory(model, opened())):
        for name in ("alice", "bob", "carol"):
            assert worker.session(name).state().equals(wanted)
        assert worker.repair("alice") == 0
        assert not torch.equal(worker.session("mallory").state().segments[0].keys, wanted.segments[0].keys)
    memory.session("mallory").forget()
    assert memory.repair("alice") == 0


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_slots_that_are_not_finite_are_refused(model, tmp_path, number):
    def broken(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[-1] = number
        return tensor

    memory = BeaconMemory(model, MemoryStore())
    with pytest.raises(CodecError, match="finite"):
        memory.import_session(forged(model, tmp_path, broken))
    assert memory.sessions() == []


def test_a_head_names_the_slots_and_not_only_the_ids(model):
    """Other floats behind a checksum made anew, under the same digest: nothing noticed without a key."""
    store = MemoryStore()
    BeaconMemory(model, store).session("alice").add_text(LEASE, name="lease")
    entry = BeaconMemory(model, store).load("alice")[0].entries[1]
    payload = unseal(SEGMENT, store._blobs[entry.digest])
    about = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])["__metadata__"]
    tensors = load(payload)
    tensors["keys"] = -tensors["keys"]
    store._blobs[entry.digest] = seal(SEGMENT, save(tensors, metadata=about))
    with pytest.raises(CodecError, match="other slots"):
        BeaconMemory(model, store).session("alice").state()
    assert BeaconMemory(model, store).repair("alice") == 1
    BeaconMemory(model, store).session("alice").state()


@pytest.mark.parametrize(
    "edit",
    [
        lambda head: head["tail"].append(10**6),
        lambda head: head["tail"].append(-1),
        lambda head: head["entries"][0].__setitem__(0, "zz"),
        lambda head: head["recent"].append({"role": "nobody", "content": "x"}),
        lambda head: head["recent"].append({"role": "user", "content": 7}),
        lambda head: head["recent"].append({"role": "document", "content": "x"}),
        lambda head: head.__setitem__("ratio", 5),
        lambda head: head.__setitem__("slot_dtype", "int2"),
        lambda head: head.__setitem__("pages", ["a" * 64]),
        lambda head: head.__setitem__("sources", {"d": "../x"}),
    ],
)
def test_a_head_that_would_break_later_is_not_imported(model, tmp_path, edit):
    memory = BeaconMemory(model, MemoryStore())
    memory.session("x").add_text(LEASE, name="lease")
    memory.session("x").export(tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    head = json.loads(unseal(HEAD, files["head"]))
    edit(head)
    files["head"] = seal(HEAD, json.dumps(head).encode())
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with pytest.raises(CodecError):
        memory.import_session(tmp_path / "y.zip", name="y")
    assert memory.sessions() == ["x"]


# Put back, emptied, begun anew


def snapshot(store: StateStore) -> Callable[[], None]:
    """Puts back what a store holds now, every byte of it."""
    if isinstance(store, RedisStore):
        client = store._client
        kept = {key: client.dump(key) for key in client.scan_iter()}

        def back() -> None:
            client.flushall()
            for key, value in kept.items():
                client.restore(key, 0, value)

        return back
    if isinstance(store, MemoryStore):
        heads, blobs, refs = dict(store._heads), dict(store._blobs), {d: set(n) for d, n in store._refs.items()}

        def again() -> None:
            store._heads, store._blobs = dict(heads), dict(blobs)
            store._refs.clear()
            store._refs.update({d: set(n) for d, n in refs.items()})

        return again
    tables = {table: store._db.execute(f"SELECT * FROM {table}").fetchall() for table in ("heads", "blobs", "refs")}  # type: ignore[attr-defined]

    def rows() -> None:
        for table, found in tables.items():
            store._db.execute(f"DELETE FROM {table}")  # type: ignore[attr-defined]
            for row in found:
                marks = ",".join("?" * len(row))
                store._db.execute(f"INSERT INTO {table} VALUES ({marks})", row)  # type: ignore[attr-defined]

    return rows


def test_a_pin_holds_after_a_rollback_and_later_turns(model, opened):
    """`at_least` was a number: whoever added a turn after a rollback made it pass again."""
    memory = BeaconMemory(model, opened())
    memory.session("alice").add("I live in Lyon.")
    first = memory.session("alice").info().version
    back = snapshot(memory.store)
    memory.session("alice").add("I moved to Oslo.")
    second = memory.session("alice").info().version
    for turn in range(5):
        memory.session("alice").add(f"Turn {turn}.")
    for pin in (first, second, memory.session("alice").info().version):
        assert BeaconMemory(model, opened()).session("alice", at_least=pin).info().messages == 7
    back()
    for turn in range(8):
        with pytest.raises(SessionRolledBack, match=str(second)):
            BeaconMemory(model, opened()).session("alice", at_least=second).add("More.")
        assert BeaconMemory(model, opened()).session("alice", at_least=first).info().messages == 1 + turn
        BeaconMemory(model, opened()).session("alice").add("By a worker that knows nothing.")


def test_who_has_seen_a_session_is_told_that_it_went_back(model, opened):
    memory = BeaconMemory(model, opened())
    memory.session("alice").add("I live in Lyon.")
    back = snapshot(memory.store)
    memory.session("alice").add("I moved to Oslo.")
    back()
    with pytest.raises(SessionRolledBack, match="was seen here"):
        memory.session("alice").add("More.")
    memory.session("alice").add("More.")
    assert [m["content"] for m in memory.session("alice").messages()] == ["I live in Lyon.", "More."]


def empty(store: StateStore) -> None:
    if isinstance(store, RedisStore):
        store._client.flushall()
    elif isinstance(store, MemoryStore):
        store._heads.clear()
    else:
        for table in ("heads", "blobs", "refs"):
            store._db.execute(f"DELETE FROM {table}")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "act",
    [
        lambda s: s.add("More."),
        lambda s: s.chat("More?", max_new_tokens=2),
        lambda s: s.add_text(LEASE, name="lease"),
        lambda s: s.set([{"role": "user", "content": "Anew."}]),
    ],
)
def test_a_session_that_is_lost_is_not_begun_anew_in_silence(model, opened, act):
    memory = BeaconMemory(model, opened())
    memory.session("alice").add("I live in Lyon.")
    empty(memory.store)
    with pytest.raises(SessionNotFound):
        act(BeaconMemory(model, opened()).session("alice", create=False))
    assert memory.sessions() == []
    with pytest.raises(SessionRolledBack, match="lost"):
        act(memory.session("alice"))
    assert memory.sessions() == []
    act(memory.session("alice"))  # it was told
    assert memory.sessions() == ["alice"]


def test_a_session_that_this_worker_forgot_may_be_begun_anew(model, opened):
    memory = BeaconMemory(model, opened())
    for _ in range(2):
        memory.session("alice").add("I live in Lyon.")
        memory.session("alice").forget()
    memory.session("alice", create=True).add("I live in Lyon.")


# Forgotten stays forgotten


def texts(memory: BeaconMemory) -> list[object]:
    """Everything of sessions that a process has on hand."""
    caches = (memory._segments, memory._pages, memory._residents, memory._heads, memory._seen)
    return [name for cache in caches for name in cache.names()]


@pytest.mark.parametrize("form", ["chat", "turn"])
@pytest.mark.parametrize("again", [False, True])
def test_a_session_that_is_forgotten_while_it_answers_stays_forgotten(model, opened, form, again):
    """The end of the stream made the session again, with what was to be forgotten."""
    memory = BeaconMemory(model, opened())
    other = BeaconMemory(model, opened())
    memory.session("alice").add("My secret is XYZZY. " * 9)
    if form == "chat":
        stream = memory.session("alice").chat("Tell me again", stream=True, max_new_tokens=6)
    else:
        said = [{"role": "user", "content": "Tell me again"}]
        stream = Turn(memory, said, session=memory.session("alice"), max_new_tokens=6)
    next(stream)
    other.session("alice").forget()
    if again:
        other.session("alice").add("Another life.")
    with pytest.raises(SessionRolledBack):
        list(stream)
    assert other.sessions() == (["alice"] if again else [])
    if again:
        assert [m["content"] for m in other.session("alice").messages()] == ["Another life."]
    del stream
    memory.session("alice", create=True).add("Hi.")
    memory.session("alice").forget()
    assert texts(memory) == []


def test_nothing_of_a_forgotten_session_stays_in_the_process(model, opened):
    memory = BeaconMemory(model, opened())
    for number in range(70):
        memory.session("alice").add(f"My secret number {number} is XYZZY.")
    memory.session("alice").add_text(LEASE, name="lease")
    memory.session("alice").messages()
    memory.session("alice").ask("What?", max_new_tokens=2)
    assert texts(memory)
    memory.session("alice").forget()
    assert texts(memory) == []


# What the ledger of Redis loses


def test_a_lost_ledger_is_written_again_from_signed_heads(model, server):
    for mend in (lambda memory: memory.store.gc(), lambda memory: [memory.repair(n) for n in ("alice", "bob")]):
        with redis.Redis.from_url(server) as client:
            client.flushall()
            memory = BeaconMemory.open(model, server, key=KEY)
            for name in ("alice", "bob"):
                memory.session(name).add(f"I am {name}. " * 9)
            client.delete("beacon:{default}:ledger")
            for name in ("alice", "bob"):
                with pytest.raises(IntegrityError, match="gc"):
                    BeaconMemory.open(model, server, key=KEY).session(name).messages()
            mend(BeaconMemory.open(model, server, key=KEY))
            for name in ("alice", "bob"):
                BeaconMemory.open(model, server, key=KEY).session(name).add("And on.")
            kept = sum(client.strlen(key) for key in client.scan_iter(match="*:blob:*"))
            assert int(client.hget("beacon:{default}:ledger", "bytes") or 0) == kept


# Damaged values

HEAD_KEY, LEDGER, INDEX = "beacon:{default}:head:alice", "beacon:{default}:ledger", "beacon:{default}:sessions"
DAMAGES: dict[str, Callable[[redis.Redis], object]] = {
    "head is a string": lambda c: (c.delete(HEAD_KEY), c.set(HEAD_KEY, "x")),
    "index is a string": lambda c: (c.delete(INDEX), c.set(INDEX, "x")),
    "ledger is a list": lambda c: (c.delete(LEDGER), c.lpush(LEDGER, "x")),
    "digests are not JSON": lambda c: c.hset(HEAD_KEY, "digests", "[[["),
    "digests are nested": lambda c: c.hset(HEAD_KEY, "digests", "[" * 100_000),
    "digests are a number": lambda c: c.hset(HEAD_KEY, "digests", "7"),
    "version is a text": lambda c: c.hset(HEAD_KEY, "version", "abc"),
    "version is negative": lambda c: c.hset(HEAD_KEY, "version", "-5"),
    "version is long": lambda c: c.hset(HEAD_KEY, "version", "9" * 5000),
    "version is no ASCII": lambda c: c.hset(HEAD_KEY, "version", "\u0663"),
    "tag is missing": lambda c: c.hdel(HEAD_KEY, "tag"),
    "past is missing": lambda c: c.hdel(HEAD_KEY, "past"),
    "body is missing": lambda c: c.hdel(HEAD_KEY, "body"),
    "mark is a text": lambda c: c.hset(LEDGER, "v:alice", "zz"),
    "bytes are a text": lambda c: c.hset(HEAD_KEY, "bytes", "zz"),
    "sizes are texts": lambda c: [c.hset(LEDGER, k, "zz") for k in c.hkeys(LEDGER) if k.startswith(b"b:")],
    "all bytes are a text": lambda c: c.hset(LEDGER, "bytes", "zz"),
    "a name is no UTF-8": lambda c: c.zadd(INDEX, {b"\xff\xfe": 1e18}),
    "lists of names are strings": lambda c: [(c.delete(k), c.set(k, "x")) for k in c.scan_iter(match="*:refs:*")],
    "names in lists are no UTF-8": lambda c: [c.zadd(k, {b"\xff": 1e18}) for k in c.scan_iter(match="*:refs:*")],
    "blobs are lists": lambda c: [(c.delete(k), c.lpush(k, "x")) for k in c.scan_iter(match="*:blob:*")],
}


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "keyed"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_whatever_is_damaged_raises_our_errors_and_can_be_forgotten(model, server, damage, key):
    """Raw ValueError, UnicodeDecodeError, RecursionError came out of damaged values."""
    with redis.Redis.from_url(server) as client:
        client.flushall()

        def fresh() -> BeaconMemory:
            return BeaconMemory.open(model, server, key=key)

        fresh().session("alice").add("I live in Lyon. " * 9)
        fresh().session("bob").add("I live in Oslo. " * 9)
        damage(client)
        acts: list[Callable[[], object]] = [
            lambda: fresh().session("alice").messages(),
            lambda: fresh().session("alice").state(),
            lambda: fresh().session("alice").info(),
            lambda: fresh().store.version("alice"),
            lambda: fresh().sessions(),
            lambda: fresh().session("alice").add("x"),
            lambda: fresh().session("alice").fork("carol"),
        ]
        for act in acts:
            with contextlib.suppress(BeaconError):
                act()
        fresh().store.gc()
        assert "I live in Oslo" in fresh().session("bob").messages()[0]["content"]
        for name in ("alice", "carol"):
            with contextlib.suppress(SessionNotFound):
                fresh().session(name).forget()
        fresh().store.gc()
        assert fresh().sessions() == ["bob"]
        fresh().session("alice").add("Anew.")


# What cannot fit


def test_what_cannot_fit_is_refused_before_it_is_folded(model):
    """A message of 1 MB was folded for 47 seconds, and then refused."""
    memory = BeaconMemory(model, MemoryStore())
    windows: list[int] = []
    big = "word " * 40_000
    acts: list[Callable[[], object]] = [
        lambda: memory.session("alice").add(big, progress=windows.append),
        lambda: memory.session("alice").add_text(big, name="big", progress=windows.append),
        lambda: list(Turn(memory, [{"role": "user", "content": big}], session=memory.session("alice"))),
        lambda: memory.session("alice").chat(big),
    ]
    for act in acts:
        with pytest.raises((BudgetExceeded, BeaconError)):
            act()
    assert (windows, memory.sessions()) == ([], [])


# What forgetting leaves in files

SECRET = "ZEBRA-7731"


def found(folder: Path) -> dict[str, int]:
    counted = {path.name: path.read_bytes().count(SECRET.encode()) for path in folder.rglob("*") if path.is_file()}
    return {name: count for name, count in counted.items() if count}


@pytest.mark.parametrize(
    "act",
    [
        lambda s: s.rewind(1),
        lambda s: s.set([{"role": "user", "content": "Keep this."}]),
        lambda s: s.forget(),
    ],
)
def test_what_is_taken_back_leaves_a_sqlite_file(model, tmp_path, act):
    with BeaconMemory.open(model, f"sqlite:///{tmp_path}/m.db") as memory:
        alice = memory.session("alice")
        alice.add("Keep this.")
        alice.add(f"My code is {SECRET}. " * 9)
        assert found(tmp_path)
        assert not act(alice)  # nothing is left to do
        assert found(tmp_path) == {}


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_forgetting_in_redis_says_what_an_operator_has_to_do(model, kind):
    with RedisServer(kind, appendonly="yes", save="3600 1", rdbcompression="no") as server:
        client = redis.Redis(port=server.port)
        client.config_set("slowlog-log-slower-than", 0)
        memory = BeaconMemory.open(model, server.url)
        memory.session("alice").add(f"My code is {SECRET}. " * 9)
        client.save()
        left = " ".join(memory.session("alice").forget())
        assert all(command in left for command in ("BGREWRITEAOF", "BGSAVE", "SLOWLOG RESET"))
        assert found(Path(server.folder))
        client.bgrewriteaof()
        until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], 20)
        until(lambda: not client.info("persistence")["aof_rewrite_scheduled"], 20)
        client.bgsave()
        until(lambda: not client.info("persistence")["rdb_bgsave_in_progress"], 20)
        client.slowlog_reset()
        assert found(Path(server.folder)) == {}
        assert not [entry for entry in client.slowlog_get(1000) if SECRET.encode() in entry["command"]]
        client.close()
        memory.close()
