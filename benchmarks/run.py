"""The benchmarks of speed and size: each result a JSON line, from which table.py makes the tables and plots.

python benchmarks/run.py                                # what takes under ten minutes on two cores
python benchmarks/run.py --form full --only read        # group by group, or a group's cases: fold:1024,fold:8192,turn
python benchmarks/table.py                              # benchmarks/README.md, docs/*.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import decode
import fold
import growth
import peak
import size
import start
import store
import together
import turn
import where
from bench import BOOK, FORMS, Bench
from record import HERE, Result
from rich.console import Console
from transformers.utils import logging

GROUPS: dict[str, Callable[[Bench], Iterator[Result]]] = {
    "read": fold.read,
    "fold": fold.lines,
    "turn": turn.lines,
    "decode": decode.lines,
    "together": together.lines,
    "size": size.lines,
    "growth": growth.lines,
    "start": start.lines,
    "store": store.lines,
    "peak": peak.lines,
    "profile": where.lines,
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
