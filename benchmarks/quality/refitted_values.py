"""What untrained slots are worth with their values refitted, in closed form (the last step of Attention Matching,
2602.16284): keys and positions as `reconstruct` keeps them, values such that the queries of tokens that look back get
what they got from the whole window. As in next_token_loss.py, at the same places: 256 tokens are folded and the next
128 scored (`prose`), 128 tokens are folded and scored again (`copy`); `control` has another text folded.

    python -m benchmarks.quality.refitted_values --texts DIR_OF_TXT --places 24 --ratios 4,8,16
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from beacon_memory import BeaconConfig, BeaconModel, BeaconState
from beacon_memory.fold import fold as folding
from beacon_memory.fold.anchors import pick
from beacon_memory.fold.attention import Beacons
from beacon_memory.fold.fold import Folded, embed, read, stacked
from beacon_memory.fold.passes import Enough, LookBackPass, RawPass
from beacon_memory.fold.prefix import Prefix
from beacon_memory.fold.projections import Attend, rows_at
from benchmarks.quality.next_token_loss import FOLDED, SCORED, interval, loss, places
from benchmarks.record import stamp

RIDGE = 0.1  # of the mean square of a slot's shares: how little values move where no query looks


class RefitPass(LookBackPass):
    """The window read again; in each layer slots are chosen, and their values refitted to what the queries got."""

    def __init__(self, first: RawPass, rows: int, *, sink: int, ratio: int, ridge: float) -> None:
        super().__init__(first, rows)
        self._sink, self._ratio, self._ridge = sink, ratio, ridge
        self.kept: dict[int, Tensor] = {}  # layer -> (1, kv_heads, sink + slots): rows of the window
        self.values: dict[int, Tensor] = {}  # layer -> (1, kv_heads, sink + slots, head_dim)

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        ended = None
        try:
            attended = super().attend(module, query, key, value, attend)
        except Enough as enough:
            ended = enough
        layer = int(module.beacon_index)
        scores = self.scores[layer][..., self._sink :]
        chosen = pick(
            (("reconstruct", 1.0),),
            {"reconstruct": scores},
            tokens=scores.shape[-1],
            ratio=self._ratio,
            device=query.device,
        )
        sinks = torch.arange(self._sink, device=query.device).expand(*chosen.shape[:2], -1)
        self.kept[layer] = torch.cat([sinks, chosen + self._sink], dim=-1)
        self.values[layer] = self._refitted(query * module.scaling, key, value, layer)
        if ended is not None:
            raise ended
        return attended

    def _refitted(self, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """A ridge regression for each KV head.  # (1, kv_heads, sink + slots, head_dim)"""
        assert self.first.rotated is not None
        keys, values = self.first.rotated[layer]
        kept, (_, kv_heads, rows, width) = self.kept[layer], keys.shape
        queries = query.reshape(1, kv_heads, -1, width)
        window = queries @ keys.transpose(2, 3)
        others = queries @ self.past.join(layer, key, value)[0].transpose(2, 3)  # sinks of the past, and the rows
        others.unflatten(2, (-1, key.shape[2]))[..., -key.shape[2] :] += self._behind(None)
        before = self.first.past.slots + rows - kept.shape[-1]  # so that slots are as far from a query as when served
        positions = torch.arange(kept.shape[-1]) + before
        slots = self.past.rope.rotate_at(
            rows_at(self.first.keys[layer], kept), positions.expand(kept.shape), layer=layer
        )
        told = window.logsumexp(dim=-1, keepdim=True)
        weight = torch.sigmoid(told - others.logsumexp(dim=-1, keepdim=True))  # the window's share of what a query gets
        old = rows_at(values, kept)
        shares = (queries @ slots.transpose(2, 3)).softmax(dim=-1) * weight
        lacking = (window.softmax(dim=-1) @ values) * weight - shares @ old
        shares = shares[..., self._sink :]
        square = shares.transpose(2, 3) @ shares
        ridge = self._ridge * square.diagonal(dim1=2, dim2=3).mean(dim=-1)[..., None, None]
        moved = torch.linalg.solve(square + ridge * torch.eye(square.shape[-1]), shares.transpose(2, 3) @ lacking)
        return torch.cat([old[:, :, : self._sink], old[:, :, self._sink :] + moved], dim=2)


