"""Where a framework's user keeps sessions: one place, named by store, Redis URL or client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self, TypedDict, Unpack

from beacon_memory.config import BeaconConfig
from beacon_memory.errors import ConfigError
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.stores import StateStore
from beacon_memory.talk.sources import read_texts


class Secret(Protocol):
    """A text that is not shown by accident, as pydantic keeps it."""

    def get_secret_value(self) -> str:
        """The text."""


class Names(Protocol):
    """A framework's settings that name a model and a place."""

    engine: BeaconEngine | None
    config: BeaconConfig | None
    adapter: str | None
    device_map: Any
    dtype: Any
    model_kwargs: dict[str, Any]
    store: Any
    redis_url: Any  # a Secret or None: pydantic's own is no Protocol's
    redis_client: Any
    key_prefix: str
    ttl: int | None


class StoreNames(TypedDict, total=False):
    """Where sessions are kept, by name."""

    store: str | StateStore | None
    redis_url: str | None
    redis_client: Any
    key_prefix: str
    ttl: int | None  # in seconds


class Where(StoreNames, total=False):
    """A model and a place by name, as the memories of both integrations take them."""

    model: str | None


Place = str | StateStore | Callable[[], StateStore]


def named_store(
    store: str | StateStore | None = None,
    *,
    redis_url: str | None = None,
    redis_client: Any = None,
    key_prefix: str = "beacon",
    ttl: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> Place | None:
    """What an engine opens when it is first used; where nothing is named, `environ`'s BEACON_REDIS_URL, or None.

    `ttl` is in seconds. Raises ConfigError for two places at once, for `ttl` and `key_prefix` without Redis, and for a
    client that is none.
    """
    redis_url = redis_url or None
    if sum(one is not None for one in (store, redis_url, redis_client)) > 1:
        raise ConfigError("sessions are kept in one place: give one of store, redis_url and redis_client")
    if isinstance(store, str) and store.startswith(("redis", "unix:")):
        store, redis_url = None, store
    if store is None and redis_client is None and redis_url is None:
        redis_url = (environ or {}).get("BEACON_REDIS_URL") or None
    if redis_client is None and redis_url is None:
        if ttl is not None or key_prefix != "beacon":
            raise ConfigError(
                "ttl and key_prefix are settings of a Redis store: name one by redis_url= or redis_client="
            )
        return store
    if ttl is not None and (not isinstance(ttl, int) or isinstance(ttl, bool) or ttl < 1):
        raise ConfigError(f"ttl is a number of seconds, 1 or more, or None for no limit, not {ttl!r}")
    if redis_client is not None:
        from beacon_memory.stores.redis.client import check_client

        check_client(redis_client)

    def make() -> StateStore:
        from beacon_memory.stores.redis import RedisStore

        # The default is left to the URL, which may have a prefix of its own.
        prefix = None if key_prefix == "beacon" else key_prefix
        if redis_client is not None:
            return RedisStore(client=redis_client, prefix=prefix, ttl=ttl)
        return RedisStore(redis_url, prefix=prefix, ttl=ttl)

    return make


def named_engine(names: Names, model: str | None, *, environ: Mapping[str, str]) -> BeaconEngine:
    """The engine of these settings, or one of the same for another model; made from their names where there is none.

    Where no model is named, `environ`'s BEACON_MODEL, else "smollm2". Raises ConfigError for two places at once.
    """
    if names.engine is not None:
        return names.engine if model in (None, names.engine.name) else names.engine.with_model(str(model))
    url: Secret | None = names.redis_url
    where = named_store(
        names.store,
        redis_url=url.get_secret_value() if url else None,
        redis_client=names.redis_client,
        key_prefix=names.key_prefix,
        ttl=names.ttl,
        environ=environ,
    )
    how: dict[str, Any] = {"config": names.config, "adapter": names.adapter, "dtype": names.dtype}
    how |= {"device_map": names.device_map, **names.model_kwargs}
    return BeaconEngine(model or environ.get("BEACON_MODEL") or "smollm2", where, **how)


class ReadsDocuments:
    """What both integrations' models do with their engine: open it, and put documents in front of every prompt."""

    engine: BeaconEngine | None
    beacon_ratio: int | None

    @property
    def opened(self) -> BeaconEngine:
        """The engine, which every instance has."""
        assert self.engine is not None
        return self.engine

    def with_context(self, documents: Any, *, context_id: str | None = None) -> Self:
        """This model with documents in front of every prompt, read once and kept folded under their id.

        A `Path` is a file's; text, a framework's document, or any number of these (a loader's `lazy_load()`), are read
        as they are. Where the documents are known by an id already, `bind(context_id=…)` names them again.
        """
        from beacon_memory.sessions.context import read_context

        texts = read_texts(documents, self._document)
        named = read_context(self.opened.memory, texts, context_id=context_id, ratio=self.beacon_ratio)
        copied: Self = self.model_copy(update={"context_id": named})  # type: ignore[attr-defined]
        return copied

    @staticmethod
    def _document(one: Any) -> tuple[str, str] | None:
        """The name and text of a framework's own document, None for anything else."""
        raise NotImplementedError


def engine_for(
    engine: BeaconEngine | None,
    *,
    environ: Mapping[str, str] | None = None,
    model: str | None = None,
    **where: Unpack[StoreNames],
) -> BeaconEngine:
    """An engine that keeps sessions, from one that is there or from names; where no model is named, `environ`'s
    BEACON_MODEL, else "smollm2". Raises ConfigError without a store.
    """
    named = any(where.get(name) is not None for name in ("store", "redis_url", "redis_client"))
    found = named_store(**where, environ=environ if engine is None else None)
    if engine is None:
        engine = BeaconEngine(model or (environ or {}).get("BEACON_MODEL") or "smollm2", found)
    elif named and found is not None:
        engine = engine.with_store(found)
    if not engine.keeps_sessions:
        raise ConfigError("sessions have nowhere to be kept: give store= (sqlite:///memory.db, …) or redis_url=")
    return engine
