"""Modules by the names that they had in the first release: they still import, with a DeprecationWarning."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES = {
    "adapter": "models.adapter",
    "anchors": "fold.anchors",
    "archive": "state.archive",
    "attention": "fold.attention",
    "budget": "state.budget",
    "codec": "state.codec",
    "context": "sessions.context",
    "documents": "sessions.documents",
    "engine": "serving.engine",
    "front": "models.resident",
    "generation": "models.generation",
    "head": "state.head",
    "history": "talk.history",
    "layout": "fold.layout",
    "loading": "models.loading",
    "memory": "sessions.memory",
    "model": "models.model",
    "passes": "fold.passes",
    "places": "serving.engines",
    "prefix": "fold.prefix",
    "prompt": "sessions.prompt",
    "quantise": "state.quantise",
    "repair": "sessions.repair",
    "reply": "sessions.reply",
    "rewind": "sessions.rewind",
    "session": "sessions.session",
    "sources": "talk.sources",
    "structured": "talk.structured",
    "tools": "talk.tools",
    "transcript": "talk.transcript",
    "turn": "sessions.turn",
}


class Older:
    """Finds and loads them; asked only for modules that nothing else finds."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, module = name.partition(".")
        if package != "beacon_memory" or module not in MODULES:
            return None
        return importlib.util.spec_from_loader(name, Older)  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        now = f"beacon_memory.{MODULES[spec.name.partition('.')[2]]}"
        warnings.warn(f"{spec.name} is {now} now", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(now)
        spec.loader_state = module.__spec__
        return module

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Give the module of today its own spec back, which the import took from it."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def install() -> None:
    """Let the names of the first release be found."""
    if Older not in sys.meta_path:
        sys.meta_path.append(Older)
