"""Turns of writers in several processes: one at a time, and none is held by the dead."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from beacon_memory.stores import Head, StateStore, open_store
from beacon_memory.stores.memory import MemoryStore
from beacon_memory.stores.redis import RedisStore
from beacon_memory.stores.redis.turns import turn
from beacon_memory.stores.turns import FileTurns
from beacon_memory.testing import redis_server

WRITERS, TURNS = 6, 15


@pytest.fixture(params=["sqlite", "redis", "valkey"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/memory.db"
        return
    with redis_server(request.param) as url:
        yield url


def forked(act: Callable[[], None]) -> int:
    """The id of a new process that does this and ends; its code is 1 for an error."""
    child = os.fork()
    if not child:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return child


def test_writers_in_a_turn_are_alone(url, tmp_path):
    count = tmp_path / "count"
    count.write_text("0")

    def write() -> None:
        with open_store(url) as store:
            for _ in range(TURNS):
                with store.turn("room"), store.turn("hall"):  # turns of two sessions
                    before = int(count.read_text())
                    count.write_text(str(before + 1))

    children = [forked(write) for _ in range(WRITERS)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * WRITERS
    assert int(count.read_text()) == WRITERS * TURNS


def test_the_turn_of_a_writer_that_dies_ends(url):
    def own(store: StateStore):
        # A lease short enough to wait for.
        return turn(store, "room", lease=2) if isinstance(store, RedisStore) else store.turn("room")

    ready, told = os.pipe()

    def hold() -> None:
        with open_store(url) as store, own(store):
            os.write(told, b"!")
            signal.pause()

    child = forked(hold)
    os.read(ready, 1)
    with open_store(url) as store:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with store.turn("room"):
            store.commit("room", Head(b"body"), {}, expected=0)
        assert store.version("room")


def test_a_writer_whose_turn_does_not_come_goes_on_without(url, tmp_path):
    """A writer that hangs in its turn must not stop the others for ever."""
    ready, told = os.pipe()

    def hold() -> None:
        with open_store(url) as store, store.turn("room"):
            os.write(told, b"!")
            signal.pause()

    child = forked(hold)
    os.read(ready, 1)
    done = []
    with open_store(url) as store:
        if isinstance(store, RedisStore):
            with turn(store, "room", seconds=0.2):
                done.append(1)
        else:
            with FileTurns(f"{tmp_path}/memory.db-turns").turn("room", seconds=0.2):
                done.append(1)
        with store.turn("another"):
            done.append(2)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert done == [1, 2]


def test_a_turn_that_was_lost_is_not_taken_from_its_new_owner():
    with redis_server("redis") as url, RedisStore(url) as store, RedisStore(url) as other:
        key = store._key("turn", "room")
        with turn(store, "room"):
            store._client.delete(key)  # as when it could not be renewed in time
            with turn(other, "room"):
                held = store._client.get(key)
            assert held is not None
        with turn(other, "room"):
            mine = other._client.get(other._key("turn", "room"))
            with turn(store, "room", seconds=0.1):
                pass
            assert other._client.get(other._key("turn", "room")) == mine


def test_a_turn_that_takes_long_is_renewed():
    with redis_server("redis") as url, RedisStore(url) as store, RedisStore(url) as other, turn(store, "room", lease=1):
        mine = store._client.get(store._key("turn", "room"))
        with turn(other, "room", seconds=2.5):  # it does not come
            assert store._client.get(store._key("turn", "room")) == mine


class SentAgain(redis.Redis):
    """A client that sends a SET twice, because the first reply was lost."""

    def set(self, *args: object, **options: object) -> object:
        super().set(*args, **options)
        return super().set(*args, **options)


def test_a_turn_whose_reply_was_lost_is_ones_own():
    """Sent again, it was told that somebody had the turn, and waited 12 seconds for itself."""
    with redis_server("redis") as url, SentAgain.from_url(url) as client:
        store = RedisStore(client=client)
        with turn(store, "room", seconds=0):
            assert client.get(store._key("turn", "room"))
            with turn(RedisStore(url), "room", seconds=0):
                pass
            assert client.get(store._key("turn", "room"))
        assert client.get(store._key("turn", "room")) is None


def test_a_turn_needs_nothing(tmp_path):
    """It spares races. Where there is no room for its file, or no store behind it, writers race."""
    with FileTurns(f"{tmp_path}/missing/turns").turn("room"):
        pass
    with MemoryStore().turn("room"):
        pass
    with redis_server("redis") as url:
        store = RedisStore(url)
    with turn(store, "room"):
        pass
    with open_store(f"sqlite:///{tmp_path}/memory.db") as store:
        assert not (tmp_path / "memory.db-turns").exists()
        with store.turn("room"):
            pass
    assert (tmp_path / "memory.db-turns").stat().st_size == 0
    assert (tmp_path / "memory.db-turns").stat().st_mode & 0o777 == 0o600
