"""The engine and the store that a framework's settings name."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self, TypedDict, Unpack

from beacon_memory.client.engine import RemoteEngine
from beacon_memory.config import BeaconConfig
from beacon_memory.errors import ConfigError, InputError
from beacon_memory.serving.engine import BeaconEngine, Engine
from beacon_memory.stores import StateStore
from beacon_memory.talk.sources import as_documents, read_texts

if TYPE_CHECKING:
    from beacon_memory.client.documents import RemoteDocuments
    from beacon_memory.sessions.documents import Documents


class Secret(Protocol):
    """A text that is not printed by accident, such as pydantic's SecretStr."""

    def get_secret_value(self) -> str:
        """The text."""


class Names(Protocol):
    """A framework's settings that name a model and a store."""

    engine: Engine | None
    base_url: str | None
    api_key: Any  # as redis_url
    timeout: float | None
    max_retries: int | None
    config: BeaconConfig | None
    adapter: str | None
    finder: str
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
    """The settings that name a model and a store, or a server, for the memories of both integrations."""

    model: str | None
    base_url: str | None  # a server's
    api_key: str | None  # for it; default: BEACON_API_KEY


KEY_VARIABLE = "BEACON_API_KEY"  # of the environment: what a server is asked with
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

        # With the default prefix, a prefix in the URL counts.
        prefix = None if key_prefix == "beacon" else key_prefix
        if redis_client is not None:
            return RedisStore(client=redis_client, prefix=prefix, ttl=ttl)
        return RedisStore(redis_url, prefix=prefix, ttl=ttl)

    return make


class _Place(NamedTuple):
    """The names of a store. Equal names mean the same place, and an engine opens one store for each place."""

    store: Any
    redis_url: str | None
    redis_client: Any
    key_prefix: str
    ttl: int | None

    @property
    def named(self) -> bool:
        return any(one is not None for one in (self.store, self.redis_url, self.redis_client))


class _Own(str):
    """`memory://` as a model has it that has opened it. Copies of the model have the same one, and the same store;
    whoever names `memory://` anew gets another store, with that model's engine too.
    """


def _own(store: Any) -> Any:
    anew = isinstance(store, str) and store.startswith("memory:") and not isinstance(store, _Own)
    return _Own(store) if anew else store


def _same(theirs: Hashable, place: _Place) -> bool:
    """Whether an engine's place is this one."""
    if theirs != place:
        return False
    return not isinstance(place.store, _Own) or (isinstance(theirs, _Place) and theirs.store is place.store)


def _remote_engine(names: Names, model: str | None, place: _Place, *, environ: Mapping[str, str]) -> RemoteEngine:
    """The engine of settings that name a server, or were given one. Raises ConfigError for what is the server's."""
    local: dict[str, Any] = {"config": None, "adapter": "auto", "finder": "attention", "device_map": None}
    local |= {"dtype": "auto", "model_kwargs": {}}
    theirs = [name for name, unset in local.items() if getattr(names, name) != unset]
    theirs += [name for name in _Place._fields if getattr(place, name) != getattr(_NOWHERE, name)]
    if theirs:
        raise ConfigError(f"the server has its own {', '.join(theirs)}: leave that out, or base_url")
    engine = names.engine
    if names.base_url is None:
        assert isinstance(engine, RemoteEngine)
        return engine if model in (None, engine.name) else engine.with_model(str(model))
    key = names.api_key.get_secret_value() if names.api_key else environ.get(KEY_VARIABLE) or None
    how: dict[str, Any] = {"api_key": key, "timeout": names.timeout, "retries": names.max_retries}
    named = (names.base_url, *how.values())
    if isinstance(engine, RemoteEngine) and engine.place == named and model in (None, engine.name):
        return engine
    if engine is not None and not (isinstance(engine, RemoteEngine) and engine.place is not None):
        raise ConfigError("give engine or base_url, not both")
    made = RemoteEngine(names.base_url, model=model, **how)
    made.place = named
    return made


def named_engine(names: Names, model: str | None, *, environ: Mapping[str, str]) -> Engine:
    """The settings' engine. If the settings have none, it is made from their names.

    A given engine keeps its store unless another is named beside it, and its model unless `model` is another. If no
    model is named: `environ`'s BEACON_MODEL, else "smollm2". Raises ConfigError for two places at once, and for a
    prefix or time to live without a place.
    """
    url: Secret | None = names.redis_url
    place = _Place(
        _own(names.store), url.get_secret_value() if url else None, names.redis_client, names.key_prefix, names.ttl
    )
    engine = names.engine
    if names.base_url is not None or isinstance(engine, RemoteEngine):
        return _remote_engine(names, model, place, environ=environ)
    if engine is None:
        if not place.named:
            place = place._replace(redis_url=environ.get("BEACON_REDIS_URL") or None)
        how: dict[str, Any] = {"config": names.config, "adapter": names.adapter, "dtype": names.dtype}
        how |= {"finder": names.finder} if names.finder != "attention" else {}
        how |= {"device_map": names.device_map, **names.model_kwargs}
        engine = BeaconEngine(model or environ.get("BEACON_MODEL") or "smollm2", named_store(**place._asdict()), **how)
        engine.place = place if place.named else None
        return engine
    if model not in (None, engine.name):
        engine = engine.with_model(str(model))
    if not place.named:
        theirs = engine.place
        if place[3:] == _NOWHERE[3:] or (isinstance(theirs, _Place) and place[3:] == theirs[3:]):
            return engine
        if not isinstance(theirs, _Place):
            raise ConfigError("key_prefix and ttl belong to a store that is named beside them: give redis_url=, too")
        place = _Place(*theirs[:3], *place[3:])
    if _same(engine.place, place):
        return engine
    where = named_store(**place._asdict())
    assert where is not None
    return engine.with_store(where, place=place)


