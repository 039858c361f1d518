"""The command `beacon-memory`. stdout is the answer; progress and notes go to stderr.

May import: every other room, but only inside a command that needs it: `--help` loads no torch. Hands out: `main`.
A new command goes here: `sessions.py` (keep), `asking.py`, `serve.py`, `fold.py`, `check.py`, `learn.py`, `measure.py`.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from beacon_memory.cli import asking, check, fold, learn, measure, serve, sessions
from beacon_memory.errors import BeaconError
from beacon_memory.version import __version__

app = typer.Typer(
    help="A memory for language models that has read everything: add text and messages to a session, ask it later.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(sessions.app)
app.add_typer(asking.app)
app.add_typer(check.app)
app.add_typer(learn.app)
app.add_typer(measure.app)
app.add_typer(serve.app)
app.add_typer(fold.app)
app.add_typer(serve.keys, name="keys")


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
