"""What the tests of LlamaIndex share."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.llms.beacon import BeaconLLM

from beacon_memory.serving.engine import BeaconEngine


@pytest.fixture
def llm(shared: BeaconEngine, by: Any) -> BeaconLLM:
    """A model with nothing in its store yet, in this process or a server's."""
    return BeaconLLM(**by(shared.with_store("memory://")), max_new_tokens=60)
