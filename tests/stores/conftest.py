"""A model and a server for the tests of stores."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from beacon_memory import BeaconConfig, BeaconModel
from beacon_memory.testing import redis_server, tiny_model


@pytest.fixture(scope="module")
def model() -> BeaconModel:
    config = BeaconConfig(window=32, keep_last=8, sink=2, anchors="last")
    return tiny_model(config=config, max_position_embeddings=2048)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with redis_server("valkey") as url:
        yield url
