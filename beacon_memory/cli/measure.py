"""The command that measures what a memory is worth."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from beacon_memory.cli.terminal import Finder, Model, placed, progress, quiet, say, waiting
from beacon_memory.config import check_finder
from beacon_memory.errors import ConfigError

if TYPE_CHECKING:
    from beacon_memory.evaluation.items import Task
    from beacon_memory.evaluation.reporting.tables import Summary

app = typer.Typer()

QUICK_TASKS = ("prose", "copy", "needle")  # they need no data
QUICK_METHODS = "full,none,last-window,bm25,kv-subsample,eviction,beacon-last,beacon,control"
QUICK_ITEMS = 8
PACKAGED, ALONE = "packaged", ":scorer"  # an adapter's folder may be named so, and end with that


@app.command("eval")
def evaluate(
    out: Annotated[Path, typer.Option(help="the folder of results; measuring goes on where it stands")],
    model: Model = "smollm2",
    data: Annotated[
        Path | None,
        typer.Option(
            help="novels/*.txt, fairytaleqa/val.jsonl, dialogues/sgd-train.jsonl, dialogues/topical-chat.jsonl",
            show_default="none",
        ),
    ] = None,
    tasks: Annotated[
        str,
        typer.Option(help="prose, copy, qa, dialogue, needle, long, chat, near", show_default="all that --data serves"),
    ] = "",
    methods: Annotated[str, typer.Option(help="baselines, beacons and the controls", show_default="all")] = "",
    answers: Annotated[
        str, typer.Option(help="written: what the model says itself; ranked: which of some answers it likes best")
    ] = "written,ranked",
    ratios: Annotated[str, typer.Option(help="tokens per KV entry", show_default="2,4,8,16; quick 4,8")] = "",
    items: Annotated[int | None, typer.Option(help="questions of a cell", show_default="200; quick 8")] = None,
    minutes: Annotated[float, typer.Option("--minutes-per-cell", help="a cell stops after this")] = 10.0,
    lengths: Annotated[
        str, typer.Option(help="of needle and long in tokens, of near in slots", show_default="1K-16K, 2K-32K, 0.5K-4K")
    ] = "",
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=FOLDER of beacon weights, again for more; FOLDER:scorer is its scorer alone, and "
            "'packaged' the adapter that comes with the model",
            show_default="auto",
        ),
    ] = None,
    finder: Finder = None,
    seed: Annotated[int, typer.Option(help="which items")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="a few items, minutes; needs no --data")] = False,
) -> None:
    """Measure what a memory is worth, beside other ways to keep as few KV entries."""
    from beacon_memory.evaluation.items import ANSWERS
    from beacon_memory.evaluation.looking import LOOKS
    from beacon_memory.evaluation.methods import CONTROL_RATIO, METHODS, chosen, common_settings
    from beacon_memory.evaluation.tasks import TASKS
    from beacon_memory.models.adapter import adapter_config

    names = _list(tasks) or list(QUICK_TASKS if data is None else TASKS)
    if unknown := [name for name in names if name not in TASKS]:
        raise ConfigError(f"no task {unknown[0]!r}; there are {', '.join(TASKS)}")
    kinds = _list(answers)
    if not kinds or not set(kinds) <= set(ANSWERS):
        raise ConfigError(f"--answers are {' and '.join(ANSWERS)}, joined by a comma, not {answers!r}")
    asked = _list(methods) or (_list(QUICK_METHODS) if quick else list(METHODS))
    found_by = check_finder(finder or "attention")
    chosen(asked, {})  # what is misspelt or not there is refused before a model is loaded
    for folder in _adapters(adapter or [], None, out).values():
        adapter_config(folder)
    wanted = _numbers(ratios or ("4,8" if quick else "2,4,8,16"), "ratios")
    number = items or (QUICK_ITEMS if quick else 200)
    sizes = _numbers(lengths or ("1024,2048" if quick or data is None else ""), "lengths")

    from beacon_memory.evaluation.data import Data
    from beacon_memory.evaluation.reporting.plots import draw
    from beacon_memory.evaluation.reporting.results import Results
    from beacon_memory.evaluation.reporting.tables import markdown, seconds_spent, summarise, terminal_tables, verdict
    from beacon_memory.evaluation.runner import cells, measure, suitable
    from beacon_memory.evaluation.tasks import make_task

    results = Results(out)
    with waiting(f"loading {model}"):
        import torch

        from beacon_memory.models.adapter import packaged_adapter
        from beacon_memory.models.model import BeaconModel

        quiet()
        torch.manual_seed(seed)
        loaded = BeaconModel.from_pretrained(model, adapter=None, **placed())
    source = Data(data)
    with waiting("making the tasks"):
        made = [
            make_task(
                name,
                loaded,
                source,
                items=number,
                seed=seed,
                ratio=CONTROL_RATIO if CONTROL_RATIO in wanted else min(wanted),
                **({"lengths": sizes} if sizes and name in ("needle", "long", "near") else {}),
            )
            for name in names
        ]
        for task in made:
            suitable(task, kinds)  # refused before any is measured
    fingerprint, tokenizer = loaded.fingerprint.model, loaded.tokenizer
    lm = loaded.detach()
    # Asked of the base model alone: with beacons attached it has another fingerprint.
    adapters = _adapters(adapter or ["auto"], packaged_adapter(model, lm), out)
    about = _about(model, fingerprint, seed=seed)
    measured: list[tuple[Task, list[Summary]]] = []
    compared = chosen(asked, adapters, finder=found_by)
    if "beacon" in asked and not adapters:
        say(f"no adapter comes with {model}: trained beacons are left out (--adapter NAME=FOLDER)")
    if set(_list(methods)) & set(LOOKS) and not any(method.kind in LOOKS for method in compared):
        say("no adapter has a finder: what looks again is left out (beacon-memory fit-finder)")
    with progress(
        "measuring", sum(len(task.items) * cells(task, compared, wanted) for task in made), unit="items"
    ) as advance:
        for task in made:
            kept = measure(
                lm,
                tokenizer,
                task,
                compared,
                wanted,
                results=results,
                common=common_settings(adapters),
                seconds=60 * minutes,
                answers=kinds,
                progress=lambda doing, done: advance(done, doing),
            )
            order = [method.name for method in compared]
            kept.sort(key=lambda cell: (order.index(cell.method), cell.ratio))
            measured.append((task, summarise(task, kept, results, seed=seed)))
            lines = [json.dumps(summary.record(about)) for _, summaries in measured for summary in summaries]
            results.write("cells.jsonl", "".join(f"{line}\n" for line in lines))
            results.write("report.md", markdown(measured, command=str(about["command"]), about=about))
            draw(task, measured[-1][1], out)
    _print([table for task, summaries in measured for table in terminal_tables(task, summaries)])
    for task, summaries in measured:
        if said := verdict(summaries):
            typer.echo(f"{task.name}. {said}")
        if spent := seconds_spent(summaries):
            typer.echo(f"{task.name}. {spent}")
    say(f"cells.jsonl, report.md and plots are in {out}")


def _list(given: str) -> list[str]:
    return [part.strip() for part in given.split(",") if part.strip()]


def _numbers(given: str, what: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in _list(given))
    except ValueError:
        found = (0,)
    if any(number < 2 for number in found):
        raise ConfigError(f"--{what} are numbers of at least 2, joined by commas, not {given!r}")
    return found


def _adapters(given: list[str], packaged: Path | None, out: Path) -> dict[str, Path]:
    """Folders by the name they have in tables; of a scorer alone, one in the folder of results. Raises ConfigError.

    Without a `packaged` adapter those that are made of it are left out.
    """
    found: dict[str, Path] = {}
    for one in given:
        name, equals, folder = one.partition("=")
        if one == "auto":
            found |= {"beacon": packaged} if packaged else {}
        elif one != "none":
            if not equals or not name or not folder:
                raise ConfigError(f"--adapter is NAME=FOLDER, 'auto' or 'none', not {one!r}")
            whole = folder.removesuffix(ALONE)
            path = packaged if whole == PACKAGED else Path(whole)
            if path is None:
                continue
            if whole != folder:
                from beacon_memory.models.adapter import save_scorer

                save_scorer(path, alone := out / "adapters" / name)
                path = alone
            found[f"beacon-{name}" if not name.startswith("beacon") else name] = path
    return found


def _about(model: str, fingerprint: str, *, seed: int) -> dict[str, Any]:
    """What a result has to say of where it comes from."""
    import platform

    import torch
    import transformers

    from beacon_memory.version import __version__

    command = shlex.join(["beacon-memory", *sys.argv[1:]])
    versions = {"beacon-memory": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return {
        "model": model,
        "fingerprint": fingerprint,
        "seed": seed,
        "device": device,
        "python": platform.python_version(),
        "versions": versions,
        "command": command,
    }


def _print(tables: list[Any]) -> None:
    from rich.console import Console

    console = Console()
    for table in tables:
        console.print(table)
