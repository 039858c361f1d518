"""Stores that the release before heads were chained has written (written_by_1): read, gone on with, taken over."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from beacon_memory import BeaconConfig, BeaconMemory, BeaconModel
from beacon_memory.errors import IntegrityError, SessionRolledBack
from beacon_memory.testing import redis_server, tiny_model

OLD = Path(__file__).with_name("written_by_1")
KEY = b"a key of this deployment"
LEASE = "The lease ends on 31 March 2027. The rent is 900 euros a month. " * 2
PINS = json.loads((OLD / "pins.json").read_text())


@pytest.fixture(scope="module")
def model() -> BeaconModel:
    return tiny_model(config=BeaconConfig(window=32, keep_last=8, sink=2, anchors="last", ratio=8))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with redis_server("redis") as url:
        yield url


def unpacked(name: str) -> bytes:
    return gzip.decompress((OLD / f"{name}.gz").read_bytes())


def restored(url: str, name: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.flushall()
        for key, value in json.loads(unpacked(f"redis-{name}.json")).items():
            if isinstance(value, str):
                client.set(key, base64.b64decode(value))
            elif isinstance(value, dict):
                client.hset(key, mapping={field: base64.b64decode(v) for field, v in value.items()})
            else:
                client.zadd(key, {member: float(score) for member, score in value})


def opened(model: BeaconModel, form: str, server: str, folder: Path, **signing: object) -> BeaconMemory:
    if form == "sqlite":
        return BeaconMemory.open(model, f"sqlite:///{folder}/memory.db", **signing)
    return BeaconMemory.open(model, server, key=KEY if form == "keyed" else None, **signing)


@pytest.mark.parametrize("form", ["sqlite", "plain", "keyed"])
def test_what_an_older_release_wrote_is_read_and_gone_on_with(model, server, tmp_path, form):
    if form == "sqlite":
        (tmp_path / "memory.db").write_bytes(unpacked("memory.db"))
    else:
        restored(server, form)
    memory = opened(model, form, server, tmp_path)
    assert memory.sessions() == ["alice", "bob", "carol"]
    assert {name: memory.session(name).info().version for name in memory.sessions()} == PINS[form]
    alice = memory.session("alice", at_least=PINS[form]["alice"])
    assert [m["role"] for m in alice.messages()] == ["document", *["user"] * 67]
    fresh = BeaconMemory.open(model)
    fresh.session("carol").add_text(LEASE, name="lease")
    assert memory.session("carol").state().equals(fresh.session("carol").state())
    before = memory.session("alice").state().tokens
    alice.add("And on. " * 9)
    memory.session("bob").add("And on. " * 9)
    assert memory.repair("alice") == 0
    other = opened(model, form, server, tmp_path)
    alice = other.session("alice", at_least=PINS[form]["alice"])
    assert (alice.info().messages, alice.state().tokens > before) == (69, True)
    with pytest.raises(SessionRolledBack):
        other.session("alice", at_least=PINS[form]["alice"] + 1).info()
    other.session("dave").add_text(LEASE, name="lease")
    assert other.session("dave").state().equals(other.session("carol").state())
    assert other.store.gc() == 0
    for name in other.sessions():
        other.session(name).forget()
    assert other.store.gc() == 0


@pytest.mark.parametrize("form", ["sqlite", "plain"])
def test_a_store_of_an_older_release_is_taken_over_under_a_key(model, server, tmp_path, form):
    if form == "sqlite":
        (tmp_path / "memory.db").write_bytes(unpacked("memory.db"))
        url = f"sqlite:///{tmp_path}/memory.db"
    else:
        restored(server, form)
        url = server
    with pytest.raises(IntegrityError, match="without the store's key"):
        BeaconMemory.open(model, url, key=KEY).session("alice").messages()
    from beacon_memory.stores import open_store

    with open_store(url, key=KEY, trust=True) as store:
        assert store.reseal() > 3
    if form == "plain":
        BeaconMemory.open(model, url, key=KEY).store.gc()
    memory = BeaconMemory.open(model, url, key=KEY)
    assert memory.session("alice", at_least=PINS[form]["alice"]).info().messages == 68
    memory.session("alice").state()


def test_an_export_of_an_older_release_is_imported(model, tmp_path):
    (tmp_path / "alice.zip").write_bytes(unpacked("alice.zip"))
    memory = BeaconMemory.open(model)
    assert memory.import_session(tmp_path / "alice.zip").info().messages == 68
    memory.session("alice").add("And on. " * 9)
    memory.session("alice").export(tmp_path / "again.zip")
    other = BeaconMemory.open(model)
    assert other.import_session(tmp_path / "again.zip").state().equals(memory.session("alice").state())
