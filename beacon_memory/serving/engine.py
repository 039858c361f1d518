"""A memory for frameworks: opened when first used, its weights shared, its work done on threads of its own."""

from __future__ import annotations

import asyncio
import json
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from beacon_memory.config import BeaconConfig
from beacon_memory.errors import ConfigError, EngineBusy
from beacon_memory.locks import Lock, Worker, renewed

if TYPE_CHECKING:
    from beacon_memory.models.model import BeaconModel
    from beacon_memory.sessions.memory import BeaconMemory
    from beacon_memory.sessions.session import Session
    from beacon_memory.stores import StateStore

T = TypeVar("T")

THREADS = 16  # answers that are made, and texts that are folded, at the same time
WAITING = 64  # questions of `ask`, those that are being answered among them


class BeaconEngine:
    """A model and a store by name, neither opened before it is needed.

    Engines that name the same model with the same options share its weights and its threads. Without a store no
    session can be kept.

    >>> engine = BeaconEngine("smollm2", "sqlite:///memory.db")        # costs nothing
    >>> engine.name, engine.keeps_sessions
    ('smollm2', True)
    """

    def __init__(
        self,
        model: str | Path | BeaconModel = "smollm2",
        store: str | StateStore | Callable[[], StateStore] | None = None,
        *,
        name: str | None = None,
        config: BeaconConfig | None = None,
        adapter: str | Path | None = "auto",
        **options: Any,
    ) -> None:
        """`model`, `config`, `adapter` and `options` as `BeaconModel.from_pretrained` takes them; a store by URL.

        Raises ConfigError for settings of a model beside a loaded one.
        """
        self.name = name or (str(model) if isinstance(model, str | Path) else type(model).__name__)
        self._weights = _weights(model, config=config, adapter=adapter, options=options)
        self._settings: dict[str, Any] = {"config": config, "adapter": adapter, **options}
        self.place: Hashable = None  # the names under which a framework's settings gave its store
        self.keeps_sessions = store is not None
        self._store = _Lazy(_opener(store))
        self._memory = _Lazy(self._open)
        self._asked = _Count()

    @property
    def memory(self) -> BeaconMemory:
        """The memory; the first use loads the model. Raises ModelError, StoreUnavailable, ConfigError."""
        return self._memory.get()

    @property
    def worker(self) -> ThreadPoolExecutor:
        """The threads on which asynchronous work is done."""
        return self._weights.worker

    @property
    def positions(self) -> int | None:
        """The model's number of positions; None where only loading it would tell."""
        return self._weights.positions()

    def window(self, ratio: int | None = None) -> int | None:
        """The tokens that memory holds at a ratio before old ones get coarser; None where only loading the model would
        tell.
        """
        if (positions := self.positions) is None:
            return None
        from beacon_memory.state.budget import default_budget

        config = self._weights.config() or self._settings["config"] or BeaconConfig()
        slots = default_budget(positions, config)
        return slots * (ratio or config.ratio)

    def session(self, session_id: str, *, ratio: int | None = None, budget: int | None = None) -> Session:
        """A session in the store. Raises ConfigError without a store."""
        if not self.keeps_sessions:
            raise ConfigError(
                f"session {session_id!r} has nowhere to be kept: give the engine a store "
                "(memory://, sqlite:///memory.db, redis://…)"
            )
        return self.memory.session(session_id, ratio=ratio, budget=budget)

    def shares(self, other: BeaconEngine) -> bool:
        """Whether both use the same weights."""
        return self._weights is other._weights

    def with_store(self, store: str | StateStore | Callable[[], StateStore], *, place: Hashable = None) -> BeaconEngine:
        """The same weights over another store."""
        return self._over(_Lazy(_opener(store)), keeps_sessions=True, place=place)

    def over(self, other: BeaconEngine) -> BeaconEngine:
        """The same weights over another engine's store, which both use from then on."""
        return self._over(other._store, keeps_sessions=other.keeps_sessions, place=other.place)

    def with_model(self, model: str) -> BeaconEngine:
        """The same store and settings under another model."""
        return BeaconEngine(model, None, **self._settings).over(self)

    def _over(self, store: _Lazy[StateStore], *, keeps_sessions: bool, place: Hashable) -> BeaconEngine:
        other = object.__new__(BeaconEngine)
        other.name, other._weights, other._settings = self.name, self._weights, self._settings
        other.place, other.keeps_sessions, other._store = place, keeps_sessions, store
        other._memory = _Lazy(other._open)
        other._asked = _Count()
        return other

    async def ask(self, session_id: str, question: str, *, system: str | None = None, **sampling: Any) -> str:
        """An answer from a session; nothing is written. Questions that are asked at the same time are answered in the
        same passes of the model. Cancelling ends the answer.

        Raises EngineBusy when 64 questions are being answered or wait, and what `Session.ask` raises.
        """
        if self._asked.count >= WAITING:
            raise EngineBusy(f"{WAITING} questions wait already: ask again when some are answered")
        with self._asked:
            how = {"system": system, **sampling}
            pieces = self.stream(lambda: self.memory.session(session_id).ask(question, stream=True, **how))
            return "".join([piece async for piece in pieces])

    async def run(self, act: Callable[[], T]) -> T:
        """The result of `act`, called on one of the engine's threads."""
        return await asyncio.get_running_loop().run_in_executor(self.worker, act)

    async def stream(self, begin: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        """The items of the iterator that `begin` returns, read on one of the engine's threads.

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

    def __deepcopy__(self, memo: dict[int, Any]) -> BeaconEngine:
        """Itself: copies of what holds an engine share its weights and its store."""
        return self

    def close(self) -> None:
        """Close the store, when it was opened."""
        self._store.close()

    def _open(self) -> BeaconMemory:
        from beacon_memory.sessions.memory import BeaconMemory

        store = self._store.get()  # first: a wrong URL fails before a model is loaded
        return BeaconMemory(self._weights.model.get(), store)


class _Count:
    """How many are within it; none in a forked process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.after_fork()
        renewed(self)

    def after_fork(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        with self._lock:
            self.count += 1

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self.count -= 1


class _Lazy(Generic[T]):
    """A value that is made once, by the first thread that asks for it."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = Lock()
        self._made: list[T] = []

    def get(self) -> T:
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]

    def made(self) -> T | None:
        """The value, if it is made already."""
        return self._made[0] if self._made else None

    def close(self) -> None:
        with self._lock:
            while self._made:
                self._made.pop().close()  # type: ignore[attr-defined]


class _Weights:
    """One loaded model and its threads."""

    def __init__(self, load: Callable[[], BeaconModel], name: str) -> None:
        self.model = _Lazy(load)
        self.name = name
        self.worker = Worker("beacon", threads=THREADS)

    def config(self) -> BeaconConfig | None:
        """The loaded model's settings."""
        return None if (loaded := self.model.made()) is None else loaded.config

    def positions(self) -> int | None:
        """The loaded model's positions, or those in its folder's config.json."""
        if (loaded := self.model.made()) is not None:
            return loaded.positions
        if self.name == "smollm2":
            return 8192
        try:
            about = json.loads((Path(self.name).expanduser() / "config.json").read_text())
            longest = int(about["max_position_embeddings"])
            rope = about.get("rope_parameters", about.get("rope_scaling")) or {}
            # As family.positions_of says it of a loaded configuration.
            long = rope.get("rope_type", rope.get("type")) in ("longrope", "su")
            return min(longest, int(about["original_max_position_embeddings"])) if long else longest
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


_SHARED: weakref.WeakValueDictionary[str, _Weights] = weakref.WeakValueDictionary()
_SHARED_LOCK = Lock()


def _weights(
    model: str | Path | BeaconModel, *, config: BeaconConfig | None, adapter: str | Path | None, options: dict[str, Any]
) -> _Weights:
    if not isinstance(model, str | Path):
        if config is not None or adapter != "auto" or options:
            raise ConfigError("a loaded model has its config, adapter and options already: give them with its name")
        loaded = model
        given = _Weights(lambda: loaded, "")
        given.model.get()
        return given
    name = str(model)

    def load() -> BeaconModel:
        from beacon_memory.models.model import BeaconModel

        return BeaconModel.from_pretrained(name, config, adapter=adapter, **options)

    key = json.dumps([name, repr(config), str(adapter), options], sort_keys=True, default=repr)
    with _SHARED_LOCK:
        if (found := _SHARED.get(key)) is None:
            found = _SHARED[key] = _Weights(load, name)
        return found


def _opener(store: str | StateStore | Callable[[], StateStore] | None) -> Callable[[], StateStore]:
    def make() -> StateStore:
        from beacon_memory.stores import open_store

        if callable(store):
            return store()
        return open_store("memory://" if store is None else store)

    return make
