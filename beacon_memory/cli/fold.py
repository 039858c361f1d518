"""The commands for folding off the path of answers: a worker, and the queue that it serves."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from threading import Event
from typing import Annotated

import typer

from beacon_memory.cli.opening import DEFAULT_STORE, Store, remembering, stored
from beacon_memory.cli.terminal import Adapter, AsJson, Model, say
from beacon_memory.errors import ConfigError

app = typer.Typer()


@app.command("fold-worker")
def worker(
    model: Model = "smollm2",
    store: Store = DEFAULT_STORE,
    adapter: Adapter = "auto",
    look: Annotated[bool, typer.Option("--look", help="first look through all sessions for what is to fold")] = False,
    until_empty: Annotated[bool, typer.Option("--until-empty", help="end when no session waits")] = False,
    lease: Annotated[float, typer.Option(help="seconds until the job of a worker that died is another's")] = 15.0,
) -> None:
    """Fold what others have added to sessions of a store, until SIGTERM or SIGINT (docs/vllm.md)."""
    with remembering(model, store, adapter=adapter) as memory:
        from beacon_memory.serving.folding import FoldWorker

        folding, stop = FoldWorker(memory, lease=lease, say=say), Event()
        before = [signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)]
        try:
            say(f"folding; {folding.look()} sessions put on the queue" if look else "folding")
            done = folding.run(stop, until_empty=until_empty)
        finally:
            for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
                signal.signal(number, handler)
    say(f"{done} jobs done")


@app.command("fold-queue")
def queue(
    store: Store = DEFAULT_STORE,
    revive: Annotated[bool, typer.Option("--revive", help="put those that failed on the queue again")] = False,
    as_json: AsJson = False,
) -> None:
    """How many sessions wait to be folded, and which could not be, and why."""
    with stored(store) as opened:
        found = opened.queue()
        if found is None:
            raise ConfigError("this store has no queue: name one in SQLite or Redis")
        if revive:
            say(f"{found.revive()} sessions put on the queue again")
        counts, dead = found.counts(), found.dead()
    if as_json:
        typer.echo(json.dumps({**asdict(counts), "failed": [asdict(one) for one in dead]}))
        return
    typer.echo(f"{counts.waiting} waiting, {counts.taken} being folded, {counts.dead} failed")
    for one in dead:
        typer.echo(f"{one.session}: {one.why} (tries: {one.tries})")
