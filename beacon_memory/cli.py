"""The command `beacon-memory`: sessions from a terminal.

stdout is the answer; talk and progress go to stderr. torch is imported only once a model is needed.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from beacon_memory.errors import BeaconError, InputError
from beacon_memory.version import __version__

if TYPE_CHECKING:
    from beacon_memory import BeaconMemory
    from beacon_memory.stores import StateStore

app = typer.Typer(
    help="A memory for language models that has read everything: add text and messages to a session, ask it later.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SessionName = Annotated[str, typer.Argument(help="the session's id", show_default=False)]
Model = Annotated[
    str, typer.Option("--model", "-m", envvar="BEACON_MODEL", help="directory, hub id, GGUF file, or 'smollm2'")
]
Store = Annotated[
    str, typer.Option("--store", "-s", envvar="BEACON_STORE", help="sqlite:///path, redis://…, rediss://…, unix://…")
]
Adapter = Annotated[
    str, typer.Option(help="a folder with beacon weights, 'none', or 'auto': the one that comes with smollm2")
]
Ratio = Annotated[int | None, typer.Option(help="tokens per slot: 1, 2, 4, 8, 16 or 32", show_default="4")]
Anchors = Annotated[
    str | None,
    typer.Option(help="last, surprise, reconstruct, learned, or a mix", show_default="the adapter's, else reconstruct"),
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="the longest answer, in tokens")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token each time")]
System = Annotated[str | None, typer.Option(help="a system prompt for this answer; not remembered")]
AsJson = Annotated[bool, typer.Option("--json", help="end in one line of JSON")]

DEFAULT_STORE = "sqlite:///beacon-memory.db"


def main() -> None:
    """Run the command; misuse and bad input are one line on stderr and exit code 2."""
    try:
        app()
    except BeaconError as exc:
        typer.echo(f"beacon-memory: {exc}", err=True)
        sys.exit(2)
    except BrokenPipeError:
        # The reader went away (`| head`): not our error, and nothing left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        typer.echo("", err=True)
        sys.exit(130)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="show the version and exit")] = False) -> None:
    """A memory for language models that has read everything: add text and messages to a session, ask it later."""
    if show:
        typer.echo(f"beacon-memory {__version__}")
        raise typer.Exit


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
) -> None:
    """Read documents (or, with --role, messages) into a session."""
    from beacon_memory.sources import check_text, read_source

    # Everything is read before a model is loaded: a wrong name costs nothing and adds nothing.
    read = [(check_text(_stdin()), "standard input") if text == "-" else read_source(text) for text in texts]
    with _memory(model, store, adapter=adapter, anchors=anchors) as memory:
        opened = memory.session(session, ratio=ratio)
        if role is not None:
            opened.add([{"role": role, "content": text} for text, _ in read])
        else:
            for text, name in read:
                total = len(memory.model.encode(text))
                with _progress(f"reading {name}", total) as advance:
                    opened.add_text(text, name=name, progress=advance)
        info = opened.info()
    _say(f"session {session}: {info.tokens} tokens read, {info.slots} slots kept ({_size(info.bytes)})")


@app.command()
def ask(
    session: SessionName,
    question: Annotated[str, typer.Argument(help="the question, or - for standard input", show_default=False)],
    model: Model = "smollm2",
    store: Store = DEFAULT_STORE,
    adapter: Adapter = "auto",
    system: System = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
) -> None:
    """Answer from a session's memory; nothing is written."""
    question = _stdin() if question == "-" else question
    with _memory(model, store, adapter=adapter, must_exist=session) as memory:
        pieces = memory.session(session).ask(
            question, system=system, stream=True, max_new_tokens=max_tokens, temperature=temperature
        )
        _print(pieces)


@app.command()
def chat(
    session: SessionName,
    model: Model = "smollm2",
    store: Store = DEFAULT_STORE,
    adapter: Adapter = "auto",
    ratio: Ratio = None,
    anchors: Anchors = None,
    system: System = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
) -> None:
    """Talk with a session, turn by turn; an empty line or Ctrl-D leaves. It remembers when you come back."""
    with _memory(model, store, adapter=adapter, anchors=anchors) as memory:
        opened = memory.session(session, ratio=ratio)
        known = opened.info().messages if session in memory.sessions() else 0
        _say(f"session {session}: {known} messages remembered. An empty line leaves.")
        for line in _lines():
            pieces = opened.chat(line, system=system, stream=True, max_new_tokens=max_tokens, temperature=temperature)
            try:
                _print(pieces)
            except KeyboardInterrupt:
                pieces.close()  # type: ignore[attr-defined]
                _say("\n(stopped; this turn is not remembered)")
            except InputError as exc:
                _say(f"beacon-memory: {exc}")


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
    with _memory(model, store, adapter=adapter, must_exist=session) as memory:
        opened = memory.session(session)
        info, messages = asdict(opened.info()), opened.messages() if transcript else []
    for message in messages:
        typer.echo(f"{message['role']}: {message['content']}")
    if as_json:
        typer.echo(json.dumps(info))
        return
    for name, value in info.items():
        shown = ", ".join(f"{n} at {r}x" for r, n in value.items()) if isinstance(value, dict) else value
        typer.echo(f"{name:<10} {_size(value) if name.endswith('bytes') else shown}")


