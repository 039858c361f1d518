"""The benchmarks run, on a tiny model: their numbers mean nothing here, their lines and tables do."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from beacon_memory import BeaconConfig
from beacon_memory.evaluation.items import Task
from beacon_memory.evaluation.reporting.tables import markdown
from beacon_memory.evaluation.retrieval import word_scores
from beacon_memory.models.finder import Finder
from beacon_memory.testing import tiny_model
from benchmarks import families
from benchmarks.quality import found_in_tasks, found_passages, refitted_values
from benchmarks.reports import collect_evaluation, quality_tables

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
LINES = {
    "read",
    "fold",
    "cold turn",
    "hot turn",
    "decode",
    "batched",
    "bytes",
    "growth",
    "import",
    "store turn",
    "store load",
    "peak",
    "profile",
}


def run(module: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("benchmarks") / "tiny.jsonl"
    done = run("speed.run", "--form", "tiny", "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def test_every_line_is_measured_and_says_where(results: Path) -> None:
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert {row["line"] for row in rows} == LINES
    for row in rows:
        assert row["machine"]["cores"]
        assert row["versions"]["torch"]
        assert row["command"].startswith("python -m benchmarks.speed.run --form tiny")
        assert row["ours"] in row["medians"]
        assert all(len(values) >= 1 for values in row["values"].values())
        assert all(one["baseline"] in (None, *row["medians"]) for one in row["against"])


def test_tables_and_plots_are_made_of_the_lines_alone(results: Path, tmp_path: Path) -> None:
    places = {"table": BENCHMARKS / "README.md", "readme": ROOT / "README.md", "redis": ROOT / "docs" / "redis.md"}
    options: list[str | Path] = ["--results", results, "--plots", tmp_path]
    for name, path in places.items():
        options += [f"--{name}", shutil.copy(path, tmp_path / f"{name}.md")]
    first = run("reports.speed_tables", *options)
    assert first.returncode == 0, first.stderr
    table = (tmp_path / "table.md").read_text()
    assert "decoding behind 32 slots" in table
    assert "8,192" not in table.partition("generated: targets")[2].partition("<!-- end -->")[0]
    assert (tmp_path / "time.png").stat().st_size > 0
    assert (tmp_path / "bytes.png").stat().st_size > 0
    assert run("reports.speed_tables", *options).returncode == 0
    assert (tmp_path / "table.md").read_text() == table


def test_an_unknown_group_is_named(tmp_path: Path) -> None:
    done = run("speed.run", "--only", "flod", "--out", tmp_path / "none.jsonl")
    assert done.returncode == 1
    assert "no group 'flod'" in done.stderr
    assert not (tmp_path / "none.jsonl").exists()


def test_the_gpu_script_runs_where_there_is_none(tmp_path: Path) -> None:
    small = ("--lengths", "64", "--slots", "16", "--new", "2", "--sessions", "2")
    done = run("speed.gpu", "--device", "cpu", "--model", "tiny", *small, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert all(row["what"] in (tmp_path / "gpu.md").read_text() for row in rows)


def test_the_finder_and_words_are_counted_beside_each_other_and_ranked_together():
    texts = ["The ship sails.", "A cat slept in the boiler room.", "The door is green."]
    words = word_scores(texts, "Where is the cat?")
    assert words[1] > max(words[0], words[2])
    assert word_scores(texts, "Zebra?") == [0, 0, 0]
    cat = found_in_tasks.Found([2.0, 1.0, 3.0], [0.0, 1.0, 0.0], words, [False, True, False])
    assert not cat.other_words
    assert found_in_tasks.Found([1.0, 2.0, 3.0], [0.0, 1.0, 0.0], words, [True, False, False]).other_words
    heads = Finder(((0, 0),), (1.0,), threshold=2.0)
    ranks = [1 / 61 + 1 / 62, 1 / 62 + 1 / 60, 1 / 60 + 1 / 61]
    assert cat.scores("ranks", heads) == pytest.approx(ranks, rel=0.02)
    assert found_in_tasks.row([cat], heads=heads) == {
        "questions": 1,
        **{"attention@1": 0, "attention@2": 0, "attention again": 0, "words@1": 1, "words@2": 1, "words again": 1},
        **{"both@1": 1, "both@2": 1, "both again": 1, "bm25@1": 1, "bm25@2": 1, "ranks@1": 0, "ranks@2": 1},
    }


def test_refitted_values_are_of_the_same_keys_and_stay_where_the_ridge_is_high():
    model = tiny_model(config=BeaconConfig(window=32, ratio=4, sink=2, anchors="reconstruct"))
    ids = model.encode("The lease ends in May, and the rent is due on the first of the month. " * 2)[:64]

    def first() -> tuple[torch.Tensor, torch.Tensor]:
        window = model.compress(ids, close=True).segments[0]
        return window.keys, window.values

    keys, values = first()
    for ridge, moved in ((0.1, True), (1e9, False)):
        with refitted_values.refitting(ridge):
            others = first()
        assert torch.allclose(others[0], keys, atol=1e-5)
        assert torch.allclose(others[1], values, atol=1e-5) != moved
        assert torch.equal(others[1][..., :2, :], values[..., :2, :])  # sinks
    assert torch.equal(first()[1], values)


def test_found_passages_are_counted_by_their_rank_and_the_threshold():
    def asked(scores: list[float], right: int | None, *, foreign: bool = False) -> found_passages.Asked:
        truth = torch.tensor([place == right for place in range(len(scores))])
        return found_passages.Asked(4, torch.tensor(scores), truth, foreign)

    told = [asked([5.0, 1.0, 0.0], 0), asked([5.0, 4.5, 0.0], 1), asked([1.0, 2.0, 0.5], 1), asked([5.0, 4.0, 0.0], 2)]
    foreign = [asked([5.0, 1.0], None, foreign=True), asked([2.0, 1.0], None, foreign=True)]
    assert found_passages.row([*told, *foreign, asked([9.0, 1.0], None)], 4.0) == {
        "questions": 4,
        "first": 0.5,
        "second": 0.75,
        "read again": 0.25,
        "foreign": 2,
        "false": 0.5,
    }
    nobody = found_passages.row([], 4.0)
    assert (nobody["questions"], nobody["first"]) == (0, 0)


def test_what_was_evaluated_is_gathered_and_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_evaluation, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(collect_evaluation, "DOCS", tmp_path / "docs")
    (tmp_path / "docs").mkdir()
    for name, task in (("F1", "copy"), ("F2", "needle")):
        folder = tmp_path / name
        folder.mkdir()
        about = Task(task, "what it is", "loss", ())
        (folder / "report.md").write_text(markdown([(about, [])], command=f"eval {name}", about={"model": name}))
        (folder / "cells.jsonl").write_text(f'{{"task": "{task}"}}\n')
        (folder / "scores.jsonl").write_text(f"{name} scores\n")
        (folder / f"{task}.png").write_bytes(b"by ratio")
    (tmp_path / "F2" / "needle-heat.png").write_bytes(b"by depth")
    collect_evaluation.collect([tmp_path / "F1", tmp_path / "F2"])
    page = (tmp_path / "docs" / "evaluation.md").read_text()
    assert page.count(collect_evaluation.TITLE) == page.count("bootstrap interval") == 1
    assert page.index("eval F1") < page.index("## copy") < page.index("eval F2") < page.index("## needle")
    plots = {plot.name: plot.read_bytes() for plot in (tmp_path / "docs").glob("*.png")}
    assert plots == {"copy.png": b"by ratio", "needle.png": b"by depth"}
    assert (tmp_path / "results" / "F2.cells.jsonl").read_text() == '{"task": "needle"}\n'
    kept = {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    with pytest.raises(SystemExit, match="nothing was changed"):
        collect_evaluation.collect([tmp_path / "F1", tmp_path / "F3"])
    assert kept == {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    (tmp_path / "again" / "F2").mkdir(parents=True)
    (tmp_path / "again" / "F2" / "scores.jsonl").write_text("newer ones\n")
    collect_evaluation.restore(tmp_path / "again")
    assert (tmp_path / "again" / "F1" / "scores.jsonl").read_text() == "F1 scores\n"
    assert (tmp_path / "again" / "F2" / "scores.jsonl").read_text() == "newer ones\n"


def test_the_tables_of_quality_are_those_of_the_results(tmp_path: Path) -> None:
    said = (BENCHMARKS.parent / "docs" / "ranking.md").read_text()
    page = tmp_path / "ranking.md"
    page.write_text(re.sub(r"(<!-- generated: .*? -->\n).*?(<!-- end -->)", r"\1\2", said, flags=re.DOTALL))
    quality_tables.main(["--page", str(page)])
    for block in (*quality_tables.TABLES, "long 8x", "long 4x"):
        mark = f"<!-- generated: {block} -->"
        written = page.read_text().partition(mark)[2].partition("<!-- end -->")[0]
        assert "**beacons, trained**" in written
        assert written == said.partition(mark)[2].partition("<!-- end -->")[0]


def test_a_method_has_its_figure_at_every_ratio_and_those_of_no_ratio_once() -> None:
    measured = {("full", 1): 0.4, ("control", 4): 3.7, ("beacon", 8): 1.44, ("beacon", 2): 0.33}
    found = {("copy", *key): {"figures": {"loss": {"value": value}}} for key, value in measured.items()}
    rows = list(quality_tables.compared(found, [("copy", "loss", "copy: loss"), ("prose", "kept", "prose")]))
    assert rows[2:] == [
        "| full context | 0.40 | – |",
        "| **beacons, trained** | **0.33 / 1.44** | **–** |",
        "| control: memory of another text, 4x | 3.70 | – |",
        "| aim | 0.4 / 0.9 / 1.6 | 0.95 / 0.88 / 0.80 |",
    ]


def test_a_fold_of_each_family_is_compared_with_its_own_prefill() -> None:
    found = list(families.lines(["smollm3", "gpt_oss"], layers=2, tokens=64, repeats=1))
    assert [row.split(" | ")[0] for row in found[2:]] == ["| `smollm3`", "| `gpt_oss`"]
