"""The command `beacon-memory eval`: from a checkpoint to tables, records and pictures, and again without work."""

from __future__ import annotations

import json

import pytest

from beacon_memory import BeaconModel
from beacon_memory.models.adapter import save_adapter
from beacon_memory.testing import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_checkpoint(tmp_path_factory.mktemp("model")))


@pytest.fixture
def measure(checkpoint, command):
    """Run `beacon-memory eval`; gives its exit code, stdout and stderr."""

    def measure(*args: str) -> tuple[int, str, str]:
        return command("eval", "--model", checkpoint, *args)

    return measure


def test_a_newcomer_measures_an_adapter_without_data(measure, checkpoint, tmp_path):
    model = BeaconModel.from_pretrained(checkpoint)
    for layer in model.beacons.layers:
        layer["k"].make_scorer(2)
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    config = model.config.replace(anchors="learned")
    save_adapter(model.beacons, adapter, config=config, model=model.fingerprint.model)
    asked = ("--quick", "--items", "2", "--lengths", "300", "--ratios", "4", "--adapter", f"mine={adapter}")
    asked = (*asked, "--tasks", "prose,needle")
    code, table, said = measure("--out", str(out), *asked)
    assert (code, said) == (0, f"cells.jsonl, report.md and plots are in {out}\n")
    for word in ("prose: kept", "needle: accuracy", "bm25", "beacon-mine", "Control"):
        assert word in table
    cells = [json.loads(line) for line in (out / "cells.jsonl").read_text().splitlines()]
    assert len(cells) == 2 * 9
    own = next(cell for cell in cells if (cell["task"], cell["method"]) == ("prose", "beacon-mine"))
    assert (own["ratio"], own["items"], own["contexts"], own["entries"]) == (4, 2, 2, 67)
    assert own["interval"][0] <= own["value"] <= own["interval"][1]
    assert own["command"].startswith("beacon-memory eval --model")
    assert own["weights"] != next(cell["weights"] for cell in cells if cell["method"] == "full")
    assert {cell["entries"] for cell in cells if cell["task"] == "prose" and cell["ratio"] == 4} == {67}
    report = (out / "report.md").read_text()
    assert "| beacon-mine |" in report
    assert "300 tokens, depth 0.5" in report
    for name in ("prose", "needle", "needle-heat"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    scores = (out / "scores.jsonl").read_bytes()
    again = measure("--out", str(out), *asked)
    assert again == (0, table, said)
    assert (out / "scores.jsonl").read_bytes() == scores


def test_answers_are_written_with_an_adapter_and_with_its_scorer_alone(measure, checkpoint, tmp_path):
    model = BeaconModel.from_pretrained(checkpoint)
    for layer in model.beacons.layers:
        layer["k"].make_scorer(2)
        layer["v"].make_low_rank(2)
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    save_adapter(model.beacons, adapter, config=model.config.replace(anchors="learned"), model=model.fingerprint.model)
    asked = ("--out", str(out), "--tasks", "needle", "--items", "2", "--lengths", "300", "--ratios", "4")
    asked = (*asked, "--methods", "full,none,beacon", "--answers", "written")
    asked = (*asked, "--adapter", f"whole={adapter}", "--adapter", f"scorer={adapter}:scorer")
    code, table, _ = measure(*asked)
    assert code == 0
    assert "needle: said" in table
    assert "needle: accuracy" not in table
    cells = {cell["method"]: cell for cell in map(json.loads, (out / "cells.jsonl").read_text().splitlines())}
    assert list(cells) == ["full", "none", "beacon-whole", "beacon-scorer"]
    assert cells["beacon-whole"]["weights"] != cells["beacon-scorer"]["weights"]
    assert {cell["metric"] for cell in cells.values()} == {"said"}
    assert cells["full"]["figures"].keys() == {"said", "said_share", "f1"}
    assert {path.name for path in (out / "adapters" / "scorer").iterdir()} == {
        "adapter.safetensors",
        "adapter_config.json",
    }
    assert measure(*asked)[:2] == (0, table)
    assert "needle. Seconds a cell (a question): full " in table
    assert "Seconds a cell (a question): full " in (out / "report.md").read_text()
    # Ranked answers come beside the written ones, which are not written again.
    code, table, _ = measure(*asked[:-6], *asked[-4:])
    assert code == 0
    assert table.index("needle: said") < table.index("needle: accuracy")


def test_an_adapter_that_does_not_come_with_the_model_is_left_out(measure, tmp_path):
    asked = ("--out", str(tmp_path), "--tasks", "needle", "--items", "1", "--lengths", "300", "--ratios", "4")
    code, table, said = measure(*asked, "--methods", "none,beacon", "--adapter", "scorer=packaged:scorer")
    assert code == 0
    assert "beacon-scorer" not in table
    assert "no adapter comes with" in said


def test_what_cannot_be_measured_is_one_line_and_exit_2(measure, tmp_path):
    out = ("--out", str(tmp_path / "out"))
    bad = [
        (*out, "--tasks", "poetry"),
        (*out, "--methods", "full,magic"),
        (*out, "--ratios", "four"),
        (*out, "--ratios", "1"),
        (*out, "--answers", "spoken"),
        (*out, "--answers", ""),
        (*out, "--tasks", "prose", "--answers", "written"),
        (*out, "--tasks", "chat"),
        (*out, "--tasks", "near", "--data", str(tmp_path)),
        (*out, "--adapter", f"mine={tmp_path / 'nowhere'}:scorer"),
        (*out, "--adapter", "folder"),
        (*out, "--adapter", f"mine={tmp_path / 'nowhere'}"),
        (*out, "--tasks", "qa"),
        (*out, "--tasks", "qa", "--data", str(tmp_path)),
        ("--out", "/proc/no/such/folder"),
    ]
    for args in bad:
        code, table, said = measure(*args)
        assert (code, table) == (2, ""), args
        assert said.startswith("beacon-memory: "), args
        assert said.count("\n") == 1, (args, said)
