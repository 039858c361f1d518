"""Where a framework's user keeps sessions: one place, named by store, Redis URL or client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from beacon_memory.engine import BeaconEngine
from beacon_memory.errors import ConfigError
from beacon_memory.stores import StateStore

Place = str | StateStore | Callable[[], StateStore]


def place(
    store: str | StateStore | None = None,
    *,
    redis_url: str | None = None,
    redis_client: Any = None,
    key_prefix: str = "beacon",
    ttl: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> Place | None:
    """What an engine opens when it is first used; where nothing is named, `environ`'s BEACON_REDIS_URL, or None.

    `ttl` is in seconds. Raises ConfigError for two places at once.
    """
    if sum(one is not None for one in (store, redis_url, redis_client)) > 1:
        raise ConfigError("sessions are kept in one place: give one of store, redis_url and redis_client")
    if isinstance(store, str) and store.startswith(("redis", "unix:")):
        store, redis_url = None, store
    if store is not None:
        return store
    if redis_client is None and redis_url is None and (redis_url := (environ or {}).get("BEACON_REDIS_URL")) is None:
        return None

    def make() -> StateStore:
        from beacon_memory.stores.redis import RedisStore

        # The default is left to the URL, which may have a prefix of its own.
        prefix = None if key_prefix == "beacon" else key_prefix
        if redis_client is not None:
            return RedisStore(client=redis_client, prefix=prefix, ttl=ttl)
        return RedisStore(redis_url, prefix=prefix, ttl=ttl)

    return make


def engine_for(
    engine: BeaconEngine | None,
    *,
    model: str | None,
    store: str | StateStore | None,
    redis_url: str | None,
    redis_client: Any,
    key_prefix: str,
    ttl: int | None,
    environ: Mapping[str, str] | None = None,
) -> BeaconEngine:
    """An engine that keeps sessions, from one that is there or from names; where no model is named, `environ`'s
    BEACON_MODEL, else "smollm2". Raises ConfigError without a store.
    """
    named = store is not None or redis_url is not None or redis_client is not None
    found = place(
        store, redis_url=redis_url, redis_client=redis_client, key_prefix=key_prefix, ttl=ttl, environ=environ
    )
    if engine is None:
        engine = BeaconEngine(model or (environ or {}).get("BEACON_MODEL") or "smollm2", found)
    elif named and found is not None:
        engine = engine.with_store(found)
    if not engine.keeps_sessions:
        raise ConfigError("sessions have nowhere to be kept: give store= (sqlite:///memory.db, …) or redis_url=")
    return engine
