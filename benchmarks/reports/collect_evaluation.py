"""What `beacon-memory eval` measured, folder by folder, put where it lasts: docs/evaluation.md and its plots, and in
results/evaluation/ a line for each cell and the scores of each item, from which a later run can go on;
and the tables of docs/ranking.md (quality_tables.py).

    python -m benchmarks.reports.collect_evaluation F1 F2 F3         # after eval --out F1, ...
    python -m benchmarks.reports.collect_evaluation --restore RUNS   # eval --out RUNS/F1 then measures only what is new
"""

from __future__ import annotations

import argparse
import gzip
import re
from collections.abc import Sequence
from pathlib import Path

from beacon_memory.evaluation.reporting.tables import TITLE
from benchmarks.record import HERE
from benchmarks.reports import quality_tables
from benchmarks.reports.quality_tables import RESULTS

DOCS = HERE.parent / "docs"
INTRO = """\
The default adapter of SmolLM2-135M-Instruct beside its baselines, each at the same number of KV entries. DATA is a
folder laid out as `beacon-memory eval --help` says; SCORER one with the scorer alone: the adapter that `beacon-memory
fit-anchors` writes; INTERLEAVE the paper's layout, trained as in benchmarks/LOG.md. A cell has 200 questions, or as
many as its `--items`: a machine of two cores takes hours for all.
A line for each cell and the scores of each item are in `benchmarks/results/evaluation/`; `eval` goes on from them after

<!-- not run: after hours of evaluation -->
```sh
python -m benchmarks.reports.collect_evaluation --restore RUNS
```
"""
# The picture of its task.
PLOTS = {"needle-heat.png": "needle.png", "long-length.png": "long.png", "near-slots.png": "near.png"}
SCORES = ".scores.jsonl.gz"
INSTEAD = ("needle.png", "long.png", "near.png")  # the same by ratio, which has one


def page(reports: Sequence[str]) -> str:
    """One page of several: what each begins and ends with alike stands there once."""
    parts, notes = [TITLE, INTRO.strip()], []
    for report in reports:
        *body, note = report.strip().removeprefix(TITLE).strip().split("\n\n")
        parts += [re.sub(r"^```\n", "<!-- not run: hours -->\n```sh\n", part) for part in body]  # tests run the others
        notes.append(note)
    return "\n\n".join([*parts, *dict.fromkeys(notes)]) + "\n"


def collect(folders: Sequence[Path]) -> None:
    """Write all that lasts of these folders, in place of what was collected before; read all of it first."""
    if len({folder.name for folder in folders}) < len(folders):
        raise SystemExit("two folders of one name: rename one")
    files: dict[Path, bytes] = {}
    try:
        text = page([(folder / "report.md").read_text() for folder in folders])
        files[DOCS / "evaluation.md"] = text.encode()
        for folder in folders:
            files[RESULTS / f"{folder.name}.cells.jsonl"] = (folder / "cells.jsonl").read_bytes()
            packed = gzip.compress((folder / "scores.jsonl").read_bytes(), mtime=0)  # equal scores, equal bytes
            files[RESULTS / f"{folder.name}{SCORES}"] = packed
            for plot in sorted(folder.glob("*.png")):
                if plot.name not in INSTEAD:
                    files[DOCS / PLOTS.get(plot.name, plot.name)] = plot.read_bytes()
    except OSError as exc:
        raise SystemExit(f"{exc}: not a folder that eval has left; nothing was changed") from exc
    for old in RESULTS.glob("*.jsonl*"):
        if old not in files:
            print(f"{old.name} is collected no more: {old} stays, remove it by hand")
    RESULTS.mkdir(parents=True, exist_ok=True)
    for path, data in files.items():
        path.write_bytes(data)


def restore(runs: Path) -> None:
    """A folder for each that was collected, from which eval goes on; one that is there already is left as it is."""
    for packed in sorted(RESULTS.glob(f"*{SCORES}")):
        scores = runs / packed.name.removesuffix(SCORES) / "scores.jsonl"
        if scores.exists():
            print(f"{scores} is there already: left as it is")
            continue
        scores.parent.mkdir(parents=True, exist_ok=True)
        scores.write_bytes(gzip.decompress(packed.read_bytes()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--restore", type=Path, metavar="RUNS")
    args = parser.parse_args()
    if bool(args.folders) == bool(args.restore):
        parser.error("give folders of eval, or --restore and a folder for them")
    if args.restore:
        restore(args.restore)
    else:
        collect(args.folders)
        quality_tables.main([])


if __name__ == "__main__":
    main()
