"""Clients that no one here wrote, in processes of their own: OpenAI's for JavaScript and LlamaIndex's `OpenAILike`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
HELLO = "Hello there, how do you do?"
# Beside the tests' own packages: it wants an older openai than they have.
OPENAI_LIKE = Path(sys.prefix) / "openai-like"


def told(*command: str, **environ: str) -> dict[str, Any]:
    """What a script prints, as JSON."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environ}, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
@pytest.mark.skipif(not (HERE / "npm/node_modules").exists(), reason="no openai from npm: `make test` installs it")
def test_openais_client_for_javascript(url: str) -> None:
    found = told("node", str(HERE / "npm/ask.mjs"), url)
    assert found.pop("pieces") > 5
    events = found.pop("events")
    assert (events[0], events[-1]) == ("response.created", "response.completed")
    assert "response.output_text.delta" in events
    assert found == {
        "chat": "Rex!",
        "stream": HELLO,
        "call": ["weather", {"place": "Lyon"}],
        "answered": "It was 7.",
        "response": "Rex!",
        "retrieved": "Rex!",
        "input": "What is my dog called?",
        "deleted": ["NotFoundError", "response_not_found"],
        "items": ["user", "assistant", "user", "assistant"],
        "metadata": {"about": "dogs"},
        "gone": 404,
        "refused": ["BadRequestError", "temperature"],
    }


@pytest.mark.skipif(not OPENAI_LIKE.exists(), reason="no OpenAILike: `make test` installs it")
def test_llamaindexs_openai_like(url: str) -> None:
    found = told(sys.executable, str(HERE / "openai_like/ask.py"), url, PYTHONPATH=str(OPENAI_LIKE))
    assert found.pop("openai") < "3"
    assert found.pop("pieces") > 5
    assert found == {
        "chat": ["Rex!", "Rex!"],
        "complete": HELLO,
        "stream": HELLO,
        "async": [HELLO] * 3,
        "call": ["weather", {"place": "Lyon"}],
        "called": "7 degrees in Lyon",
        "structured": {"name": "Lyon", "people": 5},
        "refused": "n",
    }
