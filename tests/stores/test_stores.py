"""The contract on the memory store, what the base gives to every store, and opening by URL."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from beacon_memory.errors import ConfigError, InputError, SegmentMissing, SessionConflict
from beacon_memory.stores import Head, StateStore, open_store
from beacon_memory.stores.base import STREAMED, check_session, conflict, retrying
from beacon_memory.stores.memory import MemoryStore
from beacon_memory.stores.redis import RedisStore
from beacon_memory.stores.sqlite import SqliteStore
from beacon_memory.testing import StoreContract
from beacon_memory.testing.stores import digest, put


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> Iterator[StateStore]:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)  # so that threads do meet inside a commit
        with MemoryStore() as store:
            yield store
        sys.setswitchinterval(interval)


def test_a_fork_follows_a_session_that_moves_meanwhile() -> None:
    class Moving(MemoryStore):
        """A store whose session `alice` is moved by someone else, once, just before a fork is written."""

        moves = 1

        def commit(self, session: str, head: Head, blobs: Mapping[str, bytes], *, expected: int) -> int:
            if session == "bob" and self.moves:
                self.moves -= 1
                put(self, "alice", b"coarser", expected=self.version("alice"))
            return super().commit(session, head, blobs, expected=expected)

    store = Moving()
    put(store, "alice", b"finer")
    store.fork("alice", "bob")
    assert store.load("bob")[0].digests == (digest(b"coarser"),)


def test_a_fork_of_a_session_that_lost_a_blob_says_so() -> None:
    store = MemoryStore()
    put(store, "alice", b"evicted")
    del store._blobs[digest(b"evicted")]
    with pytest.raises(SegmentMissing):
        store.fork("alice", "bob")


def test_a_stream_reads_no_further_ahead_than_the_next_few() -> None:
    class Counting(MemoryStore):
        """A store that counts what was read of it."""

        count = 0

        def read(self, digests: Sequence[str]) -> list[bytes]:
            self.count += len(digests)
            return super().read(digests)

    with Counting() as store:
        blobs = [b"%d" % number for number in range(40)]
        put(store, "alice", *blobs)
        stream = store.stream([digest(blob) for blob in blobs])
        for number, blob in enumerate(blobs):
            assert next(stream) == blob
            assert number < store.count <= number + 2 * STREAMED
        assert next(stream, None) is None
        assert store.count == len(blobs)


def test_a_url_opens_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_store("sqlite:///relative.db") as relative, open_store(f"sqlite:///{tmp_path}/absolute.db") as absolute:
        assert (type(relative), type(absolute)) == (SqliteStore, SqliteStore)
        assert {path.name for path in tmp_path.glob("*.db")} == {"relative.db", "absolute.db"}
    for url in (
        "redis://localhost:1/0",
        "redis://localhost:1/0?ttl=60&namespace=acme&session_bytes=1000000&socket_timeout=60",
        "rediss://localhost:1/0",
        "unix:///tmp/none.sock",
        "redis+sentinel://me:s3cret@localhost:1,localhost/mymaster/0?ttl=60&socket_timeout=5",
    ):
        with open_store(url) as store:
            assert isinstance(store, RedisStore)
    with open_store("memory://") as store:
        assert isinstance(store, MemoryStore)
        assert open_store(store) is store


def test_a_sqlite_url_with_an_option_names_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything behind the slashes was the file's name: what another process had written there was not found."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with open_store(f"sqlite:///{tmp_path}/my memory.db") as store:
        put(store, "alice")
    for url in (f"{tmp_path}/my memory.db?timeout=60", f"{tmp_path}/my%20memory.db?timeout=0.5", "~/my%20memory.db"):
        with open_store(f"sqlite:///{url}") as store:
            assert store.sessions() == ["alice"]
    with open_store(f"sqlite:///{tmp_path}/100%23%3F.db"):
        pass
    assert {path.name for path in tmp_path.glob("*.db")} == {"my memory.db", "100#?.db"}


@pytest.mark.parametrize(
    "rest", ["?mode=ro", "?timeout=", "?timeout=60&timeout=5", "?timeout=nan", "?timeout=-1", "?x", "#x"]
)
def test_a_sqlite_url_that_says_something_else_makes_no_file(rest: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"timeout|fragment"):
        open_store(f"sqlite:///{tmp_path}/memory.db{rest}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("timeout", ["soon", None, True, -1, float("inf"), float("nan")])
def test_a_wait_that_is_no_number_of_seconds_is_refused(timeout: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        SqliteStore(tmp_path / "memory.db", timeout=timeout)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_key_beside_a_store_that_is_open_is_refused() -> None:
    """It was left aside without a word, and the store stayed unsealed."""
    for signing in ({"key": b"a key of 16 bytes"}, {"encrypt": True}, {"trust": True}):
        with pytest.raises(ConfigError, match="open already"):
            open_store(MemoryStore(), **signing)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memory.db", "sqlite:///"),
        ("", "sqlite:///"),
        ("postgres://me:s3cret@host/db", "redis://, rediss://"),
        ("redis+sentinel://me:s3cret@host", "names its service"),
        ("redis+sentinel://me:s3cret@/mymaster", "names its service"),
        ("redis+sentinel://me:s3cret@host:port/mymaster", "percent-encoded"),
        ("redis://host/0?ttl=soon", "whole number"),
        ("redis://host/0?ttl=0", "seconds"),
        ("memory://shared", "no name"),
        ("sqlite://memory.db", "three slashes"),
        ("sqlite:///", "three slashes"),
        ("sqlite:///:memory:", "memory://"),
        ("redis://me:s3cret/@host", "percent-encoded"),
        ("redis://host/0?ttl=60&password=s3cret", "options"),
        ("redis://host/0?tll=60", "options"),
        ("redis://host/0?decode_responses=True", "decode_responses=False"),
    ],
)
def test_a_url_that_names_no_store_is_refused_with_a_hint(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        open_store(url)
    assert "s3cret" not in str(caught.value)


def test_a_session_id_is_checked_as_text() -> None:
    assert check_session("x" * 512) == "x" * 512
    for wrong in (b"alice", None, 7):
        with pytest.raises(InputError):
            check_session(wrong)  # type: ignore[arg-type]


def test_retrying_gives_up_with_the_last_conflict() -> None:
    tries: list[int] = []

    def act() -> None:
        tries.append(len(tries))
        raise conflict("alice", len(tries), expected=0)

    with pytest.raises(SessionConflict, match="at version 3"):
        retrying(act, attempts=3)
    assert tries == [0, 1, 2]


def test_redis_is_imported_only_for_a_redis_store() -> None:
    code = "import sys; from beacon_memory.stores import open_store; open_store('memory://'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"redis", "sqlite3", "torch"} & set(loaded)
