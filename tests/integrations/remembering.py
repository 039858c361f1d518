"""Scripts that say which names or months they have seen, and what a session of their model was told."""

from __future__ import annotations

import re
from typing import Any

import pytest

HERE = pytest.mark.parametrize("by", ["here"], indirect=True)  # a test that looks into the model or the store itself


def remembers(seen: str) -> str:
    """Says which names it has seen."""
    return "I know " + ", ".join(sorted(set(re.findall(r"Rex\d+", seen))) or ["nobody"])


def calendar(seen: str) -> str:
    """Says which months it has seen, the question left out."""
    return "I read " + " ".join(sorted(set(re.findall(r"May\d", seen))) or ["nothing"])


def told(llm: Any, session: str) -> list[str]:
    """The words that a session remembers."""
    return [message["content"] for message in llm.opened.session(session).messages()]


def cfg(**configurable: str) -> dict[str, Any]:
    """A config of LangChain's that names a session."""
    return {"configurable": configurable}
