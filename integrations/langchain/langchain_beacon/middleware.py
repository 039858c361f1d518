"""Memory for `create_agent`: old messages are folded, the graph's state keeps them all."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, ToolMessage
from langchain_core.runnables.config import ensure_config

from beacon_memory.errors import ConfigError, MissingExtra, StoreError
from beacon_memory.serving.engine import Engine
from beacon_memory.serving.engines import engine_for
from beacon_memory.stores import StateStore
from langchain_beacon.chat_models import ChatBeacon
from langchain_beacon.errors import translated

try:
    from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
except ImportError as exc:
    raise MissingExtra("agents need langchain: pip install 'beacon-memory[langchain]'") from exc

Size = tuple[Literal["tokens", "messages", "fraction"], int | float]


class BeaconMemoryMiddleware(AgentMiddleware[Any, Any, Any]):
    """Once a conversation reaches `trigger`, all but its newest messages (`keep`) are folded into its thread's memory.

    The agent's model must be a `ChatBeacon`. Nothing is taken from the graph's state: checkpoints, time travel and
    regenerating an answer go on as without memory, and an edited past is another branch. A thread's memory is the
    session of its `thread_id`; delete or copy it with the thread's checkpoints by the methods named as the saver's. An
    agent within another one's tool or node has a memory only where it runs in a thread of its own.
    """

    def __init__(
        self,
        *,
        trigger: Size | Sequence[Size] = ("tokens", 4000),
        keep: Size = ("messages", 20),
        engine: Engine | None = None,
        store: str | StateStore | None = None,
        redis_url: str | None = None,
        redis_client: Any = None,
        key_prefix: str = "beacon",
        ttl: int | None = None,
        budget: int | None = None,
        on_error: Literal["raise", "passthrough"] = "raise",
        token_counter: Callable[[Sequence[BaseMessage]], int] | None = None,
    ) -> None:
        """`trigger` and `keep` as SummarizationMiddleware takes them: ("tokens" | "messages" | "fraction", n), or for
        `trigger` several, any of which does; a fraction is of the model's window.

        Memories are kept in the store that is named here, or in that of `engine`; without either, each model's are kept
        in its own, also where one middleware serves the agents of several tenants. `ttl` is in seconds. With
        `on_error="passthrough"`, a store that fails leaves the agent with its plain messages. Raises ConfigError.
        """
        super().__init__()
        self._triggers = [_size(one) for one in ([trigger] if isinstance(trigger[0], str) else trigger)]
        self._keep = _size(keep)
        if on_error not in ("raise", "passthrough"):
            raise ConfigError(f"on_error is 'raise' or 'passthrough', not {on_error!r}")
        self._names: dict[str, Any] = {
            "store": store,
            "redis_url": redis_url,
            "redis_client": redis_client,
            "key_prefix": key_prefix,
            "ttl": ttl,
        }
        self._named = any(one is not None for one in (store, redis_url, redis_client))
        if self._named and engine is not None:
            raise ConfigError("memories are kept in one place: give engine, or a store by name")
        self._engine = engine  # over the one store of this middleware, where it has one
        self._used: weakref.WeakSet[Engine] = weakref.WeakSet()  # models' own, where it has none
        self._over: weakref.WeakKeyDictionary[Engine, Engine] = weakref.WeakKeyDictionary()
        self._opening = threading.Lock()
        self._budget = budget
        self._on_error = on_error
        self._counter = token_counter
        self._counted: OrderedDict[tuple[str, str, str], int] = OrderedDict()

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        plain = self._plain(request)
        try:
            remembering = self._remembering(request)
            return handler(remembering or plain)
        except StoreError:
            if self._on_error == "raise":
                raise
        return handler(plain)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        plain = self._plain(request)
        try:
            remembering = await self._model(request).opened.run(lambda: self._remembering(request))
            return await handler(remembering or plain)
        except StoreError:
            if self._on_error == "raise":
                raise
        return await handler(plain)

    def delete_thread(self, thread_id: str) -> None:
        """Forget a thread's memory, every byte of it."""
        self._threads().delete_thread(thread_id)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Begin a thread's memory where another one's stands."""
        self._threads().copy_thread(source_thread_id, target_thread_id)

    async def adelete_thread(self, thread_id: str) -> None:
        """As `delete_thread`."""
        await self._threads().adelete_thread(thread_id)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """As `copy_thread`."""
        await self._threads().acopy_thread(source_thread_id, target_thread_id)

    def _threads(self) -> ChatBeacon:
        """A model over the store in which threads are kept. Raises ConfigError where there is none yet, or several."""
        engines = [self._engine] if self._engine is not None else list(self._used)
        if len(engines) != 1:
            raise ConfigError(
                "this middleware's threads are kept "
                + ("in the stores of several models" if engines else "where its model says, which it has not met yet")
                + ": call the model's own method, or give the middleware engine=llm.engine"
            )
        return ChatBeacon(engine=engines[0])

    def _model(self, request: ModelRequest[Any]) -> ChatBeacon:
        """The agent's model, over this middleware's store where it has one. Raises ConfigError for another model."""
        if not isinstance(request.model, ChatBeacon):
            raise ConfigError(
                f"BeaconMemoryMiddleware needs a ChatBeacon, the agent has a {type(request.model).__name__}: "
                f"other models cannot read folded memory"
            )
        own = request.model.opened
        with translated(), self._opening:
            if self._named and self._engine is None:
                self._engine = engine_for(own, **self._names)
            if self._engine is None:
                self._used.add(engine_for(own))
                return request.model
            # By its own weights, whatever they are called, over the store that all models of this middleware share.
            if (engine := self._over.get(own)) is None:
                engine = self._over[own] = self._engine if own.shares(self._engine) else own.over(self._engine)
        return request.model.model_copy(update={"engine": engine})

    def _plain(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        """The request without memory: the messages are all there."""
        return request.override(model_settings={**request.model_settings, "session_id": None})

    def _remembering(self, request: ModelRequest[Any]) -> ModelRequest[Any] | None:
        """The request by which the model reads old messages from memory, or None before the trigger."""
        model, messages = self._model(request), request.messages
        thread = _thread(request)
        if thread is None:
            return None
        sizes = [self._tokens(model, message) for message in messages]
        window = (model.profile or {}).get("max_input_tokens") or model.opened.about().positions
        if not any(_reached(one, sizes, window=window) for one in self._triggers):
            return None
        kept = _kept(messages, sizes, self._keep, window=window)
        settings = {"session_id": thread, "history": "full", "keep": kept}
        if self._budget is not None:
            settings["budget"] = self._budget
        return request.override(model=model, model_settings={**request.model_settings, **settings})

    def _tokens(self, model: ChatBeacon, message: AnyMessage) -> int:
        """The tokens of a message, counted once."""
        if self._counter is not None:
            return self._counter([message])
        calls = str(message.tool_calls) if isinstance(message, AIMessage) else ""
        key = (message.type, str(message.content), calls)
        if key not in self._counted:
            self._counted[key] = len(model.get_token_ids(message.text + calls)) + 4  # who speaks, and the end
            while len(self._counted) > 10_000:
                self._counted.popitem(last=False)
        return self._counted[key]


def _size(size: Any) -> Size:
    kind, number = size if isinstance(size, tuple) and len(size) == 2 else (None, 0)
    if kind not in ("tokens", "messages", "fraction") or not isinstance(number, int | float) or number < 0:
        raise ConfigError(f'a size is ("tokens" | "messages" | "fraction", number), not {size!r}')
    if kind == "fraction" and not 0 < number <= 1:
        raise ConfigError(f"a fraction is above 0 and at most 1, not {number!r}")
    return kind, number


def _thread(request: ModelRequest[Any]) -> str | None:
    """The thread of a run, or None: an agent that runs within another one's tool or node is not that one's talk, though
    LangGraph hands the thread's name down to it.
    """
    about = getattr(request.runtime, "execution_info", None)
    around = ensure_config().get("configurable") or {}
    if "|" in str(getattr(about, "checkpoint_ns", None) or around.get("checkpoint_ns") or ""):
        return None
    thread = getattr(about, "thread_id", None) or around.get("thread_id")
    return None if thread is None else str(thread)


def _reached(size: Size, sizes: Sequence[int], *, window: int) -> bool:
    kind, number = size
    if kind == "messages":
        return len(sizes) >= number
    return sum(sizes) >= (number * window if kind == "fraction" else number)


def _kept(messages: Sequence[BaseMessage], sizes: Sequence[int], keep: Size, *, window: int) -> int:
    """How many of the newest messages stay raw: a tool's answer never parts from its call."""
    kind, number = keep
    if kind == "messages":
        kept = min(int(number), len(messages))
    else:
        limit, kept, total = (number * window if kind == "fraction" else number), 0, 0
        while kept < len(sizes) and total + sizes[-1 - kept] <= limit:
            total += sizes[-1 - kept]
            kept += 1
    kept = max(kept, 1)  # what is asked now is never folded
    while kept < len(messages) and isinstance(messages[-kept], ToolMessage):
        kept += 1
    return kept
