"""The engine of a memory: its LLM's, or one by names."""

from __future__ import annotations

import os
from typing import Any, Unpack

from llama_index.llms.beacon import BeaconLLM

from beacon_memory.errors import ConfigError
from beacon_memory.serving.engine import Engine
from beacon_memory.serving.engines import Where, engine_for


def engine_of(llm: Any, **where: Unpack[Where]) -> Engine:
    """An engine that keeps sessions. Raises ConfigError for another kind of LLM, and without a store."""
    if llm is not None and not isinstance(llm, BeaconLLM):
        raise ConfigError(f"this memory is read by a BeaconLLM, not by a {type(llm).__name__}: others cannot")
    return engine_for(None if llm is None else llm.opened, environ=os.environ, **where)
