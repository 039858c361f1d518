"""What a store promises: a session is a small head that names immutable blobs.

A store moves bytes. It never looks into a head's body or a blob, and never imports torch: what the bytes mean is the
codec's business. A blob that is there is never replaced by another: sessions share them by name.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self, TypeVar

from beacon_memory.errors import (
    BlobDiffers,
    InputError,
    SegmentMissing,
    SessionConflict,
    SessionExists,
    SessionNotFound,
)

T = TypeVar("T")
STREAMED = 4  # blobs of a stream that are read together
RETRY_SECONDS = 30.0  # how long a writer goes on that others are faster than
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 1.0  # seconds, between two tries


@dataclass(frozen=True)
class Head:
    """Where a session stands: an opaque body, and the digests of every blob that the body refers to, in its order."""

    body: bytes
    digests: tuple[str, ...] = ()  # a digest may stand here more than once
    past: bytes = field(default=b"", compare=False, repr=False)  # of a loaded one: the versions before (`chain.py`)


class StateStore(ABC):
    """Sessions' heads and the blobs they name, behind compare-and-set.

    A version is a positive number that grows with each commit of a session; 0 means that there is no session. No
    session has the same version twice, not even one that was forgotten and created again, so an equal version means an
    unchanged session and whatever was kept for it elsewhere still holds. Versions are drawn by `chain.drawn`, and a
    head that is loaded carries those before its own, so that it can prove to descend from one.

    Every method may be called from several threads, and raises InputError for what is not a session id (see
    `check_session`), StoreUnavailable, and StoreFull when it has written nothing. After a StoreUnavailable from
    `commit` the head may have moved or not: load it to know.
    """

    @abstractmethod
    def load(self, session: str) -> tuple[Head, int]:
        """The session's head and its version. Raises SessionNotFound."""

    @abstractmethod
    def read(self, digests: Sequence[str]) -> list[bytes]:
        """The blobs, in the order asked. Raises SegmentMissing naming the first digest that is not there.

        Another writer may have moved the session, and dropped blobs, since its head was loaded: when the session's
        version is not what it was, load the head again; when it is, the blobs are lost.
        """

    def stream(self, digests: Sequence[str]) -> Iterator[bytes]:
        """The blobs as `read` gives them, for one who needs large ones one by one: while some are used the next few
        come, and those after them are not held in memory yet. Raises what `read` raises, when it gets there.

        They are several readings: a writer may drop blobs in between. Closed early, it waits for the one under way.
        """
        batches = [digests[start : start + STREAMED] for start in range(0, len(digests), STREAMED)]
        if len(batches) < 2:
            yield from self.read(digests)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="beacon-stream") as ahead:
            coming = ahead.submit(self.read, batches[0])
            for batch in batches[1:]:
                blobs = coming.result()
                coming = ahead.submit(self.read, batch)
                yield from blobs
            yield from coming.result()

    @abstractmethod
    def commit(
        self,
        session: str,
        head: Head,
        blobs: Mapping[str, bytes],
        *,
        expected: int,
        damaged: Container[str] = (),
    ) -> int:
        """Write the new blobs, then move the head from version `expected`; gives the new version.

        Every digest that `head` names must be in `blobs` or in the store already (else SegmentMissing); a blob that it
        does not name is not kept. One that is there already stays: with other bytes than those in `blobs` nothing is
        written (BlobDiffers), but for names in `damaged`, which the caller has found to hold what nobody can read.
        Blobs that the old head named and no head names any more are removed. Raises SessionConflict when the session is
        not at `expected`. After any of these errors nothing a reader can see has changed.
        `expected=0` creates the session.
        """

    @abstractmethod
    def delete(self, session: str) -> None:
        """Forget the session: its head, and every blob that no other session names. Raises SessionNotFound."""

    @abstractmethod
    def sessions(self) -> list[str]:
        """The names of all sessions, sorted."""

    @abstractmethod
    def touch(self, session: str) -> None:
        """Mark the session as used now (stores with a time to live renew it). Raises SessionNotFound."""

    def version(self, session: str) -> int:
        """The session's version, 0 when there is none; a store that can answer without the head overrides this."""
        try:
            return self.load(session)[1]
        except SessionNotFound:
            return 0

    def fork(self, session: str, new: str) -> int:
        """Copy the head of `session` to the new session `new`; no blob is copied. Raises SessionExists."""
        while True:
            head, version = self.load(session)
            try:
                return self.commit(new, head, {}, expected=0)
            except SessionConflict as exc:
                raise SessionExists(f"session {new!r} exists already: choose another name or forget it first") from exc
            except SegmentMissing:
                # A writer that moves `session` between the two lines above may drop blobs of the head we hold.
                if self.version(session) == version:
                    raise

    def gc(self) -> int:
        """Remove what crashes, evictions and expired sessions left behind; gives the number of blobs removed.

        What a session names is never touched, and writers need not stop. Most stores leave nothing behind.
        """
        return 0

    def mend(self, session: str) -> None:  # noqa: B027  (optional: most stores keep nothing beside a head)
        """Make again what is kept beside the session's head, from what is sealed. Raises SessionNotFound."""

    def reseal(self, *, batch: int = 100) -> int:
        """Seal everything with the store's newest key, and encrypt it or not, as the store was opened; gives the
        number of values that were sealed otherwise. Readers and writers need not stop. A store without seals has none.
        """
        return 0

    def scrub(self) -> list[str]:
        """Take what was removed out of the places where it may still stand; gives what is left to do, in sentences."""
        return []

    def close(self) -> None:  # noqa: B027  (optional: most stores hold nothing to close)
        """Give back what the store holds open. A closed store is not used again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def check_session(session: str) -> str:
    """The session id, when it is one: 1 to 512 characters of text. Raises InputError."""
    if not isinstance(session, str) or not 1 <= len(session) <= 512:
        raise InputError(f"a session id is text of 1 to 512 characters, not {session!r:.80}")
    try:
        session.encode()
    except UnicodeEncodeError as exc:
        raise InputError(f"a session id must be valid unicode, not {session!a:.80}") from exc
    return session


def retrying(act: Callable[[], T], *, seconds: float | None = None, attempts: int | None = None) -> T:
    """Do `act` again when it loses a compare-and-set. `act` must load the head itself.

    Between two tries it waits for a random time whose bound doubles (full jitter). The last conflict is raised after
    so many seconds (30 by default), or after so many attempts when `attempts` is given.
    """
    deadline, bound, done = time.monotonic() + (RETRY_SECONDS if seconds is None else seconds), FIRST_PAUSE, 0
    while True:
        try:
            return act()
        except SessionConflict:
            done += 1
            if done == attempts or (attempts is None and time.monotonic() > deadline):
                raise
        time.sleep(random.uniform(0, bound))
        bound = min(2 * bound, LONGEST_PAUSE)


def not_found(session: str) -> SessionNotFound:
    """The error for a session that is not there, in the words of every store."""
    return SessionNotFound(f"no session {session!r} in this store")


def conflict(session: str, version: int, *, expected: int) -> SessionConflict:
    """The error for a lost compare-and-set, in the words of every store."""
    return SessionConflict(f"session {session!r} is at version {version}, not {expected}: load it again and retry")


def missing(digest: str) -> SegmentMissing:
    """The error for a blob that is not there, in the words of every store."""
    return SegmentMissing(f"no blob {digest!r} in this store: it was forgotten, evicted or never written")


def differs(digest: str) -> BlobDiffers:
    """The error for a blob that is another than the one to be written, in the words of every store."""
    return BlobDiffers(f"another blob is kept under {digest!r}: it is not replaced, nothing was written", digest)
