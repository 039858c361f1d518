"""What the commands share: options, progress on a terminal, and how answers and talk are printed."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from beacon_memory.errors import InputError

Model = Annotated[
    str, typer.Option("--model", "-m", envvar="BEACON_MODEL", help="directory, hub id, GGUF file, or 'smollm2'")
]
Adapter = Annotated[
    str, typer.Option(help="a folder with beacon weights, 'none', or 'auto': the one that comes with smollm2")
]
AsJson = Annotated[bool, typer.Option("--json", help="end in one line of JSON")]


def quiet() -> None:
    """Silence transformers' own bars and reports: this command shows its own."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(f"{what} …"):
        yield


@contextmanager
def progress(what: str, total: int) -> Iterator[Any]:
    """A bar of tokens on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda tokens: bar.update(task, advance=tokens)


def write(pieces: Iterator[str]) -> None:
    for piece in pieces:
        typer.echo(piece, nl=False)
        sys.stdout.flush()
    typer.echo()


def lines() -> Iterator[str]:
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


def standard_input() -> str:
    data = sys.stdin.buffer.read()
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise InputError(f"standard input is not UTF-8 (byte {exc.start}): convert it first") from exc


def say(text: str) -> None:
    typer.echo(text, err=True)


def size(count: int) -> str:
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