def refitted(
    beacons: Beacons,
    past: Prefix,
    ids: Tensor,
    *,
    ratio: int,
    sink: int,
    config: BeaconConfig,
    states: bool,
    ridge: float = RIDGE,
) -> Folded:
    """The layout `select` with `reconstruct`, its values refitted; untrained."""
    rows, embedded = ids.shape[1], embed(beacons.lm, ids)
    raw = RawPass(past, rows, rotated=True)
    hidden = read(beacons.lm, raw, embedded, torch.arange(rows) + past.slots)
    again = RefitPass(raw, rows, sink=sink, ratio=ratio, ridge=ridge)
    read(beacons.lm, again, embedded, torch.arange(rows) + past.slots + rows)
    keys = {layer: rows_at(raw.keys[layer], kept) for layer, kept in again.kept.items()}
    at = stacked({layer: kept[..., sink:, None] - sink for layer, kept in again.kept.items()})[..., 0]
    return Folded(stacked(keys), stacked(again.values), hidden, raw, at, raw.recurrent)


@contextmanager
def refitting(ridge: float = RIDGE) -> Iterator[None]:
    """Folds refit their values within it."""
    before = folding._LAYOUTS["select"]
    folding._LAYOUTS["select"] = partial(refitted, ridge=ridge)
    try:
        yield
    finally:
        folding._LAYOUTS["select"] = before


def measured(model: BeaconModel, found: list[list[int]], *, ratio: int) -> dict[str, list[float]]:
    """The loss at each place: of what follows, of the text again, and of what follows behind another text."""
    model.adapted(BeaconConfig(window=FOLDED, ratio=ratio, layout="select", anchors="reconstruct"))
    losses: dict[str, list[float]] = {"prose": [], "copy": [], "control": []}
    with torch.inference_mode():
        states = [
            model.compress(ids[:FOLDED], close=True) for ids in track(found, description=f"{ratio}x", transient=True)
        ]
        for place, ids in enumerate(found):
            losses["prose"].append(loss(model, ids[FOLDED:], states[place]))
            losses["control"].append(loss(model, ids[FOLDED:], states[place - 1]))
            losses["copy"].append(loss(model, ids[:SCORED], model.compress(ids[:SCORED], close=True)))
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--texts", type=Path, required=True, help="a folder of .txt files")
    parser.add_argument("--held-out", type=int, default=10, help="how many of them, the last by name")
    parser.add_argument("--places", type=int, default=24)
    parser.add_argument("--ratios", default="4,8,16")
    parser.add_argument("--ridge", type=float, default=RIDGE)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    model = BeaconModel.from_pretrained(args.model, adapter=None)
    found = places(model, args.texts, held_out=args.held_out, count=args.places)
    whole = measured(model, found, ratio=1)["prose"]
    nothing = [loss(model, ids[FOLDED:], BeaconState()) for ids in found]
    gap = sum(nothing) - sum(whole)
    rows: dict[str, dict[str, float]] = {}
    for ratio in map(int, args.ratios.split(",")):
        rows[f"{ratio}x"] = _row(measured(model, found, ratio=ratio), nothing, gap)
        with refitting(args.ridge):
            rows[f"{ratio}x, refitted"] = _row(measured(model, found, ratio=ratio), nothing, gap)
    for name, row in rows.items():
        print(f"{name:>15}", "  ".join(f"{what} {value:.3f}" for what, value in row.items()))
    if args.out:
        args.out.write_text(json.dumps({"places": args.places, "rows": rows, **stamp()}, indent=1) + "\n")


def _row(losses: dict[str, list[float]], nothing: list[float], gap: float) -> dict[str, float]:
    """The shares of the gap between nothing and the whole text that are kept, and the loss of the text again."""

    def kept(behind: list[float]) -> float:
        return (sum(nothing) - sum(behind)) / gap

    wide = interval([(none - own) * len(nothing) / gap for none, own in zip(nothing, losses["prose"], strict=True)])
    return {
        "prose kept": kept(losses["prose"]),
        "±": wide,
        "control kept": kept(losses["control"]),
        "copy": sum(losses["copy"]) / len(losses["copy"]),
    }


if __name__ == "__main__":
    main()
