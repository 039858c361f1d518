"""Peak memory of folding, each length in a process of its own: above the loaded model, and without the slots kept.

python -m benchmarks.speed.peak_memory --tokens 8192    # one length, its numbers as JSON
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from transformers.utils import logging

from benchmarks.baselines import prefill
from benchmarks.bench import BOOK, FORMS, Bench
from benchmarks.record import HERE, Against, Result

OURS, PLAIN = "beacon fold", "plain prefill"
RATIO = 32  # 128K tokens in 4,096 slots: what the model has positions for


def lines(bench: Bench) -> Iterator[Result]:
    """One result a length; the plain prefill beside the shortest."""
    shortest = min(bench.form.peak)
    for tokens in bench.cases("peak", bench.form.peak):
        bench.told(f"peak memory of {tokens} tokens")
        ours = _child(bench, tokens, "fold")
        values = {OURS: [ours["above"] / 2**20], "slots": [ours["slots_bytes"] / 2**20]}
        if tokens == shortest:
            values[PLAIN] = [_child(bench, tokens, "read")["above"] / 2**20]
        facts = {"tokens": tokens, "ratio": RATIO, **ours}
        against = [Against(name) for name in values if name != OURS]
        yield Result("peak", str(tokens), OURS, values, against, unit="MiB", facts=facts)


def _child(bench: Bench, tokens: int, what: str) -> dict[str, int]:
    command = [sys.executable, "-m", __spec__.name, "--tokens", str(tokens), "--what", what, "--model", bench.name]
    done = subprocess.run(command, cwd=HERE.parent, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


def resident(name: str) -> int:
    """Bytes: "VmRSS" is what this process holds, "VmHWM" the most it has held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--what", choices=("fold", "read"), default="fold")
    parser.add_argument("--model", default="smollm2")
    args = parser.parse_args()
    logging.disable_progress_bar()
    bench = Bench(FORMS["full"], model=args.model, text=BOOK, out=Path(), console=Console(stderr=True))
    model, ids, slots = bench.model, bench.ids(args.tokens), 0
    lm = model.detach() if args.what == "read" else None
    before = resident("VmRSS")
    # From here on the most that is held is this work's, not the loading's.
    Path("/proc/self/clear_refs").write_text("5")
    if lm is not None:
        prefill(lm, ids)
    else:
        slots = model.compress(ids, ratio=RATIO, document=True).nbytes
    peak = resident("VmHWM")
    print(json.dumps({"loaded": before, "peak": peak, "above": peak - before, "slots_bytes": slots}))


if __name__ == "__main__":
    main()
