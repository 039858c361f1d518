"""What the tests of LlamaIndex share."""

from __future__ import annotations

import pytest
from llama_index.llms.beacon import BeaconLLM

from beacon_memory.serving.engine import BeaconEngine


@pytest.fixture
def llm(shared: BeaconEngine) -> BeaconLLM:
    """A model with nothing in its store yet."""
    return BeaconLLM(engine=shared.with_store("memory://"), max_new_tokens=60)
