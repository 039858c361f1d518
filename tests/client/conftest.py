"""The same memory twice: in this process, and behind a real server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from puppets import wise

from beacon_memory.client.engine import RemoteEngine
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import beacon_server, scripted_engine


@pytest.fixture(params=["here", "server"])
def engine(request: pytest.FixtureRequest) -> Iterator[BeaconEngine | RemoteEngine]:
    """An engine with an empty store, in this process or behind a server: both do the same."""
    here = scripted_engine(wise)
    if request.param == "here":
        yield here
        return
    with beacon_server(here) as url, closing(RemoteEngine(url)) as there:
        yield there
