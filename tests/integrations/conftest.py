"""What the tests of both frameworks share."""

from __future__ import annotations

import pytest
from remembering import remembers

from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import scripted_engine


@pytest.fixture(scope="module")
def shared() -> BeaconEngine:
    """An engine whose model says which names it has seen; a test takes a store of its own."""
    return scripted_engine(remembers)
