"""Questions of many callers, answered in batches on one thread. The queue is bounded, and callers may leave it."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from beacon_memory.errors import BeaconError, EngineBusy
from beacon_memory.locks import Lock, renewed

if TYPE_CHECKING:
    from beacon_memory.sessions.memory import BeaconMemory


@dataclass(eq=False)
class _Asked:
    """A question that waits or is being answered."""

    session: str
    question: str
    how: dict[str, Any]
    answer: Future[str] = field(default_factory=Future)
    left: threading.Event = field(default_factory=threading.Event)


class BatchQueue:
    """A queue of questions for one thread. Those with the same options are answered together."""

    def __init__(
        self,
        memory: Callable[[], BeaconMemory],
        worker: Callable[[], ThreadPoolExecutor],
        *,
        together: int = 8,
        waiting: int = 64,
    ) -> None:
        """`together` is the most questions of one batch, `waiting` the most that wait."""
        self._memory, self._worker = memory, worker
        self._together, self._most = together, waiting
        self._lock = Lock()
        self.after_fork()
        renewed(self)

    def after_fork(self) -> None:
        """Begin with nothing to answer: the questions that waited are the parent's."""
        self._waiting: deque[_Asked] = deque()

    async def ask(self, session: str, question: str, **how: Any) -> str:
        """The answer, as `BeaconMemory.ask_many` gives it. Cancelling takes a waiting question out of the queue, and
        ends one that is being answered. Raises EngineBusy when too many wait.
        """
        asked = _Asked(session, question, how)
        with self._lock:
            if len(self._waiting) >= self._most:
                raise EngineBusy(f"{self._most} questions wait already: ask again when some are answered")
            self._waiting.append(asked)
        self._worker().submit(self._answer)
        try:
            return await asyncio.wrap_future(asked.answer)
        finally:
            asked.left.set()
            with self._lock:
                if asked in self._waiting:
                    self._waiting.remove(asked)

    def _answer(self) -> None:
        """Answer the oldest question, and those after it with the same options."""
        batch = [asked for asked in self._taken() if asked.answer.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            told = self._told(batch)
        except BeaconError as exc:
            if len(batch) == 1:
                batch[0].answer.set_exception(exc)
                return
            for asked in batch:  # one that cannot be answered must not fail the others
                self._alone(asked)
        except BaseException as exc:
            for asked in batch:
                asked.answer.set_exception(exc)
        else:
            for asked, answer in zip(batch, told, strict=True):
                asked.answer.set_result(answer)

    def _alone(self, asked: _Asked) -> None:
        try:
            asked.answer.set_result(self._told([asked])[0])
        except BaseException as exc:
            asked.answer.set_exception(exc)

    def _told(self, batch: list[_Asked]) -> list[str]:
        pairs = [(asked.session, asked.question) for asked in batch]
        return self._memory().ask_many(pairs, left=[asked.left for asked in batch], **batch[0].how)

    def _taken(self) -> list[_Asked]:
        with self._lock:
            if not self._waiting:
                return []
            how = self._waiting[0].how
            same = [asked for asked in self._waiting if asked.how == how][: self._together]
            for asked in same:
                self._waiting.remove(asked)
            return same
