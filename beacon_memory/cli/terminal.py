"""What the commands share: options, progress bars, and how answers and messages are printed."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from beacon_memory.errors import InputError

DEFAULT_MODEL = "smollm2"
Model = Annotated[
    str, typer.Option("--model", "-m", envvar="BEACON_MODEL", help="directory, hub id, GGUF file, or 'smollm2'")
]
Adapter = Annotated[
    str, typer.Option(help="a folder with beacon weights, 'none', or 'auto': the one that comes with smollm2")
]
FINDER_VARIABLE = "BEACON_FINDER"
Finder = Annotated[
    str | None,
    typer.Option(
        envvar=FINDER_VARIABLE,
        help="what finds passages to read again: attention (the adapter's heads), words, or attention+words",
        show_default="attention",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="end in one line of JSON")]


def placed() -> dict[str, Any]:
    """How a model is loaded where `BEACON_DEVICE` says (cpu, cuda, cuda:1, auto); by default on a GPU if there is one.

    Raises InputError for a device that is not there.
    """
    import torch

    device = os.environ.get("BEACON_DEVICE", "").strip() or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        return {}
    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as exc:
            raise InputError(f"BEACON_DEVICE: this machine has no {device!r} for PyTorch: {exc}") from None
    return {"device_map": device}


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
def progress(what: str, total: int, *, unit: str = "tokens") -> Iterator[Any]:
    """A bar of tokens, or of another unit, on a terminal; nothing elsewhere. Gives a function of how many are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, doing=None: bar.update(task, advance=done, description=doing)


@contextmanager
def steps_bar(total: int) -> Iterator[Any]:
    """A bar of training steps with loss, speed and time left on a terminal; elsewhere a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=total, now="")
        losses: list[float] = []

        def moved(moment: Any) -> None:
            losses.append(moment.loss)
            mean = sum(losses[-20:]) / len(losses[-20:])
            left = f"{moment.seconds_left / 60:.0f} min left" if moment.seconds_left > 90 else "a minute left"
            now = f"loss {mean:.3f}, {moment.tokens_per_second:.0f} tokens/s, {left}"
            bar.update(task, completed=moment.step, now=now)
            if not console.is_terminal and moment.step % 20 == 0:
                say(f"step {moment.step} of {total}: {now}, {moment.tokens} tokens")

        yield moved


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
