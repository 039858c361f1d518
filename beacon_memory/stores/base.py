"""What a store promises: a session is a small head that names immutable blobs.

A store moves bytes. It never looks into a head's body or a blob, and never imports torch: only the codec knows what the
bytes mean. A stored blob is never replaced by a different one, because sessions share blobs by name.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
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
from beacon_memory.stores.queue import Queue

T = TypeVar("T")
STREAMED = 4  # blobs that a stream reads at a time
RETRY_SECONDS = 30.0  # how long a writer tries while others are faster
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 1.0  # seconds, between two tries


@dataclass(frozen=True)
class Head:
    """A session's state: an opaque body, and the digests of all blobs that the body refers to, in its order."""

    body: bytes
    digests: tuple[str, ...] = ()  # a digest may stand here more than once
    past: bytes = field(default=b"", compare=False, repr=False)  # of a loaded head: the versions before (`chain.py`)


class StateStore(ABC):
    """Sessions' heads and the blobs they name, changed by compare-and-set.

    A version is a positive number that grows with each commit of a session; 0 means that there is no session. No
    session has the same version twice, not even one that was forgotten and created again. So an equal version means an
    unchanged session, and what was cached for it is still valid. `chain.drawn` makes versions. A loaded head carries
    the versions before its own, so that it can prove that it descends from one.

    Every method may be called from several threads. It raises InputError for what is not a session id (see
    `check_session`), StoreUnavailable, and StoreFull when it has written nothing. After a StoreUnavailable from
    `commit` the head may have been written or not: load it to find out.
    """

    @abstractmethod
    def load(self, session: str) -> tuple[Head, int]:
        """The session's head and its version. Raises SessionNotFound."""

    @abstractmethod
    def read(self, digests: Sequence[str]) -> list[bytes]:
        """The blobs, in the order of `digests`. Raises SegmentMissing with the first digest that is not there.

        Another writer may have committed, and removed blobs, since the session's head was loaded. If the session's
        version has changed, load the head again; if it has not, the blobs are lost.
        """

    def stream(self, digests: Sequence[str]) -> Iterator[bytes]:
        """The blobs as `read` gives them, one by one: while some are used the next few are read, and the rest is not
        in memory yet. Raises what `read` raises, when it gets to that blob.

        It takes several reads, and a writer may remove blobs in between. Closed early, it waits for the running one.
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
        """Write the new blobs, then replace the head at version `expected`; returns the new version.

        Every digest that `head` names must be in `blobs` or in the store already (else SegmentMissing). A blob that it
        does not name is not kept. A blob that is stored already stays: if its bytes are not those in `blobs`, nothing
        is written (BlobDiffers), except for names in `damaged`, whose blobs the caller has found to be unreadable.
        Blobs that the old head named and no head names any more are removed. Raises SessionConflict when the session is
        not at `expected`. After any of these errors nothing that a reader can see has changed.
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
        """The session's version, 0 without one. A store that can answer without reading the head overrides this."""
        try:
            return self.load(session)[1]
        except SessionNotFound:
            return 0

    def turn(self, session: str) -> AbstractContextManager[None]:
        """A writer's turn at a session, for a `with`: who asks for one waits while another writer, of whatever process,
        has it. The turn of one that dies ends by itself.

        It spares writers races that they lose; compare-and-set is what keeps a session whole. Most stores give none.
        """
        return nullcontext()

    def queue(self) -> Queue | None:
        """The queue of sessions that fold workers fold; None where the store has none, as most have."""
        return None

    def fork(self, session: str, new: str) -> int:
        """Copy the head of `session` to the new session `new`; no blob is copied. Raises SessionExists."""
        while True:
            head, version = self.load(session)
            try:
                return self.commit(new, head, {}, expected=0)
            except SessionConflict as exc:
                raise SessionExists(f"session {new!r} exists already: choose another name or forget it first") from exc
            except SegmentMissing:
                # A writer that commits between the two lines above may remove blobs of the head we hold.
                if self.version(session) == version:
                    raise

    def gc(self) -> int:
        """Remove what crashes, evictions and expired sessions left behind; returns the number of blobs removed.

        What a session names is never touched, and writers need not stop. Most stores leave nothing behind.
        """
        return 0

    def mend(self, session: str) -> None:  # noqa: B027  (optional: most stores keep nothing beside a head)
        """Rebuild what is kept beside the session's head, from the signed head. Raises SessionNotFound."""

    def reseal(self, *, batch: int = 100) -> int:
        """Sign everything with the store's `key`, and encrypt it or not, as the store was opened; returns the number of
        values that this changed. Readers and writers need not stop. A store that signs nothing returns 0.
        """
        return 0

    def scrub(self) -> list[str]:
        """Erase removed bytes from logs and the like; returns what is left for others to do, in sentences."""
        return []

    def close(self) -> None:  # noqa: B027  (optional: most stores hold nothing to close)
        """Close what the store holds open. A closed store cannot be used again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def check_session(session: str) -> str:
    """The session id, if it is one: text of 1 to 512 characters. Raises InputError."""
    if not isinstance(session, str) or not 1 <= len(session) <= 512:
        raise InputError(f"a session id is text of 1 to 512 characters, not {session!r:.80}")
    try:
        session.encode()
    except UnicodeEncodeError as exc:
        raise InputError(f"a session id must be valid unicode, not {session!a:.80}") from exc
    return session


def retrying(act: Callable[[], T], *, seconds: float | None = None, attempts: int | None = None) -> T:
    """Call `act` again when it loses a compare-and-set. `act` must load the head itself.

    Between two tries it waits for a random time whose bound doubles (full jitter). The last conflict is raised after
    `seconds` (default: 30), or after `attempts` tries if they are given.
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
    """The error for a session that is not there, with the same words in every store."""
    return SessionNotFound(f"no session {session!r} in this store")


def conflict(session: str, version: int, *, expected: int) -> SessionConflict:
    """The error for a lost compare-and-set, with the same words in every store."""
    return SessionConflict(f"session {session!r} is at version {version}, not {expected}: load it again and retry")


def missing(digest: str) -> SegmentMissing:
    """The error for a blob that is not there, with the same words in every store."""
    return SegmentMissing(f"no blob {digest!r} in this store: it was forgotten, evicted or never written")


def differs(digest: str) -> BlobDiffers:
    """The error for a stored blob that differs from the one to be written, with the same words in every store."""
    return BlobDiffers(f"a different blob is stored under {digest!r}: it is not replaced, nothing was written", digest)
