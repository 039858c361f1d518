"""Sessions in one SQLite file: the embedded store, safe for several threads and processes."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace

from beacon_memory.errors import ConfigError, IntegrityError, StoreFull, StoreUnavailable
from beacon_memory.stores.base import Head, StateStore, check_session, conflict, differs, missing, not_found
from beacon_memory.stores.chain import drawn, grown
from beacon_memory.stores.file_queue import FileQueue
from beacon_memory.stores.signing import Signer
from beacon_memory.stores.turns import FileTurns

Row = tuple[str, bytes, bytes | None, bytes]  # version, past, tag, body as it is kept

# Both are in the file's header: whose file it is, and which tables it has.
APPLICATION_ID = int.from_bytes(b"Beac")
SCHEMA_VERSION = 2
MOST_S = 1e6  # what SQLite waits is a small number of milliseconds
HEADS = """
CREATE TABLE heads (session TEXT PRIMARY KEY, version TEXT NOT NULL, past BLOB NOT NULL, tag BLOB, body BLOB NOT NULL)
"""
SCHEMA = (
    HEADS,
    "CREATE TABLE blobs (digest TEXT PRIMARY KEY, bytes BLOB NOT NULL, tag BLOB)",
    "CREATE TABLE refs (session TEXT, place INTEGER, digest TEXT NOT NULL, PRIMARY KEY (session, place)) WITHOUT ROWID",
    "CREATE INDEX refs_by_digest ON refs (digest)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
# Heads and blobs of schema 1 have no tags: with a key they are refused until `reseal` has signed them.
FROM_1 = (
    "ALTER TABLE heads RENAME TO heads_1",
    HEADS,
    "INSERT INTO heads SELECT session, CAST(version AS TEXT), x'', NULL, body FROM heads_1",
    "DROP TABLE heads_1",
    "ALTER TABLE blobs ADD COLUMN tag BLOB",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


class SqliteStore(StateStore):
    """A store in the file at `path`, created when it is not there. Its directory must be there.

    A writer waits up to `timeout` seconds for others. With a `key` (16 bytes or more) everything is signed with an
    HMAC: what someone without the key has written or moved raises IntegrityError. (A session put back whole, as it was
    before, is noticed by `at_least`: docs/security.md.) `encrypt` encrypts everything too. While the key is changed,
    what was signed with `old_key` can be read, until `reseal` has signed it again; `trust` also accepts what was
    written without a key.

    Only its owner can read a new file (mode 0600). Removed bytes are overwritten with zeros, and their space is used
    again: the file does not shrink. They leave the write-ahead log as soon as no reader is in the way; until then
    `scrub` says so. A full disk raises StoreFull, from `delete` too: SQLite needs space to remove. Open the store after
    `os.fork`, not before: a connection must not cross it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, SqliteStore(f"{folder}/memory.db") as store:
    ...     store.commit("alice", Head(b"hello", ("d1",)), {"d1": b"slots"}, expected=0) == store.version("alice")
    True
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float = 30.0,
        key: bytes | None = None,
        old_key: bytes | None = None,
        encrypt: bool = False,
        trust: bool = False,
    ) -> None:
        if os.fspath(path) in ("", ":memory:"):
            raise ConfigError("a SQLite store is a file: give its path, or use memory:// for a store without one")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 <= timeout < MOST_S:
            raise ConfigError(f"timeout is a number of seconds, 0 or more, not {timeout!r}")
        # The same in every copy of the file: it may be moved.
        self._signer = Signer("sqlite", key, old_key, encrypt, trust)
        # Absolute, so that no path is ever read as a "file:" URI.
        self._path = os.path.abspath(path)
        folder = os.path.dirname(self._path)
        if not os.path.isdir(folder):
            raise StoreUnavailable(f"there is no directory {folder}: create it, or choose another path")
        self._turns = FileTurns(f"{self._path}-turns")
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._timeout = timeout
        self._left = False  # whether a reader has kept removed bytes in the log
        with suppress(OSError):  # SQLite itself says what is wrong
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with self._translated():
            self._db = sqlite3.connect(self._path, timeout=timeout, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def load(self, session: str) -> tuple[Head, int]:
        check_session(session)
        with self._transaction("BEGIN"):
            row = self._row(session)
            if row is None:
                raise not_found(session)
            return self._checked(session, row, self._digests(session))

    def version(self, session: str) -> int:
        check_session(session)
        with self._transaction("BEGIN"):
            return self._version(session)

    def read(self, digests: Sequence[str]) -> list[bytes]:
        blobs: list[bytes] = []
        with self._transaction("BEGIN"):
            for digest in digests:
                blob = self._blob(digest)
                if blob is None:
                    raise missing(digest)
                blobs.append(blob)
        return blobs

    def commit(
        self,
        session: str,
        head: Head,
        blobs: Mapping[str, bytes],
        *,
        expected: int,
        damaged: Container[str] = (),
    ) -> int:
        check_session(session)
        with self._transaction("BEGIN IMMEDIATE") as db:
            row, version = self._row(session), self._version(session)
            if version != expected:
                raise conflict(session, version, expected=expected)
            for digest in dict.fromkeys(head.digests):
                if digest in blobs:
                    self._put(digest, blobs[digest], damaged=digest in damaged)
                elif not db.execute("SELECT 1 FROM blobs WHERE digest = ?", (digest,)).fetchone():
                    raise missing(digest)
            old = self._digests(session)
            past = b"" if row is None else self._checked(session, row, old)[0].past
            before, after = set(enumerate(old)), set(enumerate(head.digests))
            gone = [(session, place) for place, _ in before - after]
            db.executemany("DELETE FROM refs WHERE session = ? AND place = ?", gone)
            db.executemany("INSERT INTO refs VALUES (?, ?, ?)", [(session, *row) for row in after - before])
            self._sweep(set(old) - set(head.digests))
            new, past = drawn(version), grown(past, version)
            self._write(session, new, replace(head, past=past))
        if self._left or not set(old) <= set(head.digests):
            self.scrub()
        return new

    def delete(self, session: str) -> None:
        check_session(session)
        with self._transaction("BEGIN IMMEDIATE") as db:
            # A session that cannot be trusted can still be forgotten.
            if not db.execute("SELECT 1 FROM heads WHERE session = ?", (session,)).fetchone():
                raise not_found(session)
            old = self._digests(session)
            db.execute("DELETE FROM heads WHERE session = ?", (session,))
            db.execute("DELETE FROM refs WHERE session = ?", (session,))
            self._sweep(set(old))
        self.scrub()

    def turn(self, session: str) -> AbstractContextManager[None]:
        return self._turns.turn(check_session(session))

    def queue(self) -> FileQueue:
        return FileQueue(f"{self._path}-queue", timeout=self._timeout)

    def sessions(self) -> list[str]:
        with self._transaction("BEGIN") as db:
            return sorted(name for (name,) in db.execute("SELECT session FROM heads") if isinstance(name, str))

    def touch(self, session: str) -> None:
        if not self.version(session):
            raise not_found(session)

    def reseal(self, *, batch: int = 100) -> int:
        with self._transaction("BEGIN") as db:
            # What is no text is no name of ours, and no one can ask for it.
            sessions = [name for (name,) in db.execute("SELECT session FROM heads") if isinstance(name, str)]
            digests = [name for (name,) in db.execute("SELECT digest FROM blobs") if isinstance(name, str)]
        done = 0
        for start in range(0, len(sessions), batch):
            with self._transaction("BEGIN IMMEDIATE"):
                for session in sessions[start : start + batch]:
                    row = self._row(session)
                    if row is None or self._newest("head", session, row[2], *self._about(row, session), row[3]):
                        continue
                    head, version = self._checked(session, row, self._digests(session))
                    self._write(session, version, head)
                    done += 1
        for start in range(0, len(digests), batch):
            with self._transaction("BEGIN IMMEDIATE"):
                for digest in digests[start : start + batch]:
                    kept = self._kept(digest)
                    if kept is None or self._newest("blob", digest, *kept):
                        continue
                    self._replace(digest, self._verified("blob", digest, kept[0], kept=kept[1]))
                    done += 1
        self.scrub()
        return done

    def scrub(self) -> list[str]:
        """Write the write-ahead log into the file and empty it: it holds removed bytes too."""
        if os.getpid() != self._pid:
            raise StoreUnavailable(f"{self._path} was opened before a fork: open the store in the process that uses it")
        with self._lock, self._translated():
            try:
                self._db.execute("PRAGMA busy_timeout = 0")  # does not wait for a reader in the way
                self._left = bool(self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise
                self._left = True
            finally:
                self._db.execute(f"PRAGMA busy_timeout = {int(self._timeout * 1000)}")
        if not self._left:
            return []
        return [
            f"{self._path}-wal still holds removed bytes, because another connection is reading: once it is done, the "
            f"next commit, `scrub` or close of any store on this file erases them"
        ]

    def close(self) -> None:
        self._turns.close()
        with self._lock, self._translated():
            self._db.close()

    def _row(self, session: str) -> Row | None:
        query = "SELECT version, past, tag, body FROM heads WHERE session = ?"
        row: Row | None = self._db.execute(query, (session,)).fetchone()
        if row is not None and not (
            isinstance(row[0], str)
            and row[0].isascii()
            and row[0].isdecimal()
            and len(row[0]) < 60
            and isinstance(row[1], bytes)
            and isinstance(row[2], bytes | None)
            and isinstance(row[3], bytes)
        ):
            raise IntegrityError(f"the head of session {session!r} is damaged: a field has the wrong type")
        return row

    def _version(self, session: str) -> int:
        row = self._row(session)
        return int(row[0]) if row else 0

    def _checked(self, session: str, row: Row, digests: tuple[str, ...]) -> tuple[Head, int]:
        """The head and version in a row, checked. Raises IntegrityError."""
        version, past, tag, kept = row
        body = self._verified("head", session, tag, *self._about(row, session), kept=kept)
        return Head(body, digests, past), int(version)

    def _about(self, row: Row, session: str) -> tuple[bytes, ...]:
        return row[0].encode(), row[1], _listed(self._digests(session))

    def _write(self, session: str, version: int, head: Head) -> None:
        about = (b"%d" % version, head.past, _listed(head.digests))
        tag, kept = self._signer.signed("head", session, head.body, *about)
        row = (session, str(version), head.past, tag, kept)
        self._db.execute("INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?, ?)", row)

    def _blob(self, digest: str) -> bytes | None:
        kept = self._kept(digest)
        return None if kept is None else self._verified("blob", digest, kept[0], kept=kept[1])

    def _kept(self, digest: str) -> tuple[bytes | None, bytes] | None:
        """A blob's tag, and its bytes as they are kept. Raises IntegrityError."""
        row = self._db.execute("SELECT tag, bytes FROM blobs WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            return None
        if not isinstance(row[1], bytes) or not isinstance(row[0], bytes | None):
            raise IntegrityError(f"blob {digest!r:.80} is damaged: it is not bytes")
        return row[0], row[1]

    def _put(self, digest: str, blob: bytes, *, damaged: bool) -> None:
        """Write a blob, unless it is there already. Raises BlobDiffers."""
        try:
            there = self._blob(digest)
        except IntegrityError:
            if not damaged:
                raise
            there = None
        if there is not None and there != blob and not damaged:
            raise differs(digest)
        if there != blob:
            self._replace(digest, blob)

    def _replace(self, digest: str, blob: bytes) -> None:
        tag, kept = self._signer.signed("blob", digest, blob)
        self._db.execute("INSERT OR REPLACE INTO blobs (digest, bytes, tag) VALUES (?, ?, ?)", (digest, kept, tag))

    def _verified(self, kind: str, name: str, tag: bytes | None, *about: bytes, kept: bytes) -> bytes:
        """The original bytes of what is kept; in files of schema 1 it has no tag. Raises IntegrityError."""
        if tag is not None:
            return self._signer.verified(tag, kind, name, kept, *about)
        if self._signer.key is not None and not self._signer.trust:
            raise IntegrityError(f"{kind} {name!r:.80} was written without the store's key: it is not trusted")
        return kept

    def _newest(self, kind: str, name: str, tag: bytes | None, *parts: bytes) -> bool:
        return tag is not None and self._signer.newest(tag, kind, name, *parts)

    def _digests(self, session: str) -> tuple[str, ...]:
        rows = self._db.execute("SELECT digest FROM refs WHERE session = ? ORDER BY place", (session,))
        return tuple(str(digest) for (digest,) in rows)

    def _sweep(self, digests: Iterable[str]) -> None:
        """Remove those of these blobs that no head names."""
        query = "DELETE FROM blobs WHERE digest = ?1 AND NOT EXISTS (SELECT 1 FROM refs WHERE digest = ?1)"
        self._db.executemany(query, [(digest,) for digest in digests])

    def _prepare(self) -> None:
        """Create the tables in a new file. A file that is not ours is refused and not changed."""
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
            elif schema == 1:
                for statement in FROM_1:
                    db.execute(statement)
            elif schema != SCHEMA_VERSION:
                raise StoreUnavailable(
                    f"{self._path} has schema {schema}, this version of beacon-memory reads {SCHEMA_VERSION}: "
                    "open it with the version that wrote it"
                )
        with self._lock, self._translated():
            self._db.execute("PRAGMA secure_delete = ON")
            self._db.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut
        while not self._uses_wal():
            # Another process is opening the new file: this waits for it, up to the timeout.
            with self._transaction("BEGIN EXCLUSIVE"):
                pass

    def _uses_wal(self) -> bool:
        """Switch the write-ahead log on; False while another process that opens the file prevents it."""
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
        """The connection, for one thread at a time, in a transaction that any error undoes."""
        if os.getpid() != self._pid:
            raise StoreUnavailable(f"{self._path} was opened before a fork: open the store in the process that uses it")
        with self._lock, self._translated():
            self._db.execute(begin)
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                # After some errors, such as a full disk, SQLite has undone the transaction itself.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turns sqlite3's errors into ours."""
        try:
            yield
        except sqlite3.Error as exc:
            code = getattr(exc, "sqlite_errorcode", None)  # absent when Python itself raises: a closed connection
            # A full disk has a code of its own while the log's shared index grows.
            if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE):
                raise StoreFull(f"no room left for {self._path}: nothing was written ({exc})") from exc
            raise StoreUnavailable(f"cannot use the SQLite store {self._path}: {exc}") from exc
        except UnicodeDecodeError as exc:  # of SQLite's message about a damaged schema, which repeats its bytes
            raise StoreUnavailable(f"cannot use the SQLite store {self._path}: its schema is damaged") from exc


def _listed(digests: Sequence[str]) -> bytes:
    return json.dumps(digests, separators=(",", ":")).encode()
