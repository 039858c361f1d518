"""beacon-memory for LangChain and LangGraph: models that remember without a retriever."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from beacon_memory.version import __version__

if TYPE_CHECKING:
    from langchain_beacon.chat_history import BeaconChatMessageHistory
    from langchain_beacon.chat_models import BeaconChatModel, ChatBeacon
    from langchain_beacon.llms import BeaconLLM
    from langchain_beacon.middleware import BeaconMemoryMiddleware

# Loaded when first used: the middleware needs langchain, the others only langchain-core.
_WHERE = {
    "BeaconChatMessageHistory": "chat_history",
    "BeaconChatModel": "chat_models",
    "BeaconLLM": "llms",
    "BeaconMemoryMiddleware": "middleware",
    "ChatBeacon": "chat_models",
}

__all__ = [
    "BeaconChatMessageHistory",
    "BeaconChatModel",
    "BeaconLLM",
    "BeaconMemoryMiddleware",
    "ChatBeacon",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
