"""A memory for language models that has read everything."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from beacon_memory.version import __version__

if TYPE_CHECKING:
    from beacon_memory.config import BeaconConfig
    from beacon_memory.documents import Document, Documents
    from beacon_memory.errors import BeaconError
    from beacon_memory.memory import BeaconMemory
    from beacon_memory.model import BeaconModel
    from beacon_memory.session import Session, SessionInfo
    from beacon_memory.state import BeaconState, Segment

# Names are loaded when first used: importing this package must not import torch (PEP 562).
_WHERE = {
    "BeaconConfig": "config",
    "BeaconError": "errors",
    "BeaconMemory": "memory",
    "BeaconModel": "model",
    "BeaconState": "state",
    "Document": "documents",
    "Documents": "documents",
    "Segment": "state",
    "Session": "session",
    "SessionInfo": "session",
}

__all__ = [
    "BeaconConfig",
    "BeaconError",
    "BeaconMemory",
    "BeaconModel",
    "BeaconState",
    "Document",
    "Documents",
    "Segment",
    "Session",
    "SessionInfo",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
