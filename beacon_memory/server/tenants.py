"""Tenants: each namespace has a memory of its own over a store of its own. All of them use one model."""

from __future__ import annotations

from collections.abc import Callable

from beacon_memory.errors import ConfigError
from beacon_memory.locks import Lock
from beacon_memory.server.keys import Keys
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.sessions.memory import BeaconMemory
from beacon_memory.sessions.repository import CACHE_BYTES, RESIDENT_BYTES
from beacon_memory.stores import StateStore

LEAST_SHARE = 16 << 20  # bytes of cache that a tenant has, however many there are


class Tenants:
    """The memories of all namespaces, each opened when it is first asked for.

    Nothing is shared between two of them but the model's weights: no store, no cache, no segment.
    """

    def __init__(
        self, engine: BeaconEngine, *, keys: Keys | None = None, place: Callable[[str], StateStore] | None = None
    ) -> None:
        """Without `keys` there is one tenant: the engine's own memory. With keys, `place` opens a namespace's store.
        Raises ConfigError for keys without it.
        """
        if keys is not None and place is None:
            raise ConfigError("keys open namespaces: say where each of them is kept")
        self.keys = keys
        self._engine, self._place = engine, place
        self._lock = Lock()
        self._memories: dict[str, BeaconMemory] = {}

    def memory(self, namespace: str | None) -> BeaconMemory:
        """A namespace's memory, or without keys (None) the only one. Raises StoreUnavailable, ConfigError."""
        if namespace is None:
            return self._engine.memory
        with self._lock:
            if namespace not in self._memories:
                assert self.keys is not None
                assert self._place is not None
                many = max(len(self.keys.namespaces()), 1)
                self._memories[namespace] = BeaconMemory(
                    self._engine.memory.model,
                    self._place(namespace),
                    cache_bytes=max(CACHE_BYTES // many, LEAST_SHARE),
                    resident_bytes=max(RESIDENT_BYTES // many, LEAST_SHARE),
                )
            return self._memories[namespace]

    def opened(self, namespace: str | None) -> BeaconMemory | None:
        """The same, where it is open already."""
        return self._engine.memory if namespace is None else self._memories.get(namespace)

    def check(self) -> None:
        """Raises StoreUnavailable unless every store that is open answers, and the keys can be read."""
        if self.keys is not None:
            self.keys.all()
        for memory in [self._engine.memory, *self._memories.values()]:
            memory.store.version("ready?")

    def close(self) -> None:
        """Close all stores."""
        with self._lock:
            while self._memories:
                self._memories.popitem()[1].close()
        self._engine.close()
