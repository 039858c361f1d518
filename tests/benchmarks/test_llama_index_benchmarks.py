"""The benchmarks of the index run and go on where they stopped, on a tiny model: their numbers mean nothing here."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from llama_index.core.instrumentation import get_dispatcher

from beacon_memory.testing import tiny_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a file of two stories."""
    folder = tmp_path_factory.mktemp("stories")
    tiny_checkpoint(folder / "model", max_position_embeddings=4096)
    questions = [{"question": f"What is door {i}?", "answer": ["green"], "section": "1"} for i in range(5)]
    stories = [
        {"story": name, "sections": [f"Door {i} of {name} is green. " * 6 for i in range(4)], "questions": questions}
        for name in ("one", "two")
    ]
    (folder / "val.jsonl").write_text("".join(json.dumps(story) + "\n" for story in stories))
    return folder


@pytest.fixture
def run(data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a benchmark on them; gives its table."""
    monkeypatch.setattr(get_dispatcher(), "event_handlers", [])

    def ran(module: str, *args: str | Path) -> str:
        command = [module, "--model", data / "model", "--data", data / "val.jsonl", *args]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        runpy.run_module(f"benchmarks.quality.{module}", run_name="__main__", alter_sys=True)
        return capsys.readouterr().out

    return ran


def test_every_method_answers_every_question_once(run: Callable[..., str], tmp_path: Path) -> None:
    files: list[str | Path] = ["--scores", tmp_path / "scores.jsonl", "--out", tmp_path / "out.jsonl"]
    table = run("query_engine", "--questions", "5", *files)
    assert "5 questions, 1 stories" in table
    assert "10 questions, 2 stories" in run("query_engine", "--questions", "10", *files)
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len({(line["story"], line["question"], line["method"]) for line in lines}) == len(lines) == 60
    rows = {row["method"]: row for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())}
    assert list(rows) == ["beacon", "beacon, bare", "summary", "full", "bm25", "none"]
    assert rows["bm25"]["entries"] == rows["beacon"]["entries"] < rows["full"]["entries"]
    assert rows["none"]["bytes"] == 0 < rows["beacon"]["fold_seconds"]


def test_documents_apart_are_measured_beside_the_same_in_sequence(run: Callable[..., str], tmp_path: Path) -> None:
    table = run("joined_documents", "--questions", "10", "--out", tmp_path / "joined.jsonl")
    assert "10 questions, 2 stories" in table
    assert "| sections apart, first tokens left out |" in table
