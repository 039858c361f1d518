"""A memory for language models that has read everything."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from beacon_memory import older
from beacon_memory.version import __version__

older.install()

if TYPE_CHECKING:
    from beacon_memory.config import BeaconConfig
    from beacon_memory.errors import BeaconError
    from beacon_memory.models.model import BeaconModel
    from beacon_memory.sessions.documents import Documents
    from beacon_memory.sessions.memory import BeaconMemory
    from beacon_memory.sessions.session import Session
    from beacon_memory.state.info import Document, SessionInfo
    from beacon_memory.state.state import BeaconState, Segment

# Names are loaded when first used: importing this package must not import torch (PEP 562).
_MODULES = {
    "BeaconConfig": "config",
    "BeaconError": "errors",
    "BeaconMemory": "sessions.memory",
    "BeaconModel": "models.model",
    "BeaconState": "state.state",
    "Document": "state.info",
    "Documents": "sessions.documents",
    "Segment": "state.state",
    "Session": "sessions.session",
    "SessionInfo": "state.info",
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
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