@app.command()
def sessions(store: Store = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """The names of all sessions."""
    with _store(store) as opened:
        names = opened.sessions()
    typer.echo(json.dumps(names) if as_json else "\n".join(names), nl=as_json or bool(names))


@app.command()
def fork(
    session: SessionName, new: Annotated[str, typer.Argument(help="the new id")], store: Store = DEFAULT_STORE
) -> None:
    """Begin a new session where another one stands."""
    from beacon_memory.stores.base import check_session

    with _store(store) as opened:
        opened.fork(session, check_session(new))


@app.command()
def forget(session: SessionName, store: Store = DEFAULT_STORE) -> None:
    """Remove a session, and every byte that no other session names."""
    with _store(store) as opened:
        opened.delete(session)


@app.command()
def export(session: SessionName, file: Path, store: Store = DEFAULT_STORE) -> None:
    """Write a whole session to one file."""
    from beacon_memory.archive import Exported, write_archive

    with _store(store) as opened:
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
    from beacon_memory.archive import read_archive

    read_archive(file)  # a wrong file is refused before a model is loaded
    with _memory(model, store, adapter=adapter) as memory:
        opened = memory.import_session(file, name=name)
    _say(f"session {opened.id} imported")


@app.command("fit-anchors")
def fit_anchors(
    texts: Annotated[list[str], typer.Argument(help="text files to fit on", show_default=False)],
    out: Annotated[Path, typer.Option(help="the folder to write the adapter to")],
    model: Model = "smollm2",
    tokens: Annotated[int, typer.Option(help="how many tokens to look at")] = 33_000,
    seed: Annotated[int, typer.Option(help="which places of the texts")] = 0,
) -> None:
    """Fit the scorer of the 'learned' anchors for any model: minutes on a CPU, no gradient."""
    from beacon_memory.sources import read_source

    read = [read_source(Path(text))[0] for text in texts]
    with _waiting(f"loading {model}"):
        from beacon_memory.adapter import save_adapter
        from beacon_memory.model import BeaconModel
        from beacon_memory.training.fit import fit_anchors as fit

        _quiet()
        loaded = BeaconModel.from_pretrained(model, adapter=None)
    with _progress("fitting", tokens) as advance:
        fit(loaded, read, tokens=tokens, seed=seed, progress=advance)
    save_adapter(loaded.beacons, out, config=loaded.config, model=loaded.fingerprint.model)
    _say(f"adapter written to {out}")


def _store(url: str) -> StateStore:
    from beacon_memory.stores import open_store

    return open_store(url)


@contextmanager
def _memory(
    model: str, store: str, *, adapter: str, anchors: str | None = None, must_exist: str | None = None
) -> Iterator[BeaconMemory]:
    """A memory; a session that must exist is looked for before a model is loaded."""
    opened = _store(store)
    try:
        if must_exist is not None:
            opened.load(must_exist)
        with _waiting(f"loading {model}"):
            from beacon_memory.config import BeaconConfig
            from beacon_memory.memory import BeaconMemory

            _quiet()
            config = None if anchors is None else BeaconConfig(anchors=anchors)
            memory = BeaconMemory.open(model, opened, config=config, adapter=None if adapter == "none" else adapter)
        yield memory
    finally:
        opened.close()


def _quiet() -> None:
    """Silence transformers' own bars and reports: this command shows its own."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)


@contextmanager
def _waiting(what: str) -> Iterator[None]:
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(f"{what} …"):
        yield


@contextmanager
def _progress(what: str, total: int) -> Iterator[Any]:
    """A bar of tokens on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda tokens: bar.update(task, advance=tokens)


def _print(pieces: Iterator[str]) -> None:
    for piece in pieces:
        typer.echo(piece, nl=False)
        sys.stdout.flush()
    typer.echo()


def _lines() -> Iterator[str]:
    """What the user types, line by line, up to an empty line or the end."""
    while True:
        try:
            if sys.stdin.isatty():
                import readline  # noqa: F401  (line editing and history)

                line = input("> ")
            else:
                line = sys.stdin.readline()
        except EOFError:
            return
        if not line.strip():
            return
        yield line.strip()


def _stdin() -> str:
    data = sys.stdin.buffer.read()
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise InputError(f"standard input is not UTF-8 (byte {exc.start}): convert it first") from exc


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _size(count: int) -> str:
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


if __name__ == "__main__":
    main()
