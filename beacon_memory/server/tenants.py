"""Tenants: each namespace has a memory of its own over a store of its own. All of them use one model."""

from __future__ import annotations

from collections.abc import Callable

from beacon_memory.errors import ConfigError
from beacon_memory.locks import Lock
from beacon_memory.models.running.elsewhere import Elsewhere
from beacon_memory.server.keys import Keys
from beacon_memory.server.operations.metrics import Metrics
from beacon_memory.server.operations.timed import TimedStore
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.sessions.memory import BeaconMemory
from beacon_memory.sessions.repository import CACHE_BYTES, RESIDENT_BYTES
from beacon_memory.stores import StateStore

LEAST_SHARE = 16 << 20  # bytes of cache that a tenant has, however many there are
MakeElsewhere = Callable[[BeaconMemory, str | None], Elsewhere]  # for a memory, and the namespace it is of


class Tenants:
    """The memories of all namespaces, each opened when it is first asked for.

    Nothing is shared between two of them but the model's weights: no store, no cache, no segment.
    """

    def __init__(
        self,
        engine: BeaconEngine,
        *,
        keys: Keys | None = None,
        place: Callable[[str], StateStore] | None = None,
        metrics: Metrics,
        elsewhere: MakeElsewhere | None = None,
    ) -> None:
        """Without `keys` there is one tenant: the engine's own memory. With keys, `place` opens a namespace's store.
        What the stores take is counted in `metrics`. `elsewhere` makes what answers from a memory in the model's place.
        Raises ConfigError for keys without `place`.
        """
        if keys is not None and place is None:
            raise ConfigError("keys open namespaces: say where each of them is kept")
        self.keys = keys
        self._engine, self._place, self._metrics, self._elsewhere = engine, place, metrics, elsewhere
        self._lock = Lock()
        self._memories: dict[str, BeaconMemory] = {}
        self._untimed: StateStore | None = None  # the engine's own

    def memory(self, namespace: str | None) -> BeaconMemory:
        """A namespace's memory, or without keys (None) the only one. Raises StoreUnavailable, ConfigError."""
        if namespace is None:
            own = self._engine.memory
            if self._untimed is None:
                self._untimed, own.store = own.store, TimedStore(own.store, self._metrics)
                if self.keys is None and self._elsewhere is not None:
                    own.elsewhere = self._elsewhere(own, None)
            return own
        with self._lock:
            if namespace not in self._memories:
                assert self.keys is not None
                assert self._place is not None
                many = max(len(self.keys.namespaces()), 1)
                made = BeaconMemory(
                    self._engine.memory.model,
                    TimedStore(self._place(namespace), self._metrics),
                    cache_bytes=max(CACHE_BYTES // many, LEAST_SHARE),
                    resident_bytes=max(RESIDENT_BYTES // many, LEAST_SHARE),
                )
                if self._elsewhere is not None:
                    made.elsewhere = self._elsewhere(made, namespace)
                self._memories[namespace] = made
            return self._memories[namespace]

    def opened(self, namespace: str | None) -> BeaconMemory | None:
        """The same, where it is open already."""
        return self._engine.memory if namespace is None else self._memories.get(namespace)

    def all(self) -> list[BeaconMemory]:
        """The memories that are open."""
        return [self._engine.memory] if self.keys is None else list(self._memories.values())

    def check(self) -> None:
        """Raises StoreUnavailable unless every store that is open answers, and the keys can be read; ModelUnavailable
        unless what answers in the model's place does.
        """
        if self.keys is not None:
            self.keys.all()
        for memory in [self._engine.memory, *self._memories.values()]:
            memory.store.version("ready?")
            if memory.elsewhere is not None:
                memory.elsewhere.check()

    def close(self) -> None:
        """Close all stores."""
        if self._engine.memory.elsewhere is not None:
            self._engine.memory.elsewhere.close()
        if self._untimed is not None:
            self._engine.memory.store = self._untimed
        with self._lock:
            while self._memories:
                self._memories.popitem()[1].close()
        self._engine.close()
