"""What the tests of both frameworks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from remembering import remembers

from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import beacon_server, scripted_engine

By = Callable[[BeaconEngine], dict[str, Any]]


@pytest.fixture(scope="module")
def shared() -> BeaconEngine:
    """An engine whose model says which names it has seen; a test takes a store of its own."""
    return scripted_engine(remembers)


@pytest.fixture(params=["here", "server"])
def by(request: pytest.FixtureRequest) -> Iterator[By]:
    """How our classes are given an engine: as it is, or by the address of a server that has it."""
    with ExitStack() as servers:

        def given(engine: BeaconEngine) -> dict[str, Any]:
            if request.param == "here":
                return {"engine": engine}
            return {"base_url": servers.enter_context(beacon_server(engine))}

        yield given
