"""The commands that make a memory better, and measure it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from beacon_memory.cli.terminal import Model, progress, quiet, say, waiting

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
    from beacon_memory.sources import read_source

    read = [read_source(Path(text))[0] for text in texts]
    with waiting(f"loading {model}"):
        from beacon_memory.adapter import save_adapter
        from beacon_memory.model import BeaconModel
        from beacon_memory.training.fit import fit_anchors as fit

        quiet()
        loaded = BeaconModel.from_pretrained(model, adapter=None)
    with progress("fitting", tokens) as advance:
        fit(loaded, read, tokens=tokens, seed=seed, progress=advance)
    save_adapter(loaded.beacons, out, config=loaded.config, model=loaded.fingerprint.model)
    say(f"adapter written to {out}")
