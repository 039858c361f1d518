"""Everything that a GPU may change, in one call: folding, a hot turn, decoding and a batch, beside the plain model.

python -m benchmarks.speed.gpu --out DIR                        # on a machine with a CUDA device: gpu.jsonl, gpu.md
python -m benchmarks.speed.gpu --device cpu --model tiny --lengths 256 --slots 32 --out DIR    # to see that it runs
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.utils import is_flash_attn_2_available, is_flash_attn_4_available, logging

from beacon_memory import BeaconConfig, BeaconModel
from beacon_memory.models.generation import end_ids
from beacon_memory.models.resident import ResidentPrefix
from beacon_memory.testing import tiny_model
from benchmarks import synthetic
from benchmarks.baselines import prefill
from benchmarks.bench import BOOK, QUESTION, RATIO
from benchmarks.speed.decode import Ticks


def seconds(act: Callable[[], Any], *, device: torch.device, repeats: int = 5) -> float:
    """The median of some runs, after one to warm up; the device has nothing left to do at either end."""
    found = []
    for turn in range(-1, repeats):
        _wait(device)
        began = time.perf_counter()
        act()
        _wait(device)
        if turn >= 0:
            found.append(time.perf_counter() - began)
    return statistics.median(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flash_attentions() -> list[str]:
    """What transformers calls the kinds of flash-attn that are installed."""
    there = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_4": is_flash_attn_4_available}
    return [name for name, available in there.items() if available()]


def opened(name: str, *, device: torch.device, attention: str, adapter: str) -> BeaconModel:
    """The model where it is measured, in bfloat16 on a GPU."""
    if name == "tiny":
        return tiny_model(config=BeaconConfig(ratio=RATIO, window=32, keep_last=16, anchors="last"))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    how: dict[str, Any] = {"dtype": dtype, "device_map": str(device), "attn_implementation": attention}
    model = BeaconModel.from_pretrained(name, adapter=None if adapter == "none" else adapter, **how)
    model.adapted(model.config.replace(ratio=RATIO))
    return model


def rows(model: BeaconModel, lengths: list[int], slots: list[int], *, new: int, many: int) -> Iterator[dict[str, Any]]:
    """One row for each thing measured: ours, the baseline's, and ours by the baseline's."""
    device = model.lm.device
    text = model.encode(BOOK.read_text(encoding="utf-8"))
    asked, ends = model.encode(QUESTION), end_ids(model.lm)
    for length in lengths:
        ids = (text * -(-length // len(text)))[:length]
        ours = seconds(lambda ids=ids: model.compress(ids, document=True), device=device)
        plain = seconds(lambda ids=ids: prefill(model.lm, ids), device=device)
        yield {"what": f"fold {length} tokens", "ours": ours, "baseline": plain, "against": "plain prefill"}
    for count in slots:
        states = [synthetic.slots(model, count, seed=seed) for seed in range(many)]
        ticks = Ticks(ends)
        model.answers([asked], [states[0]], max_new_tokens=new, constraint=ticks)
        resident, asks = ResidentPrefix(model.empty), itertools.count()
        cold = seconds(lambda s=states[0]: model.answers([asked], [s], max_new_tokens=1), device=device)

        def again(state=states[0], resident=resident, asks=asks) -> object:  # type: ignore[no-untyped-def]
            # Something else each time, or nothing but its last token would be read.
            other = model.encode(f"{next(asks)}. {QUESTION}")
            return model.answers([other], [state], residents=[resident], max_new_tokens=1)

        hot = seconds(again, device=device)
        yield {"what": f"turn behind {count} slots", "ours": hot, "baseline": cold, "against": "slots read anew"}
        yield {"what": f"a token behind {count} slots", "ours": ticks.token, "baseline": None, "against": ""}

        def batched(states=states) -> object:  # type: ignore[no-untyped-def]
            return model.answers([asked] * many, states, max_new_tokens=new, constraint=Ticks(ends))

        def alone(states=states) -> object:  # type: ignore[no-untyped-def]
            return [model.answers([asked], [s], max_new_tokens=new, constraint=Ticks(ends)) for s in states]

        batch, singly = seconds(batched, device=device, repeats=2), seconds(alone, device=device, repeats=2)
        yield {"what": f"{many} sessions, {count} slots", "ours": batch, "baseline": singly, "against": "one by one"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--adapter", default="auto", help="an adapter's folder, auto or none")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--lengths", default="1024,8192,32768")
    parser.add_argument("--slots", default="512,4096")
    parser.add_argument("--new", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--sessions", type=int, default=8, help="in a batch")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    logging.disable_progress_bar()
    device = torch.device(args.device)
    kinds = ["sdpa", *(flash_attentions() if device.type == "cuda" else [])]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    args.out.mkdir(parents=True, exist_ok=True)
    table = ["| | attention | ours, s | baseline, s | ours / baseline |", "|---|---|---|---|---|"]
    with (args.out / "gpu.jsonl").open("w", encoding="utf-8") as file:
        for kind in kinds:
            model = opened(args.model, device=device, attention=kind, adapter=args.adapter)
            lengths, slots = ([int(n) for n in part.split(",")] for part in (args.lengths, args.slots))
            for row in rows(model, lengths, slots, new=args.new, many=args.sessions):
                file.write(json.dumps({"device": name, "torch": torch.__version__, "attention": kind, **row}) + "\n")
                baseline = f"{row['baseline']:.4g} ({row['against']})" if row["baseline"] else ""
                ratio = f"{row['ours'] / row['baseline']:.2f}x" if row["baseline"] else ""
                table.append(f"| {row['what']} | {kind} | {row['ours']:.4g} | {baseline} | {ratio} |")
                print(table[-1], flush=True)
            del model
    (args.out / "gpu.md").write_text("\n".join([f"{name}, torch {torch.__version__}", "", *table, ""]))


if __name__ == "__main__":
    main()
