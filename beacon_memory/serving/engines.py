"""The engine and the store that a framework's settings name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self, TypedDict, Unpack

from beacon_memory.config import BeaconConfig
from beacon_memory.errors import ConfigError
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.stores import StateStore
from beacon_memory.talk.sources import read_texts


class Secret(Protocol):
    """A text that is not printed by accident, such as pydantic's SecretStr."""

    def get_secret_value(self) -> str:
        """The text."""


class Names(Protocol):
    """A framework's settings that name a model and a store."""

    engine: BeaconEngine | None
    config: BeaconConfig | None
    adapter: str | None
    device_map: Any
    dtype: Any
    model_kwargs: dict[str, Any]
    store: Any
    redis_url: Any  # a Secret or None; mypy does not accept pydantic's SecretStr for the Protocol
    redis_client: Any
    key_prefix: str
    ttl: int | None


class StoreNames(TypedDict, total=False):
    """The settings that name a store."""

    store: str | StateStore | None
    redis_url: str | None
    redis_client: Any
    key_prefix: str
    ttl: int | None  # in seconds


class Where(StoreNames, total=False):
    """The settings that name a model and a store, for the memories of both integrations."""

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
    """The store that an engine opens when it is first used. Where none is named: `environ`'s BEACON_REDIS_URL, or None.

    `ttl` is in seconds. Raises ConfigError when two stores are named.
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

        # With the default prefix, a prefix in the URL counts.
        prefix = None if key_prefix == "beacon" else key_prefix
        if redis_client is not None:
            return RedisStore(client=redis_client, prefix=prefix, ttl=ttl)
        return RedisStore(redis_url, prefix=prefix, ttl=ttl)

    return make


def named_engine(names: Names, model: str | None, *, environ: Mapping[str, str]) -> BeaconEngine:
    """The engine in these settings, changed to `model` where that is another; or a new engine from the names in them.

    Where no model is named: `environ`'s BEACON_MODEL, else "smollm2". Raises ConfigError when two stores are named.
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
    """What the models of both integrations share: access to the engine, and documents in front of every prompt."""

    engine: BeaconEngine | None
    beacon_ratio: int | None

    @property
    def opened(self) -> BeaconEngine:
        """The engine, which every instance has."""
        assert self.engine is not None
        return self.engine

    def with_context(self, documents: Any, *, context_id: str | None = None) -> Self:
        """This model with documents in front of every prompt. They are read once and kept folded under their id.

        `documents` is a text, a `Path` of a file, a framework's document, or any number of these (such as a loader's
        `lazy_load()`). Documents that are kept already are named by `bind(context_id=…)`.
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
    """An engine with a store: the given one, over another store if one is named, or a new one. Where no model is named:
    `environ`'s BEACON_MODEL, else "smollm2". Raises ConfigError without a store.
    """
    named = any(where.get(name) is not None for name in ("store", "redis_url", "redis_client"))
    found = named_store(**where, environ=environ)
    if engine is None:
        engine = BeaconEngine(model or (environ or {}).get("BEACON_MODEL") or "smollm2", found)
    elif named and found is not None:
        engine = engine.with_store(found)
    if not engine.keeps_sessions:
        raise ConfigError("sessions have nowhere to be kept: give store= (sqlite:///memory.db, …) or redis_url=")
    return engine
