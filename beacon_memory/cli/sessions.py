"""The commands that read and keep sessions."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from beacon_memory.cli.opening import (
    DEFAULT_STORE,
    Server,
    Store,
    asked,
    documents_of,
    everything,
    named,
    opened,
    remembering,
    stored,
)
from beacon_memory.cli.terminal import (
    Adapter,
    AsJson,
    Model,
    progress,
    say,
    size,
    standard_input,
    waiting,
)
from beacon_memory.errors import BeaconError, InputError, SessionNotFound

if TYPE_CHECKING:
    from beacon_memory import BeaconMemory
    from beacon_memory.client.engine import RemoteEngine

app = typer.Typer()

SessionName = Annotated[str, typer.Argument(help="the session's id", show_default=False)]
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


@app.command()
def add(
    session: SessionName,
    texts: Annotated[list[str], typer.Argument(help="text files, text, or - for standard input", show_default=False)],
    role: Annotated[str | None, typer.Option(help="add as a message of this role, not as a document")] = None,
    model: Model = "smollm2",
    store: Store = DEFAULT_STORE,
    server: Server = None,
    adapter: Adapter = "auto",
    ratio: Ratio = None,
    anchors: Anchors = None,
    slot_dtype: SlotDtype = None,
) -> None:
    """Read documents (or, with --role, messages) into a session."""
    from beacon_memory.talk.sources import check_text, read_source

    # Everything is read before a model is loaded: a wrong name costs nothing and adds nothing.
    read = [(check_text(standard_input()), "standard input") if text == "-" else read_source(text) for text in texts]
    local = {"anchors": anchors, "slot_dtype": slot_dtype}
    with opened(model, store, server, adapter=adapter, **local) as memory:
        how = {} if slot_dtype is None else {"slot_dtype": slot_dtype}
        there = named(memory, session, ratio=ratio, **how)
        if role is not None:
            there.add([{"role": role, "content": text} for text, _ in read])
        else:
            for text, name in read:
                _read(memory, there, text, name)
        info = there.info()
    say(f"session {session}: {info.tokens} tokens read, {info.slots} slots kept ({size(info.bytes)})")


def _read(memory: BeaconMemory | RemoteEngine, there: Any, text: str, name: str) -> None:
    """Read a text into a session, with a bar where it is read in this process."""
    if not hasattr(memory, "model"):
        with waiting(f"reading {name}"):
            there.add_text(text, name=name)
        return
    with progress(f"reading {name}", len(memory.model.encode(text))) as advance:
        there.add_text(text, name=name, progress=advance)


@app.command()
def sync(
    name: Annotated[str, typer.Argument(help="the documents' name", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="a folder of text files, or one file", show_default=False)],
    keep: Annotated[bool, typer.Option("--keep", help="keep documents whose files are gone")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="refuse a file that cannot be read, leave none out")] = False,
    model: Model = "smollm2",
    store: Store = DEFAULT_STORE,
    server: Server = None,
    adapter: Adapter = "auto",
    ratio: Ratio = None,
) -> None:
    """Keep documents in step with a folder: read new and changed files, take out those that are gone."""
    from beacon_memory.stores.names import CONTEXT
    from beacon_memory.talk.sources import as_documents, read_texts

    name = name.removeprefix(CONTEXT)
    with warnings.catch_warnings(record=True) as left:
        warnings.simplefilter("always")
        texts = list(read_texts(folder, skip_bad=not strict))
    for one in left:
        say(str(one.message))
    with opened(model, store, server, adapter=adapter) as memory:
        documents = documents_of(memory, name, ratio=ratio)
        before = {info.key: info.hash for info in documents.info()} if documents.version else {}
        with waiting(f"reading {folder}"):
            _, read, unread = as_documents(texts, name)
            if not read and keep:
                raise InputError("there is no document to read")
            documents.put(read, delete_missing=not keep, keep=unread)
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
    server: Server = None,
    adapter: Adapter = "auto",
    transcript: Annotated[bool, typer.Option("--transcript", help="print the messages too")] = False,
    as_json: AsJson = False,
) -> None:
    """What a session holds and what it costs."""
    with opened(model, store, server, adapter=adapter, must_exist=session) as memory:
        there = named(memory, session)
        # The messages first: they can be read where the slots cannot, because another model has folded them.
        for message in there.messages() if transcript else []:
            typer.echo(f"{message['role']}: {message['content']}")
        info = asdict(there.info())
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
    server: Server = None,
    adapter: Adapter = "auto",
    as_json: AsJson = False,
) -> None:
    """The messages of a session, or those that contain some text, each with its place or id."""
    from beacon_memory.talk.messages import says

    with opened(model, store, server, adapter=adapter, must_exist=session) as memory:
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
    server: Server = None,
    adapter: Adapter = "auto",
) -> None:
    """Forget one message or document; what was folded behind it is folded again."""
    from beacon_memory.state.info import DOCUMENT

    with opened(model, store, server, adapter=adapter, must_exist=session) as memory:
        found = named(memory, session)
        there = found.messages()
        names = {said.get("id") for said in there} | {said["content"] for said in there if said["role"] == DOCUMENT}
        found.delete(int(message) if message.isdecimal() and message not in names else message)
        info = found.info()
    say(f"session {session}: {info.messages} messages, {info.tokens} tokens left")


@app.command()
def sessions(store: Store = DEFAULT_STORE, server: Server = None, as_json: AsJson = False) -> None:
    """The names of all sessions."""
    if server is not None:
        names = everything(asked(server, store=store))
    else:
        with stored(store) as found:
            names = found.sessions()
    typer.echo(json.dumps(names) if as_json else "\n".join(names), nl=as_json or bool(names))


@app.command()
def fork(
    session: SessionName,
    new: Annotated[str, typer.Argument(help="the new id")],
    store: Store = DEFAULT_STORE,
    server: Server = None,
) -> None:
    """Begin a new session as a copy of another."""
    from beacon_memory.stores.base import check_session

    if server is not None:
        asked(server, store=store).session(session).fork(new)
        return
    with stored(store) as found:
        found.fork(session, check_session(new))


@app.command()
def forget(session: SessionName, store: Store = DEFAULT_STORE, server: Server = None) -> None:
    """Remove a session, and every byte that no other session names."""
    if server is not None:
        todo = named(asked(server, store=store), session).forget()
    else:
        with stored(store) as found:
            found.delete(session)
            if (queue := found.queue()) is not None:
                queue.drop(session)
            todo = found.scrub()
    for left in todo:
        say(f"left to do: {left}")


@app.command()
def export(session: SessionName, file: Path, store: Store = DEFAULT_STORE, server: Server = None) -> None:
    """Write a whole session to one file."""
    if server is not None:
        asked(server, store=store).session(session).export(file)
        return
    from beacon_memory.state.archive import Exported, write_archive

    with stored(store) as found:
        head, _ = found.load(session)
        blobs = dict(zip(head.digests, found.read(head.digests), strict=True))
    write_archive(file, Exported(session, head.body, blobs))


@app.command("import")
def import_(
    file: Path,
    name: Annotated[str | None, typer.Option("--as", help="another name for the session")] = None,
    model: Model = "smollm2",
    store: Store = DEFAULT_STORE,
    server: Server = None,
    adapter: Adapter = "auto",
) -> None:
    """Read a session from a file that `export` wrote."""
    if server is not None:
        made = asked(server, model, store, adapter=adapter).import_session(file, name=name)
        say(f"session {made} imported")
        return
    from beacon_memory.state.archive import read_archive

    read_archive(file)  # a wrong file is refused before a model is loaded
    with remembering(model, store, adapter=adapter) as memory:
        imported = memory.import_session(file, name=name)
    say(f"session {imported.id} imported")


@app.command()
def gc(store: Store = DEFAULT_STORE) -> None:
    """Remove what crashes, evictions and expired sessions left in a store; writers need not stop."""
    with stored(store) as found:
        swept = found.gc()
    say(f"{swept} blobs removed")


@app.command()
def reseal(
    store: Store = DEFAULT_STORE,
    trust: Annotated[bool, typer.Option("--trust", help="sign what was written without a key too")] = False,
) -> None:
    """Sign everything with BEACON_STORE_KEY that is signed with BEACON_STORE_OLD_KEY; or, with --trust, not at all."""
    with stored(store, trust=trust) as found:
        signed = found.reseal()
        found.gc()
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
    with stored(store) as opening:
        found = opening.sessions()
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
