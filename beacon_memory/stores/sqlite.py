"""Sessions in one SQLite file: the embedded store, safe for several threads and processes."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from beacon_memory.errors import ConfigError, StoreFull, StoreUnavailable
from beacon_memory.stores.base import Head, StateStore, check_session, conflict, missing, not_found

logger = logging.getLogger(__name__)

# Both stand in the file's header: whose file it is, and which tables it has.
APPLICATION_ID = int.from_bytes(b"Beac")
SCHEMA_VERSION = 1
SCHEMA = (
    # AUTOINCREMENT never gives a number twice, so a session created again never comes back to an old version.
    "CREATE TABLE heads (version INTEGER PRIMARY KEY AUTOINCREMENT, session TEXT NOT NULL UNIQUE, body BLOB NOT NULL)",
    "CREATE TABLE blobs (digest TEXT PRIMARY KEY, bytes BLOB NOT NULL)",
    "CREATE TABLE refs (session TEXT, place INTEGER, digest TEXT NOT NULL, PRIMARY KEY (session, place)) WITHOUT ROWID",
    "CREATE INDEX refs_by_digest ON refs (digest)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)

# Written again where it is not what it should be: a repair gives back a damaged blob.
_PUT_BLOB = """
INSERT INTO blobs VALUES (?, ?) ON CONFLICT DO UPDATE SET bytes = excluded.bytes WHERE bytes <> excluded.bytes
"""


class SqliteStore(StateStore):
    """A store in the file at `path`, created when it is not there. Its directory must be there.

    A writer waits up to `timeout` seconds for others. Bytes of a deleted session are overwritten with zeros, and their
    room is used again: the file does not shrink. A full disk raises StoreFull, from `delete` too: SQLite needs room to
    remove. Open the store after `os.fork`, not before: a connection must not cross it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, SqliteStore(f"{folder}/memory.db") as store:
    ...     store.commit("alice", Head(b"hello", ("d1",)), {"d1": b"slots"}, expected=0)
    1
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 30.0) -> None:
        if os.fspath(path) in ("", ":memory:"):
            raise ConfigError("a SQLite store is a file: give its path, or use memory:// for a store without one")
        # Absolute, so that no path is ever read as a "file:" URI.
        self._path = os.path.abspath(path)
        folder = os.path.dirname(self._path)
        if not os.path.isdir(folder):
            raise StoreUnavailable(f"there is no directory {folder}: create it, or choose another path")
        self._lock = threading.Lock()
        self._pid = os.getpid()
        with self._translated():
            self._db = sqlite3.connect(self._path, timeout=timeout, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def load(self, session: str) -> tuple[Head, int]:
        check_session(session)
        with self._transaction("BEGIN") as db:
            row = db.execute("SELECT body, version FROM heads WHERE session = ?", (session,)).fetchone()
            if row is None:
                raise not_found(session)
            return Head(row[0], self._digests(session)), row[1]

    def version(self, session: str) -> int:
        check_session(session)
        with self._transaction("BEGIN"):
            return self._version(session)

    def read(self, digests: Sequence[str]) -> list[bytes]:
        blobs: list[bytes] = []
        with self._transaction("BEGIN") as db:
            for digest in digests:
                row = db.execute("SELECT bytes FROM blobs WHERE digest = ?", (digest,)).fetchone()
                if row is None:
                    raise missing(digest)
                blobs.append(row[0])
        return blobs

    def commit(self, session: str, head: Head, blobs: Mapping[str, bytes], *, expected: int) -> int:
        check_session(session)
        with self._transaction("BEGIN IMMEDIATE") as db:
            version = self._version(session)
            if version != expected:
                raise conflict(session, version, expected=expected)
            for digest in dict.fromkeys(head.digests):
                if digest in blobs:
                    db.execute(_PUT_BLOB, (digest, blobs[digest]))
                elif not db.execute("SELECT 1 FROM blobs WHERE digest = ?", (digest,)).fetchone():
                    raise missing(digest)
            old = self._digests(session)
            before, after = set(enumerate(old)), set(enumerate(head.digests))
            gone = [(session, place) for place, _ in before - after]
            db.executemany("DELETE FROM refs WHERE session = ? AND place = ?", gone)
            db.executemany("INSERT INTO refs VALUES (?, ?, ?)", [(session, *row) for row in after - before])
            self._sweep(set(old) - set(head.digests))
            db.execute("INSERT OR REPLACE INTO heads (session, body) VALUES (?, ?)", (session, head.body))
            return self._version(session)

    def delete(self, session: str) -> None:
        check_session(session)
        with self._transaction("BEGIN IMMEDIATE") as db:
            if not self._version(session):
                raise not_found(session)
            old = self._digests(session)
            db.execute("DELETE FROM heads WHERE session = ?", (session,))
            db.execute("DELETE FROM refs WHERE session = ?", (session,))
            self._sweep(set(old))
        self._empty_log()

    def sessions(self) -> list[str]:
        with self._transaction("BEGIN") as db:
            return sorted(name for (name,) in db.execute("SELECT session FROM heads"))

    def touch(self, session: str) -> None:
        if not self.version(session):
            raise not_found(session)

    def close(self) -> None:
        with self._lock, self._translated():
            self._db.close()

    def _version(self, session: str) -> int:
        row = self._db.execute("SELECT version FROM heads WHERE session = ?", (session,)).fetchone()
        return int(row[0]) if row else 0

    def _digests(self, session: str) -> tuple[str, ...]:
        rows = self._db.execute("SELECT digest FROM refs WHERE session = ? ORDER BY place", (session,))
        return tuple(digest for (digest,) in rows)

    def _sweep(self, digests: Iterable[str]) -> None:
        """Remove those of the blobs that no head names."""
        query = "DELETE FROM blobs WHERE digest = ?1 AND NOT EXISTS (SELECT 1 FROM refs WHERE digest = ?1)"
        self._db.executemany(query, [(digest,) for digest in digests])

    def _empty_log(self) -> None:
        """Carry the write-ahead log into the file and cut it to nothing: deleted bytes stand there too."""
        with self._lock:
            try:
                busy = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            except sqlite3.OperationalError:
                busy = True
        if busy:
            logger.warning("%s is busy: deleted bytes leave its log at the next delete or close", self._path)

    def _prepare(self) -> None:
        """Make the tables in a new file; refuse, unaltered, a file that is not ours."""
        # BEGIN IMMEDIATE writes nothing by itself, and lets one process at a time look and create.
        with self._transaction("BEGIN IMMEDIATE") as db:
            (owner,) = db.execute("PRAGMA application_id").fetchone()
            (schema,) = db.execute("PRAGMA user_version").fetchone()
            used = db.execute("SELECT 1 FROM sqlite_master").fetchone()
            if not (owner or schema or used):
                for statement in SCHEMA:
                    db.execute(statement)
            elif owner != APPLICATION_ID:
                raise StoreUnavailable(f"{self._path} is another program's SQLite file: choose another path")
            elif schema != SCHEMA_VERSION:
                raise StoreUnavailable(
                    f"{self._path} has schema {schema}, this version of beacon-memory reads {SCHEMA_VERSION}: "
                    "open it with the version that wrote it"
                )
        with self._lock, self._translated():
            self._db.execute("PRAGMA secure_delete = ON")
            self._db.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut
        while not self._uses_wal():
            # Whoever else is opening the new file holds it: this waits for them, up to the timeout.
            with self._transaction("BEGIN EXCLUSIVE"):
                pass

    def _uses_wal(self) -> bool:
        """Whether the file keeps a write-ahead log from now on; switching one on does not wait for other openers."""
        with self._lock, self._translated():
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise
                return False
        return True

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        """The connection, alone, inside a transaction that is undone by any error."""
        if os.getpid() != self._pid:
            raise StoreUnavailable(f"{self._path} was opened before a fork: open the store in the process that uses it")
        with self._lock, self._translated():
            self._db.execute(begin)
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                # SQLite undoes the transaction by itself after some errors, a full disk among them.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Inside, sqlite3's errors are ours."""
        try:
            yield
        except sqlite3.Error as exc:
            code = getattr(exc, "sqlite_errorcode", None)  # absent when Python itself objects: a closed connection
            # Growing the shared index of the write-ahead log has a code of its own for a full disk.
            if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE):
                raise StoreFull(f"no room left for {self._path}: nothing was written ({exc})") from exc
            raise StoreUnavailable(f"cannot use the SQLite store {self._path}: {exc}") from exc
