"""The commands that read and keep sessions."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from beacon_memory.cli.terminal import (
    Adapter,
    AsJson,
    Model,
    placed,
    progress,
    quiet,
    say,
    size,
    standard_input,
    waiting,
)
from beacon_memory.errors import BeaconError, ConfigError, InputError, SessionNotFound

if TYPE_CHECKING:
    from beacon_memory import BeaconMemory
    from beacon_memory.sessions.session import Session
    from beacon_memory.stores import StateStore

app = typer.Typer()

SessionName = Annotated[str, typer.Argument(help="the session's id", show_default=False)]
Store = Annotated[
    str, typer.Option("--store", "-s", envvar="BEACON_STORE", help="sqlite:///path, redis://…, rediss://…, unix://…")
]
Ratio = Annotated[int | None, typer.Option(help="tokens per slot: 1, 2, 4, 8, 16 or 32", show_default="4")]
Anchors = Annotated[
    str | None,
    typer.Option(
        help="last, surprise, reconstruct, learned, spread, or a mix", show_default="the adapter's, else reconstruct"
    ),
]
SlotDtype = Annotated[
    str | None, typer.Option(help="bfloat16, int8 or int4: what new slots are kept in", show_default="the session's")
]
KEY_VARIABLE = "BEACON_STORE_KEY"  # signs what is kept in SQLite or Redis
OLD_KEY_VARIABLE = "BEACON_STORE_OLD_KEY"  # is read as well while the key is changed
ENCRYPT_VARIABLE = "BEACON_STORE_ENCRYPT"  # 1 or true: what is written is encrypted too
YES, NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
DEFAULT_STORE = "sqlite:///beacon-memory.db"


@app.command()
def add(
    session: SessionName,
    texts: Annotated[list[str], typer.Argument(help="text files, text, or - for standard input", show_default=False)],
    role: Annotated[str | None, typer.Option(help="add as a message of this role, not as a document")] = None,
    model: Model = "smollm2",
    store: Store = DEFAULT_STORE,
    adapter: Adapter = "auto",
    ratio: Ratio = None,
    anchors: Anchors = None,
    slot_dtype: SlotDtype = None,
) -> None:
    """Read documents (or, with --role, messages) into a session."""
    from beacon_memory.talk.sources import check_text, read_source

    # Everything is read before a model is loaded: a wrong name costs nothing and adds nothing.
    read = [(check_text(standard_input()), "standard input") if text == "-" else read_source(text) for text in texts]
    with remembering(model, store, adapter=adapter, anchors=anchors) as memory:
        opened = named(memory, session, ratio=ratio, slot_dtype=slot_dtype)
        if role is not None:
            opened.add([{"role": role, "content": text} for text, _ in read])
        else:
            for text, name in read:
                total = len(memory.model.encode(text))
                with progress(f"reading {name}", total) as advance:
                    opened.add_text(text, name=name, progress=advance)
        info = opened.info()
    say(f"session {session}: {info.tokens} tokens read, {info.slots} slots kept ({size(info.bytes)})")


@app.command()
def sync(
    name: Annotated[str, typer.Argument(help="the documents' name", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="a folder of text files, or one file", show_default=False)],
    keep: Annotated[bool, typer.Option("--keep", help="keep documents whose files are gone")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="refuse a file that cannot be read, leave none out")] = False,
    model: Model = "smollm2",
    store: Store = DEFAULT_STORE,
    adapter: Adapter = "auto",
    ratio: Ratio = None,
) -> None:
    """Keep documents in step with a folder: read new and changed files, take out those that are gone."""
    from beacon_memory.sessions.stored import CONTEXT
    from beacon_memory.talk.sources import read_texts

    name = name.removeprefix(CONTEXT)
    with warnings.catch_warnings(record=True) as left:
        warnings.simplefilter("always")
        texts = list(read_texts(folder, skip_bad=not strict))
    for one in left:
        say(str(one.message))
    with remembering(model, store, adapter=adapter) as memory:
        from beacon_memory.sessions.context import read_context
        from beacon_memory.sessions.documents import Documents

        documents = Documents(memory, name, ratio=ratio)
        before = {info.key: info.hash for info in documents.info()} if documents.version else {}
        with waiting(f"reading {folder}"):
            read_context(memory, texts, context_id=name, ratio=ratio, delete_missing=not keep)
        after = {info.key: info.hash for info in documents.info()}
    changed = sum(before[key] != of for key, of in after.items() if key in before)
    say(
        f"{CONTEXT}{name}: {len(after)} documents; {len(after.keys() - before.keys())} new, {changed} changed, "
        f"{len(before.keys() - after.keys())} gone"
    )


@app.command()
def show(
    session: SessionName,
    model: Model = "smollm2",
    store: Store = DEFAULT_STORE,
    adapter: Adapter = "auto",
    transcript: Annotated[bool, typer.Option("--transcript", help="print the messages too")] = False,
    as_json: AsJson = False,
) -> None:
    """What a session holds and what it costs."""
    with remembering(model, store, adapter=adapter, must_exist=session) as memory:
        opened = named(memory, session)
        # The messages first: they can be read where the slots cannot, because another model has folded them.
        for message in opened.messages() if transcript else []:
            typer.echo(f"{message['role']}: {message['content']}")
        info = asdict(opened.info())
    if as_json:
        typer.echo(json.dumps(info))
        return
    for name, value in info.items():
        shown = ", ".join(f"{n} at {r}x" for r, n in value.items()) if isinstance(value, dict) else value
        typer.echo(f"{name:<10} {size(value) if name.endswith('bytes') else shown}")


@app.command()
def messages(
    session: SessionName,
    query: Annotated[str, typer.Option("--query", "-q", help="only messages that contain this")] = "",
    model: Model = "smollm2",
    store: Store = DEFAULT_STORE,
    adapter: Adapter = "auto",
    as_json: AsJson = False,
) -> None:
    """The messages of a session, or those that contain some text, each with its place or id."""
    from beacon_memory.talk.messages import says

    with remembering(model, store, adapter=adapter, must_exist=session) as memory:
        there = named(memory, session).messages()
    found = [(n, message) for n, message in enumerate(there) if says(message, query)]
    if as_json:
        typer.echo(json.dumps([{"place": n, **message} for n, message in found]))
        return
    for n, message in found:
        typer.echo(f"{message.get('id') or n} {message['role']}: {message['content']}")


@app.command()
def delete(
    session: SessionName,
    message: Annotated[str, typer.Argument(help="its id or place, or a document's name", show_default=False)],
    model: Model = "smollm2",
    store: Store = DEFAULT_STORE,
    adapter: Adapter = "auto",
) -> None:
    """Forget one message or document; what was folded behind it is folded again."""
    from beacon_memory.state.head import DOCUMENT

    with remembering(model, store, adapter=adapter, must_exist=session) as memory:
        opened = named(memory, session)
        there = opened.messages()
        names = {said.get("id") for said in there} | {said["content"] for said in there if said["role"] == DOCUMENT}
        opened.delete(int(message) if message.isdecimal() and message not in names else message)
        info = opened.info()
    say(f"session {session}: {info.messages} messages, {info.tokens} tokens left")


@app.command()
def sessions(store: Store = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """The names of all sessions."""
    with stored(store) as opened:
        names = opened.sessions()
    typer.echo(json.dumps(names) if as_json else "\n".join(names), nl=as_json or bool(names))


@app.command()
def fork(
    session: SessionName, new: Annotated[str, typer.Argument(help="the new id")], store: Store = DEFAULT_STORE
) -> None:
    """Begin a new session as a copy of another."""
    from beacon_memory.stores.base import check_session

    with stored(store) as opened:
        opened.fork(session, check_session(new))


@app.command()
def forget(session: SessionName, store: Store = DEFAULT_STORE) -> None:
    """Remove a session, and every byte that no other session names."""
    with stored(store) as opened:
        opened.delete(session)
        if (queue := opened.queue()) is not None:
            queue.drop(session)
        for left in opened.scrub():
            say(f"left to do: {left}")


@app.command()
def export(session: SessionName, file: Path, store: Store = DEFAULT_STORE) -> None:
    """Write a whole session to one file."""
    from beacon_memory.state.archive import Exported, write_archive

    with stored(store) as opened:
        head, _ = opened.load(session)
        blobs = dict(zip(head.digests, opened.read(head.digests), strict=True))
    write_archive(file, Exported(session, head.body, blobs))


@app.command("import")
def import_(
    file: Path,
    name: Annotated[str | None, typer.Option("--as", help="another name for the session")] = None,
    model: Model = "smollm2",
    store: Store = DEFAULT_STORE,
    adapter: Adapter = "auto",
) -> None:
    """Read a session from a file that `export` wrote."""
    from beacon_memory.state.archive import read_archive

    read_archive(file)  # a wrong file is refused before a model is loaded
    with remembering(model, store, adapter=adapter) as memory:
        opened = memory.import_session(file, name=name)
    say(f"session {opened.id} imported")


@app.command()
def gc(store: Store = DEFAULT_STORE) -> None:
    """Remove what crashes, evictions and expired sessions left in a store; writers need not stop."""
    with stored(store) as opened:
        swept = opened.gc()
    say(f"{swept} blobs removed")


@app.command()
def reseal(
    store: Store = DEFAULT_STORE,
    trust: Annotated[bool, typer.Option("--trust", help="sign what was written without a key too")] = False,
) -> None:
    """Sign everything with BEACON_STORE_KEY that is signed with BEACON_STORE_OLD_KEY; or, with --trust, not at all."""
    with stored(store, trust=trust) as opened:
        signed = opened.reseal()
        opened.gc()
    say(f"{signed} values signed")


@app.command()
def repair(
    session: SessionName,
    model: Model = "smollm2",
    store: Store = DEFAULT_STORE,
    adapter: Adapter = "auto",
    places: Annotated[bool, typer.Option("--places", help="and what older releases wrote without places")] = False,
) -> None:
    """Fold a session's lost or damaged segments again, from its ids and messages."""
    with remembering(model, store, adapter=adapter, must_exist=session) as memory:
        folded = memory.repair(session, places=places)
    say(f"session {session}: {folded} segments folded again" if folded else f"session {session}: nothing to repair")


