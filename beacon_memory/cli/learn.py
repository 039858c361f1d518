"""The commands that make a memory better, and measure it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from beacon_memory.cli.terminal import Adapter, Model, placed, progress, quiet, say, steps_bar, waiting

app = typer.Typer()


@app.command("fit-anchors")
def fit_anchors(
    texts: Annotated[list[str], typer.Argument(help="text files to fit on", show_default=False)],
    out: Annotated[Path, typer.Option(help="the folder to write the adapter to")],
    model: Model = "smollm2",
    tokens: Annotated[int, typer.Option(help="how many tokens to look at")] = 33_000,
    seed: Annotated[int, typer.Option(help="which places of the texts")] = 0,
) -> None:
    """Fit the scorer of the 'learned' anchors for any model: minutes on a CPU, no gradient."""
    from beacon_memory.talk.sources import read_source

    read = [read_source(Path(text))[0] for text in texts]
    with waiting(f"loading {model}"):
        from beacon_memory.models.adapter import save_adapter
        from beacon_memory.models.model import BeaconModel
        from beacon_memory.training.fit import fit_anchors as fit

        quiet()
        loaded = BeaconModel.from_pretrained(model, adapter=None, **placed())
    with progress("fitting", tokens) as advance:
        fit(loaded, read, tokens=tokens, seed=seed, progress=advance)
    save_adapter(loaded.beacons, out, config=loaded.config, model=loaded.fingerprint.model)
    say(f"adapter written to {out}")


@app.command("fit-finder")
def fit_finder(
    files: Annotated[
        list[Path], typer.Argument(help="texts, JSONL dialogues or questions, or folders of them", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="the folder to write the adapter to, with its finder")],
    model: Model = "smollm2",
    adapter: Adapter = "auto",
    memories: Annotated[int, typer.Option(help="memories to look at; each is asked a dozen questions")] = 60,
    seed: Annotated[int, typer.Option(help="which places of the texts, and which questions")] = 0,
) -> None:
    """Fit what finds passages in a memory, so that they can be read again: minutes on a CPU, no gradient."""
    from beacon_memory.training.data import read_corpus

    corpus = read_corpus(files)
    with waiting(f"loading {model}"):
        from beacon_memory.models.adapter import save_adapter
        from beacon_memory.models.model import BeaconModel
        from beacon_memory.training.finder import fit_finder as fit

        quiet()
        loaded = BeaconModel.from_pretrained(model, adapter=None if adapter == "none" else adapter, **placed())
    with progress("fitting", memories, unit="memories") as advance:
        finder = fit(loaded, corpus, memories=memories, seed=seed, progress=advance)
    save_adapter(loaded.beacons, out, config=loaded.config, model=loaded.fingerprint.model)
    finder.write(out, model=loaded.fingerprint.model)
    heads = ", ".join(f"{layer}.{head}" for layer, head in finder.heads)
    say(f"adapter written to {out}; heads that find (layer.head, the strongest first): {heads}")


@app.command()
def train(
    files: Annotated[
        list[Path], typer.Argument(help="texts, JSONL dialogues or questions, or folders of them", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="the run's folder, which becomes the adapter")],
    model: Model = "smollm2",
    start: Annotated[
        str, typer.Option("--adapter", help="the adapter to begin with: a folder, 'auto' or 'none'")
    ] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="go on from the newest checkpoint in --out")] = False,
    layout: Annotated[
        str | None, typer.Option(help="select, shadow or interleave", show_default="the adapter's")
    ] = None,
    anchors: Annotated[str | None, typer.Option(help="as for add", show_default="the adapter's, else learned")] = None,
    steps: Annotated[int, typer.Option(help="optimizer steps")] = 1000,
    learn: Annotated[str, typer.Option(help="beacons, or anchors: the scorer")] = "beacons",
    learning_rate: Annotated[float, typer.Option("--lr", help="the highest learning rate")] = 3e-3,
    schedule: Annotated[str, typer.Option(help="cosine, linear, constant_with_warmup, …")] = "cosine",
    rank: Annotated[int, typer.Option(help="of the low-rank deltas; 0 trains full projections")] = 32,
    reach: Annotated[int, typer.Option(help="rows around its anchor that a slot sees (layout select)")] = 2,
    windows: Annotated[str, typer.Option(help="tokens of a window, one drawn per example")] = "64,128,256",
    depth: Annotated[int, typer.Option(help="windows of an example, at most")] = 2,
    overlap: Annotated[
        int | None, typer.Option(help="tokens of the window before read again", show_default="the adapter's")
    ] = None,
    through: Annotated[
        int | None, typer.Option(help="newest windows through whose reading gradients flow", show_default="all")
    ] = None,
    tail: Annotated[int, typer.Option(help="tokens read behind a context, at most")] = 128,
    ratios: Annotated[str, typer.Option(help="ratios, one drawn per window")] = "2,4,8",
    batch: Annotated[int, typer.Option(help="contexts of an example")] = 1,
    accumulate: Annotated[int, typer.Option(help="examples of a step")] = 1,
    text: Annotated[
        float | None, typer.Option(help="share of examples from texts", show_default="by the files")
    ] = None,
    question: Annotated[float | None, typer.Option(help="share of examples with questions", show_default="…")] = None,
    dialogue: Annotated[float | None, typer.Option(help="share of examples from dialogues", show_default="…")] = None,
    fact: Annotated[float, typer.Option(help="share of examples with made-up facts in a text (English)")] = 0.0,
    chat: Annotated[float, typer.Option(help="share of examples with facts told in passing in a talk (English)")] = 0.0,
    near: Annotated[float, typer.Option(help="share of examples read behind a text of something else (English)")] = 0.0,
    again: Annotated[bool, typer.Option(help="read folded text again (auto-encoding)")] = True,
    next_token: Annotated[float, typer.Option(help="weight of the next-token loss")] = 0.2,
    answers: Annotated[float, typer.Option(help="weight of the next-token loss of answers, on top")] = 0.0,
    teacher: Annotated[float, typer.Option(help="weight of the KL from the full context")] = 1.0,
    hidden: Annotated[float, typer.Option(help="weight of the states' cosine to the full context's")] = 0.0,
    context: Annotated[float, typer.Option(help="weight of the tokens of later windows; tails have 1")] = 0.25,
    save_every: Annotated[int, typer.Option(help="steps between checkpoints")] = 50,
    checkpointing: Annotated[bool, typer.Option(help="less memory, more time")] = False,
    workers: Annotated[int, typer.Option(help="processes that make examples; a GPU wants some")] = 0,
    seed: Annotated[int, typer.Option(help="which examples, in which order")] = 0,
) -> None:
    """Train beacons on local files; interrupt it when you like and --resume."""
    from beacon_memory.errors import ConfigError
    from beacon_memory.training.data import read_corpus

    corpus = read_corpus(files)
    with waiting(f"loading {model}"):
        from beacon_memory.models.model import BeaconModel
        from beacon_memory.training.examples import Mixture
        from beacon_memory.training.objective import Weights
        from beacon_memory.training.trainer import Plan, settings
        from beacon_memory.training.trainer import train as run

        quiet()
        try:
            mixture = Mixture(
                text=float(bool(corpus.texts)) if text is None else text,
                question=0.5 * bool(corpus.documents) if question is None else question,
                dialogue=0.5 * bool(corpus.dialogues) if dialogue is None else dialogue,
                fact=fact,
                chat=chat,
                near=near,
                windows=tuple(int(part) for part in windows.split(",")),
                ratios=tuple(int(part) for part in ratios.split(",")),
                depth=depth,
                tail=tail,
                batch=batch,
                again=again,
            )
        except ValueError as exc:
            raise ConfigError(f"--windows and --ratios are numbers with commas between them: {exc}") from exc
        loaded = BeaconModel.from_pretrained(model, adapter=None if start == "none" else start, **placed())
        loaded.adapted(settings(loaded, layout=layout, anchors=anchors, overlap=overlap))
    plan = Plan(
        steps=steps,
        learn=learn,
        learning_rate=learning_rate,
        schedule=schedule,
        rank=rank,
        reach=reach if loaded.config.layout == "select" else 0,
        through=through,
        accumulate=accumulate,
        save_every=save_every,
        checkpointing=checkpointing,
        workers=workers,
        seed=seed,
    )
    weights = Weights(next_token=next_token, teacher=teacher, hidden=hidden, context=context, answers=answers)
    say(f"training on {corpus}")
    with steps_bar(steps) as moved:
        try:
            run(loaded, corpus, out, plan=plan, mixture=mixture, weights=weights, resume=resume, progress=moved)
        except KeyboardInterrupt:
            say(f"stopped; the same command with --resume goes on from the newest checkpoint in {out}")
            raise
    say(f"adapter written to {out}")
