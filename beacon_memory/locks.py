"""Locks, and threads for work, that a forked process has anew: the threads that may hold them are the parent's.

A web server may open a memory, answer once, and then fork its workers (`gunicorn --preload`).
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import Any, ParamSpec, Protocol, TypeVar
from weakref import WeakSet

P = ParamSpec("P")
T = TypeVar("T")

_WITHIN: ContextVar[frozenset[Worker]] = ContextVar("_WITHIN", default=frozenset())  # whose work this code is a part of


class _Forked(Protocol):
    def after_fork(self) -> None: ...


def renewed(one: _Forked) -> None:
    """See to it that a forked process calls this object's `after_fork`."""
    _RENEWED.add(one)


class Lock:
    """A lock, `recursive` where its holder may take it again; free after a fork.

    >>> lock = Lock()
    >>> with lock: print("held")
    held
    """

    def __init__(self, *, recursive: bool = False) -> None:
        self._make: Callable[[], Any] = threading.RLock if recursive else threading.Lock
        self.after_fork()
        renewed(self)

    def after_fork(self) -> None:
        """Be free, whoever held it."""
        self._lock = self._make()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()


class Worker(ThreadPoolExecutor):
    """Threads that do what they are given, in order. A forked process has new ones, with nothing to do yet.

    Work that asks for more work of the same threads and waits for it, itself or in a thread or event loop that it runs,
    does it where it stands: all of them could be waiting for one another.

    >>> worker = Worker("one")
    >>> worker.submit(lambda: worker.submit(lambda: "done").result()).result()
    'done'
    """

    def __init__(self, name: str, *, threads: int = 1) -> None:
        self._name, self.threads = name, threads
        super().__init__(max_workers=threads, thread_name_prefix=name)
        renewed(self)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """What `fn` will give, called in the caller's context."""
        if self not in _WITHIN.get():
            context = copy_context()
            context.run(_WITHIN.set, _WITHIN.get() | {self})
            return super().submit(lambda: context.run(fn, *args, **kwargs))
        done: Future[T] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as exc:
            done.set_exception(exc)
        return done

    def after_fork(self) -> None:
        """Begin anew: what was waiting is the parent's to do."""
        super().__init__(max_workers=self.threads, thread_name_prefix=self._name)


class OnThreads:
    """What works on threads of its own, and may be asked by code that must not wait."""

    @property
    def worker(self) -> ThreadPoolExecutor:
        """The threads on which asynchronous work is done."""
        raise NotImplementedError

    async def run(self, act: Callable[[], T]) -> T:
        """The result of `act`, called on one of its threads."""
        return await asyncio.get_running_loop().run_in_executor(self.worker, act)

    async def stream(self, begin: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        """The items of the iterator that `begin` returns, read on one of its threads.

        Leaving early, or cancelling, closes the iterator after its current item.
        """
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Any]()
        left, end = threading.Event(), object()

        def give(piece: Any) -> None:
            try:
                loop.call_soon_threadsafe(pieces.put_nowait, piece)
            except RuntimeError:  # the loop is closed: nobody listens any more
                left.set()

        def work() -> None:
            try:
                if left.is_set():
                    return
                found = begin()
                try:
                    while not left.is_set():
                        try:
                            piece = next(found)
                        except StopIteration:
                            break
                        give((piece,))
                finally:
                    close = getattr(found, "close", None)
                    if close is not None:
                        close()
            except BaseException as exc:
                give(exc)
            finally:
                give(end)

        working = loop.run_in_executor(self.worker, work)
        try:
            while (piece := await pieces.get()) is not end:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece[0]
        finally:
            left.set()
            working.cancel()


_RENEWED: WeakSet[_Forked] = WeakSet()


def _renew() -> None:
    for one in list(_RENEWED):
        one.after_fork()


os.register_at_fork(after_in_child=_renew)
