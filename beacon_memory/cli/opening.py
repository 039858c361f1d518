"""Where the commands find sessions: a store and a model of this machine, or a server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from beacon_memory.cli.terminal import DEFAULT_MODEL, FINDER_VARIABLE, placed, quiet, waiting
from beacon_memory.config import check_finder
from beacon_memory.errors import ConfigError

if TYPE_CHECKING:
    from beacon_memory import BeaconMemory
    from beacon_memory.client.documents import RemoteContext, RemoteDocuments
    from beacon_memory.client.engine import RemoteEngine
    from beacon_memory.client.reply import RemoteReply
    from beacon_memory.client.session import RemoteSession
    from beacon_memory.sessions.documents import Documents
    from beacon_memory.sessions.session import Session
    from beacon_memory.stores import StateStore

Store = Annotated[
    str, typer.Option("--store", "-s", envvar="BEACON_STORE", help="sqlite:///path, redis://…, rediss://…, unix://…")
]
Server = Annotated[
    str | None,
    typer.Option(envvar="BEACON_SERVER", help="ask this server, http://…, which has its own model and store"),
]
API_KEY_VARIABLE = "BEACON_API_KEY"  # what a server is asked with
KEY_VARIABLE = "BEACON_STORE_KEY"  # signs what is kept in SQLite or Redis
OLD_KEY_VARIABLE = "BEACON_STORE_OLD_KEY"  # is read as well while the key is changed
ENCRYPT_VARIABLE = "BEACON_STORE_ENCRYPT"  # 1 or true: what is written is encrypted too
YES, NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
DEFAULT_STORE = "sqlite:///beacon-memory.db"


def session_of(memory: BeaconMemory, name: str, **how: Any) -> Session:
    """A session by its id, or documents by "context:" and their name."""
    from beacon_memory.stores.names import CONTEXT

    if name.startswith(CONTEXT):
        return memory.context(name.removeprefix(CONTEXT), **how)
    return memory.session(name, **how)


def named(memory: BeaconMemory | RemoteEngine, name: str, **how: Any) -> Session | RemoteSession | RemoteContext:
    """The same, of this machine or of a server."""
    from beacon_memory.client.engine import RemoteEngine
    from beacon_memory.stores.names import CONTEXT

    if not isinstance(memory, RemoteEngine):
        return session_of(memory, name, **how)
    return (
        memory.context(name.removeprefix(CONTEXT), **how) if name.startswith(CONTEXT) else memory.session(name, **how)
    )


def question_to(engine: RemoteEngine, name: str, question: str, **how: Any) -> RemoteReply:
    """The answer of a server from a session, or from documents by "context:" and their name. Nothing is written. Raises
    SessionNotFound.
    """
    from beacon_memory.stores.names import CONTEXT

    held, asked = named(engine, name).info().messages, [{"role": "user", "content": question}]
    if name.startswith(CONTEXT):
        return engine.reply(asked, context_id=name.removeprefix(CONTEXT), **how)
    return engine.reply(asked, session_id=name, behind=held, **how)


def stored(url: str, *, trust: bool = False, namespace: str | None = None) -> StateStore:
    from beacon_memory.stores import open_store

    # Not an option: what stands in a command line, every process of the machine can read.
    if url.startswith("memory:"):
        return open_store(url)
    keys = {"key": os.environ.get(KEY_VARIABLE), "old_key": os.environ.get(OLD_KEY_VARIABLE)}
    signing: dict[str, Any] = {name: key.encode() for name, key in keys.items() if key}
    return open_store(url, **signing, encrypt=switched_on(ENCRYPT_VARIABLE), trust=trust, namespace=namespace)


def switched_on(variable: str) -> bool:
    """Whether a variable of the environment says yes; one that is empty is unset. Raises ConfigError for neither yes
    nor no.
    """
    said = os.environ.get(variable, "").strip().lower()
    if said not in (*YES, *NO):
        raise ConfigError(f"{variable} is {', '.join(YES)}, or {', '.join(NO[1:])}, not {said!r:.20}")
    return said in YES


def asked(server: str, model: str = DEFAULT_MODEL, store: str = "", **local: Any) -> RemoteEngine:
    """A server. Raises ConfigError for options, by their names, that are of a model and a store of this machine."""
    from beacon_memory.client.engine import RemoteEngine

    if local.get("finder") == os.environ.get(FINDER_VARIABLE):
        local.pop("finder", None)
    given = [name for name, value in local.items() if value not in (None, "auto")]
    given += ["store"] if store not in ("", DEFAULT_STORE, os.environ.get("BEACON_STORE")) else []
    if given:
        raise ConfigError(
            f"--{given[0].replace('_', '-')} is of a model and a store of this machine: leave it out beside --server"
        )
    named = None if model in (DEFAULT_MODEL, os.environ.get("BEACON_MODEL")) else model
    # The key is no option: what stands in a command line, every process of the machine can read.
    return RemoteEngine(server, api_key=os.environ.get(API_KEY_VARIABLE) or None, model=named)


def everything(engine: RemoteEngine) -> list[str]:
    """All that a server keeps for this key, by the names that commands take."""
    from beacon_memory.stores.names import CONTEXT

    return sorted([*engine.sessions(), *(CONTEXT + name for name in engine.contexts())])


def documents_of(
    memory: BeaconMemory | RemoteEngine, name: str, *, ratio: int | None = None
) -> Documents | RemoteDocuments:
    """The documents of a name."""
    from beacon_memory.client.engine import RemoteEngine

    if isinstance(memory, RemoteEngine):
        return memory.documents(name, ratio=ratio)
    from beacon_memory.sessions.documents import Documents

    return Documents(memory, name, ratio=ratio)


@contextmanager
def opened(
    model: str,
    store: str,
    server: str | None,
    *,
    adapter: str = "auto",
    finder: str | None = None,
    must_exist: str | None = None,
    **local: Any,
) -> Iterator[BeaconMemory | RemoteEngine]:
    """A memory of this machine, or a server where one is named."""
    if server is None:
        anchors = local.get("anchors")
        how: dict[str, Any] = {"adapter": adapter, "finder": finder, "anchors": anchors, "must_exist": must_exist}
        with remembering(model, store, **how) as memory:
            yield memory
        return
    engine = asked(server, model, store, adapter=adapter, finder=finder, **local)
    try:
        if must_exist is not None:
            named(engine, must_exist).info()
        yield engine
    finally:
        engine.close()


@contextmanager
def remembering(
    model: str,
    store: str,
    *,
    adapter: str,
    finder: str | None = None,
    anchors: str | None = None,
    must_exist: str | None = None,
) -> Iterator[BeaconMemory]:
    """A memory; looks for a session that must exist before it loads a model."""
    check_finder(finder or "attention")
    opened = stored(store)
    try:
        if must_exist is not None:
            opened.load(must_exist)
        with waiting(f"loading {model}"):
            from beacon_memory.config import BeaconConfig
            from beacon_memory.sessions.memory import BeaconMemory

            quiet()
            config = None if anchors is None else BeaconConfig(anchors=anchors)
            weights = None if adapter == "none" else adapter
            how = {"finder": finder or "attention", **placed()}
            memory = BeaconMemory.open(model, opened, config=config, adapter=weights, **how)
        yield memory
    finally:
        opened.close()
