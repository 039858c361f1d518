"""The contract on SQLite, then what is particular to it: files, processes, disks."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beacon_memory.errors import StoreFull, StoreUnavailable
from beacon_memory.stores import Head, StateStore
from beacon_memory.stores.sqlite import SqliteStore
from beacon_memory.testing import StoreContract
from beacon_memory.testing.stores import digest, holds, put

SECRET = b"I live in Lyon, at 12 rue des Capucins."


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[StateStore]:
        with SqliteStore(tmp_path / "memory.db") as store:
            yield store


def bytes_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


WRITER = """
import sys
import time
from beacon_memory.stores import Head
from beacon_memory.stores.base import retrying
from beacon_memory.stores.sqlite import SqliteStore

with SqliteStore(sys.argv[1]) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(50):
        name = f"{sys.argv[2]}-{number}"
        def append():
            version = store.version("alice")
            old = store.load("alice")[0].digests if version else ()
            store.commit("alice", Head(b"", (*old, name)), {name: name.encode()}, expected=version)
        retrying(append, attempts=1000)
"""


def test_two_processes_on_one_file_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), "a"], **pipes) as a,
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), "b"], **pipes) as b,
    ):
        assert (a.stdout.readline(), b.stdout.readline()) == (b"ready\n", b"ready\n")
        a.stdin.close()
        b.stdin.close()
    assert (a.returncode, b.returncode) == (0, 0)
    with SqliteStore(path) as store:
        names = store.load("alice")[0].digests
        assert store.read(names) == [name.encode() for name in names]
        assert sorted(names) == sorted(f"{writer}-{number}" for writer in "ab" for number in range(50))


def test_a_sqlite_file_is_read_again_by_the_next_process(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "memory.db") as store:
        version = put(store, "alice", b"one")
    with SqliteStore(tmp_path / "memory.db") as store:
        assert store.load("alice") == (Head(b"body", (digest(b"one"),)), version)
        assert holds(store, b"one")


def test_deleted_bytes_are_gone_from_the_sqlite_files(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "memory.db") as store:
        version = put(store, "alice", SECRET, SECRET * 3000, body=SECRET)
        put(store, "alice", SECRET, body=SECRET + b"!", expected=version)
        put(store, "bob", b"other")
        assert SECRET in bytes_in(tmp_path)
        store.delete("alice")
        found = bytes_in(tmp_path)
        assert (SECRET in found, b"alice" in found, b"other" in found) == (False, False, True)


def test_a_full_disk_writes_nothing_and_leaves_the_session(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "memory.db") as store:
        version = put(store, "alice", b"one")
        store._db.execute("PRAGMA max_page_count = 40")
        with pytest.raises(StoreFull, match="nothing was written"):
            put(store, "alice", b"one", b"big" * 100_000, expected=version)
        assert store.load("alice") == (Head(b"body", (digest(b"one"),)), version)
        assert not holds(store, b"big" * 100_000)
        put(store, "alice", b"one", b"small", expected=version)


def test_a_file_that_is_not_ours_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    text, other, newer = tmp_path / "notes.txt", tmp_path / "other.db", tmp_path / "newer.db"
    text.write_text("My notes, longer than a SQLite header has to be to be recognised as one. " * 3)
    for path, statement in ((other, "CREATE TABLE theirs (id)"), (newer, "PRAGMA user_version = 99")):
        if path == newer:
            SqliteStore(newer).close()
        connection = sqlite3.connect(path)
        connection.execute(statement)
        connection.close()
    for path, words in ((text, "not a database"), (other, "another program"), (newer, "schema 99")):
        before = path.read_bytes()
        with pytest.raises(StoreUnavailable, match=words):
            SqliteStore(path)
        assert path.read_bytes() == before


def test_a_path_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="no directory"):
        SqliteStore(tmp_path / "nowhere" / "memory.db")
    with pytest.raises(StoreUnavailable, match="unable to open"):
        SqliteStore(tmp_path)


def test_a_sqlite_file_that_stays_locked_is_unavailable(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "memory.db", timeout=0) as store:
        other = sqlite3.connect(tmp_path / "memory.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            put(store, "alice", b"one")
        assert store.sessions() == []
        other.execute("ROLLBACK")
        put(store, "alice", b"one")
        # The read-only error of a file system, without needing one.
        store._db.execute("PRAGMA query_only = ON")
        with pytest.raises(StoreUnavailable, match="readonly"):
            store.delete("alice")
        other.close()


def test_a_closed_sqlite_store_is_unavailable(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "memory.db")
    store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        store.load("alice")


def test_a_sqlite_store_does_not_cross_a_fork(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "memory.db") as store:
        child = os.fork()
        if not child:
            try:
                store.sessions()
            except StoreUnavailable as exc:
                os._exit("before a fork" not in str(exc))
            finally:
                os._exit(2)
        assert os.waitpid(child, 0) == (child, 0)
        assert store.sessions() == []


# Forgetting


@pytest.mark.parametrize("keyed", [None, b"a key of this deployment"])
def test_a_new_file_is_its_owners_alone(tmp_path: Path, keyed: bytes | None) -> None:
    before = os.umask(0)
    try:
        with SqliteStore(tmp_path / "memory.db", key=keyed) as store:
            put(store, "alice", b"one")
            assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    finally:
        os.umask(before)


def test_dropped_bytes_leave_the_sqlite_files_with_their_commit(tmp_path: Path) -> None:
    """They stood in the write-ahead log until somebody forgot a session, or closed the store."""
    with SqliteStore(tmp_path / "memory.db") as store:
        version = put(store, "alice", SECRET, SECRET * 3000, b"kept")
        put(store, "alice", b"kept", expected=version)
        assert SECRET not in bytes_in(tmp_path)
        assert holds(store, b"kept")


def test_a_reader_in_the_way_is_not_waited_for_and_is_reported(tmp_path: Path) -> None:
    """Forgetting waited 30 seconds for a reader, and then left what was forgotten in the log for good."""
    with SqliteStore(tmp_path / "memory.db") as store:
        put(store, "alice", SECRET, SECRET * 3000, body=SECRET)
        version = put(store, "bob", b"other")
        reader = sqlite3.connect(tmp_path / "memory.db", isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM heads").fetchone()
        start = time.monotonic()
        store.delete("alice")
        (left,) = store.scrub()
        assert time.monotonic() - start < 5
        assert "reading" in left
        assert SECRET in bytes_in(tmp_path)
        version = put(store, "bob", b"other", expected=version)
        reader.execute("COMMIT")
        reader.close()
        put(store, "bob", b"other", expected=version)  # which tries again
        assert SECRET not in bytes_in(tmp_path)
        assert store.scrub() == []