_SERVER = ("base_url", "api_key", "timeout", "max_retries")
_NOWHERE = _Place(None, None, None, "beacon", None)


class ReadsDocuments:
    """What the models of both integrations share: opening the engine, and documents in front of every prompt.

    A model carries its own store. A copy that names another store uses that one; a copy with another engine uses the
    engine's store.
    """

    engine: Engine | None
    beacon_ratio: int | None

    _model_field: ClassVar[str] = "model"  # where the model's name stands
    _environ: ClassVar[Mapping[str, str]] = {}  # names that no field has

    @property
    def opened(self) -> Engine:
        """The engine, which every instance has."""
        if self.engine is None:  # pickle makes copies without an engine
            self._settle()
        assert self.engine is not None
        return self.engine

    def _settle(self) -> None:
        """Set the engine that the settings name."""
        names: Any = self
        engine = named_engine(names, self.__dict__[self._model_field], environ=self._environ)
        self.__dict__.update({"engine": engine, self._model_field: engine.name})
        if self.__dict__["store"] is not None and isinstance(engine.place, _Place):
            self.__dict__["store"] = engine.place.store  # as its own, if it is one in memory

    def _changed(self, fields: Container[str]) -> None:
        """Set the engine again after these settings have changed. A new engine brings its own store and model."""
        if "engine" in fields and self.engine is None:
            return  # it is made at its first use
        if "engine" in fields:
            given = {**_NOWHERE._asdict(), self._model_field: None, "base_url": None, "api_key": None}
            self.__dict__.update({name: value for name, value in given.items() if name not in fields})
        if "base_url" in fields and "engine" not in fields:
            self.__dict__["engine"] = None
        if any(name in fields for name in ("engine", self._model_field, *_Place._fields, *_SERVER)):
            self._settle()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy, with the store that `update` names, or the same one."""
        copied: Self = super().model_copy(update=update, deep=deep)  # type: ignore[misc]
        copied._changed(update or ())
        return copied

    def __setattr__(self, name: str, value: Any) -> None:
        before = dict(self.__dict__)
        super().__setattr__(name, value)
        try:
            self._changed((name,))
        except ConfigError:
            self.__dict__.update(before)
            raise

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        for shared in (self.__dict__.get("store"), self.__dict__.get("redis_client")):
            memo[id(shared)] = shared  # a connection cannot be copied
        copied: Self = super().__deepcopy__(memo)  # type: ignore[misc]
        return copied

    def with_context(
        self,
        documents: Any,
        *,
        context_id: str | None = None,
        delete_missing: bool = False,
        skip_bad: bool = True,
    ) -> Self:
        """This model with documents in front of every prompt, read once and kept folded under their id.

        A `Path` is a file's, or a folder's with all its files; text, a framework's document, or any number of these (a
        loader's `lazy_load()`), are read as they are. Under one `context_id` a document takes the place of the older
        one of its name. With `delete_missing` those that are not given are removed: so a folder is kept in step. A
        document that is empty, binary or not UTF-8 is left out with a warning, and an older text of its name stays;
        it is refused with `skip_bad=False`, or where no document is good. All others are read or none. Raises
        InputError, ConfigError.

        Where the documents are known by an id already, `bind(context_id=…)` names them again; `documents` lists them.
        """
        if delete_missing and context_id is None:
            raise ConfigError("delete_missing keeps the documents of an id in step: name it, context_id=")
        texts = read_texts(documents, self._document, skip_bad=skip_bad)
        named, read, unread = as_documents(texts, context_id)
        if not read and not delete_missing:
            raise InputError("there is no document to read")
        shelf = self.opened.documents(named, ratio=self.beacon_ratio)
        shelf.put(read, delete_missing=delete_missing, keep=unread)
        copied: Self = self.model_copy(update={"context_id": named})
        return copied

    def documents(self, context_id: str | None = None) -> Documents | RemoteDocuments:
        """The documents that are kept under an id, or under this model's: `info()` lists them, `remove(name)` takes one
        out, `forget()` deletes all. Raises ConfigError where there is no one id.
        """
        named = context_id or getattr(self, "context_id", None)
        if not isinstance(named, str):
            raise ConfigError("name the documents: documents(context_id), as with_context was given it")
        return self.opened.documents(named, ratio=self.beacon_ratio)

    @staticmethod
    def _document(one: Any) -> tuple[str, str] | None:
        """The name and text of a framework's own document, None for anything else."""
        raise NotImplementedError


def engine_for(
    engine: Engine | None,
    *,
    environ: Mapping[str, str] | None = None,
    model: str | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    **where: Unpack[StoreNames],
) -> Engine:
    """An engine with a store: the given one, over another store if one is named, or a new one; with `base_url`, a
    server. Where no model is named: `environ`'s BEACON_MODEL, else "smollm2"; where no key is: its BEACON_API_KEY.
    Raises ConfigError without a store.
    """
    named = any(where.get(name) is not None for name in ("store", "redis_url", "redis_client"))
    if base_url is not None:
        if engine is not None or named:
            raise ConfigError("sessions are kept in one place: give base_url, a store or an engine")
        return RemoteEngine(base_url, api_key=api_key or (environ or {}).get(KEY_VARIABLE) or None, model=model)
    found = named_store(**where, environ=environ if engine is None else None)
    if engine is None:
        engine = BeaconEngine(model or (environ or {}).get("BEACON_MODEL") or "smollm2", found)
    elif named and found is not None:
        engine = engine.with_store(found)
    if not engine.keeps_sessions:
        raise ConfigError("sessions have nowhere to be kept: give store= (sqlite:///memory.db, …) or redis_url=")
    return engine
