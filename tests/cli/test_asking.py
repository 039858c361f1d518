"""Asking with passages read again, and searching: what is found is told, and where nothing can be, that too."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from beacon_memory import BeaconConfig, BeaconModel
from beacon_memory.models.adapter import save_adapter
from beacon_memory.models.finder import Finder
from beacon_memory.testing import tiny_checkpoint

Run = Callable[..., tuple[int, str, str]]
HOME = "I live in Lyon, in a small house near the river. " * 3
LEASE = "The lease ends in May. The rent is due on the first. " * 20


@pytest.fixture(scope="module")
def finding(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A checkpoint, and an adapter for it with a finder that finds something whatever is asked."""
    folder = tmp_path_factory.mktemp("model")
    checkpoint = str(tiny_checkpoint(folder / "model", max_position_embeddings=4096))
    model = BeaconModel.from_pretrained(checkpoint)
    config = BeaconConfig(window=32, keep_last=8, sink=2, anchors="last")
    save_adapter(model.beacons, folder / "adapter", config=config, model=model.fingerprint.model)
    Finder(((1, 0), (0, 1)), (2.0, 1.0), 0.0).write(folder / "adapter", model=model.fingerprint.model)
    return checkpoint, str(folder / "adapter")


@pytest.fixture
def run(finding, command, tmp_path, monkeypatch) -> Run:
    """Run the command in this process; gives its exit code, stdout and stderr."""
    monkeypatch.setenv("BEACON_MODEL", finding[0])
    monkeypatch.setenv("BEACON_STORE", f"sqlite:///{tmp_path}/memory.db")
    monkeypatch.chdir(tmp_path)

    def run(*args: str, stdin: str = "", adapter: str = finding[1]) -> tuple[int, str, str]:
        return command(*args, "--adapter", adapter, stdin=stdin)

    return run


@pytest.fixture
def read(run, tmp_path) -> Run:
    """The same, with a session that has read and was told something."""
    (tmp_path / "lease.txt").write_text(LEASE)
    assert run("add", "ada", "lease.txt")[0] == 0
    assert run("add", "ada", "--role", "user", HOME)[0] == 0
    return run


def test_an_answer_is_told_with_its_sources(read):
    asked = ("ask", "ada", "When does the lease end?", "--max-tokens", "4")
    code, plain, err = read(*asked, "--recall", "0")
    assert (code, err) == (0, "")
    code, answer, told = read(*asked, "--sources")
    assert code == 0
    assert "\n" not in answer[:-1]
    assert all(line.startswith("[") and ("lease.txt: " in line or "user " in line) for line in told.splitlines())
    assert told
    code, out, err = read(*asked, "--recall", "64", "--json")
    assert (code, err) == (0, "")
    about = json.loads(out)
    assert set(about) == {"answer", "sources"}
    assert sum(source["end"] - source["start"] for source in about["sources"]) <= 64
    assert all(source["text"] in LEASE + HOME for source in about["sources"])
    assert json.loads(read(*asked, "--recall", "0", "--json")[1]) == {"answer": plain.rstrip("\n"), "sources": []}


def test_a_talk_tells_its_sources_turn_by_turn(read):
    code, out, err = read("chat", "ada", "--sources", "--max-tokens", "3", stdin="Where do I live?\nAnd when?\n")
    assert code == 0
    assert out.count("\n") >= 2
    assert sum(line.startswith("[") for line in err.splitlines()) >= 2
    code, _, err = read("chat", "ada", "--recall", "0", "--max-tokens", "3", stdin="Where?\n")
    assert (code, "[" in err) == (0, False)


def test_passages_are_searched(read):
    code, out, err = read("search", "ada", "When does the lease end?", "--limit", "3")
    assert (code, err) == (0, "")
    scores = [float(line[1 : line.index("]")]) for line in out.splitlines()]
    assert 0 < len(scores) <= 3
    assert scores == sorted(scores, reverse=True)
    found = json.loads(read("search", "ada", "-", "--json", stdin="When does the lease end?")[1])
    assert len(found) <= 5
    assert {"text", "score", "start", "end", "session"} <= set(found[0])


def test_what_cannot_be_found_is_said(read, run):
    code, _, err = read("ask", "ada", "Where?", "--sources", "--max-tokens", "2", adapter="none")
    assert (code, "fit-finder" in err) == (0, True)
    code, _, err = run("search", "ada", "Where?", adapter="none")
    assert (code, err.count("\n"), "fit-finder" in err) == (2, 1, True)
    assert run("add", "carol", "--role", "user", "Hi.")[0] == 0
    code, _, err = run("ask", "carol", "Where?", "--sources", "--max-tokens", "2")
    assert (code, "nothing that was read" in err) == (0, True)
    nothing = ("search", "ada", "x", "--limit", "0")
    for wrong in (("ask", "ada", "Where?", "--recall", "-1"), ("search", "nobody", "x"), nothing):
        assert run(*wrong)[0] == 2


def test_words_find_without_an_adapter(run, tmp_path, monkeypatch):
    notes = "The shed is green. " * 8 + "The lock of the bicycle shed has the number 7294. " + "It rained all day. " * 9
    (tmp_path / "notes.txt").write_text(notes)
    assert run("add", "house", "notes.txt", adapter="none")[0] == 0
    asked = ("house", "Which number has the lock?")
    code, _, told = run("ask", *asked, "--sources", "--max-tokens", "2", "--finder", "words", adapter="none")
    assert (code, "7294" in told) == (0, True)
    monkeypatch.setenv("BEACON_FINDER", "attention+words")
    code, found, _ = run("search", *asked, "--limit", "1", adapter="none")
    assert (code, "7294" in found) == (0, True)
    code, _, err = run("ask", *asked, "--finder", "bm25", adapter="none")
    assert (code, "finder is one of attention, words, attention+words" in err) == (2, True)
    code, _, err = run("ask", *asked, "--finder", "words", "--server", "http://127.0.0.1:9", adapter="auto")
    assert (code, "--finder is of a model" in err) == (2, True)
