"""What many tests share: one thread each, no progress bars, tiny models made once, and a stream of token ids."""

from __future__ import annotations

import asyncio
import io
import os
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from transformers.utils import logging

from beacon_memory import cli
from beacon_memory.config import BeaconConfig
from beacon_memory.models.model import BeaconModel
from beacon_memory.testing import tiny_model

torch.set_num_threads(1)
# So have the processes that tests start: threads that wait by spinning take the cores from those that work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# With no loop set, pytest-asyncio asks for the current one, gets one made for it, and never closes that.
asyncio.set_event_loop(None)
logging.disable_progress_bar()


@pytest.fixture(params=["llama", "mistral", "qwen2", "qwen3"])
def family(request: pytest.FixtureRequest) -> str:
    """The families without anything of their own; tests/models/test_families.py has the laws of all of them."""
    return str(request.param)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `beacon-memory` in this process; gives its exit code, stdout and stderr."""

    def command(*args: str, stdin: str | bytes = "") -> tuple[int, str, str]:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr("sys.argv", ["beacon-memory", *args])
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        code = 0
        try:
            cli.main()
        except SystemExit as exc:
            code = int(exc.code or 0)
        return code, *capfd.readouterr()

    return command


@pytest.fixture(scope="session")
def config() -> BeaconConfig:
    """Windows small enough to fold many, slots in the model's own precision."""
    return BeaconConfig(ratio=4, window=16, anchors="last", sink=2, keep_last=5, slot_dtype="float32")


@pytest.fixture(scope="session")
def ids() -> list[int]:
    """A stream of 200 ordinary tokens."""
    return random.Random(7).choices(range(3, 300), k=200)


@pytest.fixture(scope="session")
def model_of() -> Callable[..., BeaconModel]:
    """A tiny model per family and config, made once: for tests that leave it as they found it."""

    @cache
    def made(config: BeaconConfig, family: str = "llama", **changes: Any) -> BeaconModel:
        return tiny_model(family, config=config, **changes)

    return made
