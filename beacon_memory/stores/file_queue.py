"""Sessions that wait to be folded, in a SQLite file."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from beacon_memory.errors import StoreFull, StoreUnavailable
from beacon_memory.stores.queue import Counts, Dead, Job, Queue

PAUSE = 0.1  # seconds, at most, between two looks at a file
TABLES = (
    "CREATE TABLE IF NOT EXISTS jobs (id INTEGER PRIMARY KEY AUTOINCREMENT, session TEXT NOT NULL, tries INTEGER NOT "
    "NULL DEFAULT 0, due REAL NOT NULL DEFAULT 0)",
    "CREATE TABLE IF NOT EXISTS dead (session TEXT PRIMARY KEY, why TEXT NOT NULL, tries INTEGER, at REAL NOT NULL)",
)


class FileQueue(Queue):
    """A queue in a SQLite file of its own, which is made when first used: its writers do not wait for the store's.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     queue = FileQueue(f"{folder}/memory.db-queue")
    ...     queue.put("ada"); queue.put("ada")
    ...     job = queue.take(lease=15, seconds=0)
    ...     queue.done(job)
    ...     job.session, queue.counts()
    ('ada', Counts(waiting=0, taken=0, dead=0))
    """

    def __init__(self, path: str, *, timeout: float = 30.0) -> None:
        """`timeout` in seconds, as the store's: how long one waits for others."""
        self._path, self._timeout = path, timeout

    def put(self, session: str) -> None:
        with self._changed() as db:
            _put(db, session)

    def take(self, *, lease: float, seconds: float) -> Job | None:
        deadline = time.monotonic() + seconds
        while True:
            with self._changed() as db:
                now = time.time()
                query = "SELECT id, session, tries FROM jobs WHERE due <= ? ORDER BY tries = 0, id LIMIT 1"
                if row := db.execute(query, (now,)).fetchone():
                    db.execute("UPDATE jobs SET tries = tries + 1, due = ? WHERE id = ?", (now + lease, row[0]))
                    return Job(str(row[0]), row[1], row[2] + 1)
            if time.monotonic() >= deadline:
                return None
            time.sleep(random.uniform(0, PAUSE))

    def renew(self, job: Job, *, lease: float) -> None:
        with self._changed() as db:
            db.execute("UPDATE jobs SET due = ? WHERE id = ?", (time.time() + lease, int(job.id)))

    def done(self, job: Job) -> None:
        with self._changed() as db:
            db.execute("DELETE FROM jobs WHERE id = ?", (int(job.id),))
            db.execute("DELETE FROM dead WHERE session = ?", (job.session,))

    def bury(self, job: Job, why: str) -> None:
        with self._changed() as db:
            db.execute("DELETE FROM jobs WHERE id = ?", (int(job.id),))
            row = (job.session, why, job.tries, time.time())
            db.execute("INSERT OR REPLACE INTO dead VALUES (?, ?, ?, ?)", row)

    def drop(self, session: str) -> None:
        if os.path.exists(self._path):
            with self._changed() as db:
                db.execute("DELETE FROM jobs WHERE session = ? AND tries = 0", (session,))
                db.execute("DELETE FROM dead WHERE session = ?", (session,))

    def dead(self) -> list[Dead]:
        with self._changed() as db:
            return [Dead(*row) for row in db.execute("SELECT session, why, tries, at FROM dead ORDER BY session")]

    def revive(self) -> int:
        with self._changed() as db:
            names = [name for (name,) in db.execute("SELECT session FROM dead")]
            for name in names:
                _put(db, name)
            db.execute("DELETE FROM dead")
        return len(names)

    def counts(self) -> Counts:
        with self._changed() as db:
            query = "SELECT sum(tries = 0), sum(tries > 0), (SELECT count(*) FROM dead) FROM jobs"
            return Counts(*(int(count or 0) for count in db.execute(query).fetchone()))

    @contextmanager
    def _changed(self) -> Iterator[sqlite3.Connection]:
        """A connection for one transaction: none is held, so none crosses a fork."""
        try:
            if not os.path.exists(self._path):
                os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
            with closing(sqlite3.connect(self._path, timeout=self._timeout, isolation_level=None)) as db:
                db.execute("PRAGMA secure_delete = ON")
                db.execute("BEGIN IMMEDIATE")
                for table in TABLES:
                    db.execute(table)
                yield db
                db.execute("COMMIT")
        except (sqlite3.Error, OSError) as exc:
            if getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise StoreFull(f"no room left for {self._path}: nothing was written ({exc})") from exc
            raise StoreUnavailable(f"cannot use the queue {self._path}: {exc}") from exc


def _put(db: sqlite3.Connection, session: str) -> None:
    db.execute(
        "INSERT INTO jobs (session) SELECT ?1 WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE session = ?1 AND tries = 0)",
        (session,),
    )
