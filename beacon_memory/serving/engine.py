"""A memory for frameworks: opened when first used, its weights shared, its work done on threads of its own."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from beacon_memory.client.engine import RemoteEngine
from beacon_memory.config import BeaconConfig
from beacon_memory.errors import ConfigError, EngineBusy
from beacon_memory.locks import Lock, OnThreads, Worker, renewed
from beacon_memory.version import __version__

if TYPE_CHECKING:
    from beacon_memory.models.model import BeaconModel
    from beacon_memory.sessions.documents import Documents
    from beacon_memory.sessions.memory import BeaconMemory
    from beacon_memory.sessions.prompt import Prompt
    from beacon_memory.sessions.reply import Reply, TextReply
    from beacon_memory.sessions.session import Session
    from beacon_memory.state.info import About, Completion
    from beacon_memory.stores import StateStore
    from beacon_memory.talk.messages import Message
    from beacon_memory.talk.tools import Tool

T = TypeVar("T")

THREADS = 16  # answers that are made, and texts that are folded, at the same time
WAITING = 64  # questions of `ask`, those that are being answered among them


class BeaconEngine(OnThreads):
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
    def threads(self) -> int:
        """How many threads there are: so many answers are made at the same time."""
        return self._weights.worker.threads

    def widen(self, threads: int) -> None:
        """Work on so many threads from now on: where answers are made elsewhere, each does little but wait."""
        self._weights.worker = Worker("beacon", threads=threads)

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

    def about(self) -> About:
        """What the model is; the first use loads it. Raises as `memory` does."""
        from beacon_memory.state.info import About

        model = self.memory.model
        how = {"positions": model.positions, "slots": model.budget, "ratio": model.config.ratio}
        return About(self.name, __version__, **how, finder=model.finder is not None)

    # What frameworks ask of an engine: `client.RemoteEngine` does the same over HTTP.

    def reply(
        self,
        messages: Sequence[Message],
        *,
        session_id: str | None = None,
        ratio: int | None = None,
        budget: int | None = None,
        context_id: str | Sequence[str] | None = None,
        texts: Sequence[str] = (),
        shelf: Engine | None = None,
        **how: Any,
    ) -> Reply:
        """An answer to messages, not begun. In front of it stand the documents of `context_id`, which are those of
        `shelf` where that is another engine, and `texts`, which are folded for this answer. `how` as `Reply` and `Turn`
        take it. Raises ConfigError, InputError.
        """
        from beacon_memory.sessions.context import in_front
        from beacon_memory.sessions.reply import Reply

        session = None if session_id is None else self.session(session_id, ratio=ratio, budget=budget)
        other = shelf.memory if isinstance(shelf, BeaconEngine) else None
        contexts = in_front(self.memory, context_id, texts, ratio=ratio, shelf=other)
        return Reply(self.memory, messages, session=session, contexts=contexts, **how)

    def text(self, prompt: str, *, formatted: bool = False, **how: Any) -> TextReply:
        """The answer to a text that is read without a chat template, not begun; `how` as for `texts`. A `formatted`
        text may contain the template's own tokens.
        """
        from beacon_memory.sessions.reply import TextReply

        read, sampling = self._read([prompt], formatted=formatted, **how)
        return TextReply(self.memory, read[0], **sampling)

    def texts(self, prompts: Sequence[str], **how: Any) -> list[Completion]:
        """The answers to several texts, in one batch. `how`: context_id, ratio, recall_tokens, and how answers are
        drawn, as `Session.ask` takes it. What does not fit raw is folded. Raises InputError, ConfigError.
        """
        from beacon_memory.sessions.reply import completed
        from beacon_memory.sessions.turn import batch_answers

        read, sampling = self._read(prompts, **how)
        answers = batch_answers(self.memory, read, **sampling)
        return [completed(answer.text, answer, prompt) for answer, prompt in zip(answers, read, strict=True)]

    def _read(
        self,
        prompts: Sequence[str],
        *,
        context_id: str | Sequence[str] | None = None,
        texts: Sequence[str] = (),
        ratio: int | None = None,
        recall_tokens: int | None = None,
        formatted: bool = False,
        **sampling: Any,
    ) -> tuple[list[Prompt], dict[str, Any]]:
        from beacon_memory.sessions.context import in_front
        from beacon_memory.sessions.looking.plain import texts_looked

        contexts, answer = in_front(self.memory, context_id, texts, ratio=ratio), sampling.get("max_new_tokens", 256)
        how: dict[str, Any] = {"contexts": contexts, "ratio": ratio, "recall_tokens": recall_tokens}
        return texts_looked(self.memory, prompts, formatted=formatted, answer=int(answer), **how), sampling

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return self.memory.model.encode(text)

    def count(self, messages: Sequence[Message], *, system: str | None = None, tools: Sequence[Tool] = ()) -> int:
        """The tokens of messages as the model reads them, tools and the ask for an answer counted. Raises
        InputError.
        """
        transcript = self.memory.transcript
        front = transcript.system(system, tools=list(tools)) if system or tools else []
        return len(front) + sum(len(transcript.turn(m)) for m in messages) + len(transcript.header())

    def sessions(self) -> list[str]:
        """The ids of all sessions, sorted."""
        return self.memory.sessions()

    def contexts(self) -> list[str]:
        """The names under which documents are kept, sorted."""
        return self.memory.contexts()

    def documents(self, name: str, *, ratio: int | None = None, budget: int | None = None) -> Documents:
        """The documents that are kept under a name."""
        from beacon_memory.sessions.documents import Documents

        return Documents(self.memory, name, ratio=ratio, budget=budget)

    def shares(self, other: Engine) -> bool:
        """Whether both use the same weights."""
        return isinstance(other, BeaconEngine) and self._weights is other._weights

    def with_store(self, store: str | StateStore | Callable[[], StateStore], *, place: Hashable = None) -> BeaconEngine:
        """The same weights over another store."""
        return self._over(_Lazy(_opener(store)), keeps_sessions=True, place=place)

    def over(self, other: Engine) -> BeaconEngine:
        """The same weights over another engine's store, which both use from then on. Raises ConfigError for a
        server's.
        """
        if not isinstance(other, BeaconEngine):
            raise ConfigError(f"{other.url} keeps its sessions itself: {self.name!r} cannot read them here")
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


Engine = BeaconEngine | RemoteEngine  # what the integrations work with


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
