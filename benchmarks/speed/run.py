"""The benchmarks of speed and size: each result is a JSON line, and benchmarks.reports makes tables and plots of them.

python -m benchmarks.speed.run                            # what takes under ten minutes on two cores
python -m benchmarks.speed.run --form full --only read    # group by group, or a group's cases: fold:1024,turn
python -m benchmarks.reports.speed_tables                 # benchmarks/README.md, docs/*.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from transformers.utils import logging

from benchmarks.bench import BOOK, FORMS, Bench
from benchmarks.record import HERE, Result
from benchmarks.speed import batched, decode, fold, import_time, peak_memory, profiles, turn
from benchmarks.stores import bytes_per_token, redis_costs, session_growth

GROUPS: dict[str, Callable[[Bench], Iterator[Result]]] = {
    "read": fold.read,
    "fold": fold.lines,
    "turn": turn.lines,
    "decode": decode.lines,
    "batched": batched.lines,
    "size": bytes_per_token.lines,
    "growth": session_growth.lines,
    "import": import_time.lines,
    "store": redis_costs.lines,
    "peak": peak_memory.lines,
    "profile": profiles.lines,
}
MINUTES = ("read", "profile")  # groups that the quick form leaves out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=tuple(FORMS), default="quick")
    parser.add_argument("--only", default="", help=f"of {', '.join(GROUPS)}; group:case for one case")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--texts", type=Path, default=BOOK, help="a UTF-8 text file, repeated as often as it takes")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/speed.jsonl, quick.jsonl for quick")
    args = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()

    form = FORMS[args.form]
    out = args.out or HERE / "results" / ("speed.jsonl" if form.name == "full" else f"{form.name}.jsonl")
    model = "tiny" if form.name == "tiny" else args.model
    bench = Bench(form, model=model, text=args.texts, out=out, console=Console(stderr=True))
    for part in filter(None, args.only.split(",")):
        group, _, case = part.partition(":")
        if group not in GROUPS:
            sys.exit(f"no group {group!r}: choose among {', '.join(GROUPS)}")
        bench.only.setdefault(group, set()).update([case] if case else [])
    groups = list(bench.only) or [name for name in GROUPS if form.name != "quick" or name not in MINUTES]
    with bench:
        for group in groups:
            for result in GROUPS[group](bench):
                bench.keep(result)


if __name__ == "__main__":
    main()
