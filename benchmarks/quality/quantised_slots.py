"""What slots in 8 and 4 bits cost in loss: the same slots, kept in each form, in front of the same text.

As in next_token_loss.py, at the same places: 256 tokens are folded at 4x and the next 128 scored (`prose`), 128 tokens
are folded and scored again (`copy`).

    python -m benchmarks.quality.quantised_slots --texts DIR_OF_TXT --places 64 --out benchmarks/results/quantised.json
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from beacon_memory import BeaconConfig, BeaconModel, BeaconState, Segment
from beacon_memory.state.codec import encode_segment
from beacon_memory.state.quantise import BITS, pack
from benchmarks.quality.next_token_loss import FOLDED, SCORED, interval, loss, places
from benchmarks.record import stamp

FORMS = ("float32", "bfloat16", "int8", "int4")


def kept(segment: Segment, form: str) -> Segment:
    """The segment as it comes back from a store that keeps its slots in this form."""
    if form in BITS:
        return replace(segment, kept=pack(segment.keys, segment.values, sink=segment.sink, dtype=form))
    keys, values = (t.to(getattr(torch, form)) for t in (segment.keys, segment.values))
    return replace(segment, kept=(keys, values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--texts", type=Path, required=True, help="a folder of .txt files")
    parser.add_argument("--held-out", type=int, default=10, help="how many of them, the last by name")
    parser.add_argument("--places", type=int, default=64)
    parser.add_argument("--ratio", type=int, default=4)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    torch.manual_seed(0)
    model = BeaconModel.from_pretrained(args.model)
    model.adapted(model.config.replace(window=FOLDED, ratio=args.ratio, slot_dtype="float32"))
    prose: dict[str, list[float]] = {form: [] for form in FORMS}
    copy: dict[str, list[float]] = {form: [] for form in FORMS}
    size: dict[str, int] = {}
    for number, ids in enumerate(places(model, args.texts, held_out=args.held_out, count=args.places), 1):
        read = model.compress(ids[:FOLDED], close=True)
        again = model.compress(ids[:SCORED], close=True)
        for form in FORMS:
            for state, text, out in ((read, ids[FOLDED:], prose), (again, ids[:SCORED], copy)):
                as_kept = BeaconState(tuple(kept(segment, form) for segment in state.segments))
                out[form].append(loss(model, text, as_kept))
            config = BeaconConfig(slot_dtype=form)
            (segment,) = (kept(segment, form) for segment in read.segments)
            size[form] = len(encode_segment(segment, fingerprint=model.fingerprint, config=config))
        print(f"{number} of {args.places}", file=sys.stderr, end="\r", flush=True)
    rows = {}
    for form in FORMS:
        change = [b - a for a, b in zip(prose["float32"], prose[form], strict=True)]
        rows[form] = {
            "bytes": size[form],
            "prose": sum(prose[form]) / args.places,
            "copy": sum(copy[form]) / args.places,
            "change": sum(change) / args.places,
            "change_interval": interval(change),
        }
        print(
            f"{form:>9} {size[form]:>9,} bytes  prose {rows[form]['prose']:.4f} ({rows[form]['change']:+.4f} "
            f"± {rows[form]['change_interval']:.4f})  copy {rows[form]['copy']:.4f}"
        )
    if args.out:
        args.out.write_text(
            json.dumps({"places": args.places, "ratio": args.ratio, "rows": rows, **stamp()}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
