"""Turns: one writer of a session after another, where several processes write to it. Nothing but speed depends on them.

Compare-and-set alone keeps a session whole. But of 32 processes that race, 31 have folded in vain each time, and some
lose for as long as they try.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from beacon_memory.locks import Lock

TURN_SECONDS = 300.0  # how long a writer waits for its turn; then it races
LONGEST_PAUSE = 0.05  # seconds, between two looks


def waited(take: Callable[[], bool], *, seconds: float = TURN_SECONDS) -> bool:
    """Whether `take` succeeded, called again and again for so many seconds."""
    deadline = time.monotonic() + seconds
    while not take():
        if time.monotonic() > deadline:
            return False
        time.sleep(random.uniform(0, LONGEST_PAUSE))
    return True


class FileTurns:
    """Turns of the processes of one machine, by locks on bytes of a file that stays empty. It is made when first used.

    The system ends the turn of a process that dies. A child does not have its parent's. Threads of one process are not
    kept apart.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     turns = FileTurns(f"{folder}/memory.db-turns")
    ...     with turns.turn("alice"): print("alone")
    ...     turns.close()
    alone
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = Lock()
        self._file: list[int] = []

    @contextmanager
    def turn(self, session: str, *, seconds: float = TURN_SECONDS) -> Iterator[None]:
        """A turn at this session. Where the file cannot be used, or none comes in time, it goes on without."""
        byte = int.from_bytes(hashlib.sha256(session.encode()).digest()[:4]) >> 1
        with suppress(OSError):
            file = self._opened()

            def take() -> bool:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
                except BlockingIOError:
                    return False
                return True

            waited(take, seconds=seconds)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.lockf(self._opened(), fcntl.LOCK_UN, 1, byte)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            while self._file:
                os.close(self._file.pop())

    def _opened(self) -> int:
        with self._lock:
            if not self._file:
                self._file.append(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            return self._file[0]