@app.command()
def refold(
    names: Annotated[list[str] | None, typer.Argument(help="sessions' ids", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="all that the store keeps, documents too")] = False,
    old: Annotated[str | None, typer.Option("--from", help="the old model, where its tokenizer was another")] = None,
    model: Model = "smollm2",
    store: Store = DEFAULT_STORE,
    adapter: Adapter = "auto",
) -> None:
    """Move sessions to this model and adapter, after these have changed; all is read again, nothing is lost."""
    from beacon_memory.sessions.repair import refold as moved

    if bool(names) == everything:
        raise InputError("name the sessions to refold, or say --all")
    with stored(store) as opened:
        found = opened.sessions()
    if missing := sorted(set(names or ()) - set(found)):
        raise InputError(f"no session {', '.join(missing)} in this store: nothing was refolded")
    failed = 0
    with remembering(model, store, adapter=adapter) as memory:
        from beacon_memory.models.loading import load_tokenizer

        tokenizer = None if old is None else load_tokenizer(old)
        for name in names or found:
            try:
                tokens = moved(memory, name, tokenizer=tokenizer)
            except SessionNotFound:  # forgotten meanwhile
                continue
            except BeaconError as exc:
                failed += 1
                say(f"{name}: not refolded, it stays as it was: {exc}")
                continue
            say(f"{name}: {tokens} tokens read again" if tokens else f"{name}: nothing to do")
    if failed:
        raise InputError(f"{failed} of {len(names or found)} could not be refolded")


def named(memory: BeaconMemory, name: str, **how: Any) -> Session:
    """A session by its id, or documents by "context:" and their name."""
    from beacon_memory.sessions.stored import CONTEXT

    if name.startswith(CONTEXT):
        return memory.context(name.removeprefix(CONTEXT), **how)
    return memory.session(name, **how)


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


@contextmanager
def remembering(
    model: str, store: str, *, adapter: str, anchors: str | None = None, must_exist: str | None = None
) -> Iterator[BeaconMemory]:
    """A memory; looks for a session that must exist before it loads a model."""
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
            memory = BeaconMemory.open(model, opened, config=config, adapter=weights, **placed())
        yield memory
    finally:
        opened.close()
