"""beacon-memory for vLLM: stock `vllm serve` answers from folded sessions (docs/vllm.md)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from beacon_memory.version import __version__

if TYPE_CHECKING:
    from vllm_beacon.client import VLLMServer
    from vllm_beacon.connector import BeaconConnector

# Loaded when first used: the connector needs vLLM, the client needs neither vLLM nor a GPU.
_WHERE = {"BeaconConnector": "connector", "VLLMServer": "client"}

__all__ = ["BeaconConnector", "VLLMServer", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
