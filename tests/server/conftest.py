"""A real server on a free port, and clients that no one here wrote."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from openai import OpenAI

from beacon_memory.testing import beacon_server, scripted_engine, sensible

MODEL = "scripted"


def wise(seen: str) -> str:
    """A script with judgement that also knows a dog when it has read of one."""
    if "called Rex" in seen and "</tools>" not in seen and "Answer with JSON" not in seen:
        return "Rex!"
    return sensible(seen)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with beacon_server(scripted_engine(wise)) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as http:
        yield http
