"""A worker that folds what others have added raw, off the path of their answers (docs/vllm.md)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event

from beacon_memory.errors import (
    BudgetExceeded,
    CodecError,
    ConfigError,
    InputError,
    IntegrityError,
    ModelMismatch,
    SegmentMissing,
    SessionNotFound,
    StoreError,
    StoreUnavailable,
)
from beacon_memory.sessions.repository import Repository
from beacon_memory.sessions.stored import StoredSession
from beacon_memory.state.budget import full_windows
from beacon_memory.stores.queue import Job

logger = logging.getLogger(__name__)

LEASE_S = 15.0  # after which another worker takes the job of one that is silent
TRIES = 5  # of a job, by whatever worker, before it is put among the dead
WAIT_S = 1.0  # for a job, before the worker looks whether it is to stop
# What no other try can mend.
FATAL = (BudgetExceeded, CodecError, InputError, IntegrityError, ModelMismatch, SegmentMissing)


class FoldWorker:
    """Folds the sessions on a store's queue, one after the other.

    The head says what is to be folded, and moves by compare-and-set, so a job done twice changes nothing, and a worker
    that is killed loses no more than the windows it was at. Any number of workers may serve one store.

    >>> import tempfile
    >>> from beacon_memory import BeaconConfig, BeaconMemory
    >>> from beacon_memory.testing import tiny_model
    >>> model = tiny_model(config=BeaconConfig(window=16, keep_last=8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with BeaconMemory.open(model, f"sqlite:///{folder}/memory.db") as memory:
    ...         memory.session("ada").add("I live in Lyon. " * 9, fold=False)
    ...         FoldWorker(memory).run(until_empty=True)
    ...         memory.session("ada").info().slots > 0
    1
    True
    """

    def __init__(
        self,
        memory: Repository,
        *,
        lease: float = LEASE_S,
        tries: int = TRIES,
        say: Callable[[str], None] = logger.info,
    ) -> None:
        """`lease` in seconds, the same for all workers of a store. Raises ConfigError for a store without a queue."""
        queue = memory.store.queue()
        if queue is None:
            raise ConfigError("this store has no queue for workers: keep sessions in SQLite or Redis")
        if not lease > 0 or tries < 1:
            raise ConfigError(f"a lease takes longer than 0 seconds, tries are 1 or more, not {lease!r} and {tries!r}")
        self._memory, self._queue, self._lease, self._tries, self._say = memory, queue, lease, tries, say

    def run(self, stop: Event | None = None, *, until_empty: bool = False) -> int:
        """Fold until `stop` is set, or with `until_empty` until no job waits; gives the number of jobs done.

        When it is to stop, the windows that it is at are finished, and the rest is put on the queue again.
        """
        stop, done = stop or Event(), 0
        while not stop.is_set():
            try:
                job = self._queue.take(lease=self._lease, seconds=0 if until_empty else WAIT_S)
                if job is not None:
                    done += self._do(job, stop)
                elif until_empty:
                    break
            except StoreUnavailable as exc:
                logger.warning("no job can be taken, trying again: %s", exc)
                stop.wait(WAIT_S)
        return done

    def look(self) -> int:
        """Put every session with full windows on the queue, as after a crash between a turn and its job; gives their
        number.
        """
        found = 0
        for name in self._memory.store.sessions():
            with suppress(SessionNotFound, ModelMismatch, CodecError, IntegrityError):
                head, _ = self._memory.load(name)
                if full_windows(len(head.tail), first=not head.entries, config=self._memory.model.config):
                    self._queue.put(name)
                    found += 1
        return found

    def _do(self, job: Job, stop: Event) -> bool:
        """Do a job, as far as it goes; gives whether it is over. Raises StoreUnavailable."""
        if job.tries > self._tries:
            return self._bury(job, f"taken {job.tries - 1} times and never finished: each worker died, or was killed")
        try:
            with self._kept(job):
                whole = self._fold(job.session, stop)
        except SessionNotFound:  # it was forgotten meanwhile, or has expired
            whole = True
        except FATAL as exc:
            return self._bury(job, _told(exc))
        except Exception as exc:  # whatever it is, other sessions are folded
            if job.tries == self._tries:
                return self._bury(job, _told(exc))
            logger.warning("%r was not folded, trying again in %.0f s: %s", job.session, self._lease, _told(exc))
            return False
        if not whole:
            self._queue.put(job.session)
        self._queue.done(job)
        return whole

    def _fold(self, name: str, stop: Event) -> bool:
        """Fold all that is ready of a session; False where it is to stop before that."""
        session, began, total = StoredSession(self._memory, name, create=False), time.monotonic(), 0
        while tokens := session.fold():
            total += tokens
            if stop.is_set():
                break
        if total:
            self._say(f"{name}: {total} tokens folded in {time.monotonic() - began:.1f} s")
        return not tokens

    def _bury(self, job: Job, why: str) -> bool:
        self._queue.bury(job, why)
        self._say(f"{job.session}: not folded, it stays readable as it is: {why}")
        return True

    @contextmanager
    def _kept(self, job: Job) -> Iterator[None]:
        """While inside, the job stays this worker's."""
        over = Event()

        def renew() -> None:
            while not over.wait(self._lease / 3):
                with suppress(StoreError):
                    self._queue.renew(job, lease=self._lease)

        renewing = threading.Thread(target=renew, name="beacon-job", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            over.set()
            renewing.join()


def _told(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}"
