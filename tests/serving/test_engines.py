"""Where a framework's user keeps sessions: one place, and no setting that nobody reads."""

from __future__ import annotations

from typing import Any

import pytest
import redis.asyncio

from beacon_memory.errors import ConfigError
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.serving.engines import engine_for, named_store
from beacon_memory.stores.redis import RedisStore


def test_an_empty_variable_names_no_store() -> None:
    """BEACON_REDIS_URL="", as a container has it, was a Redis URL without a server."""
    assert named_store(environ={"BEACON_REDIS_URL": ""}) is None
    assert named_store(redis_url="", environ={}) is None
    with pytest.raises(ConfigError, match="nowhere"):
        engine_for(None, environ={"BEACON_REDIS_URL": "", "BEACON_MODEL": ""})
    made = engine_for(None, environ={"BEACON_MODEL": ""}, store="memory://")
    assert made.name == "smollm2"


def test_a_redis_store_lives_as_long_as_it_is_told_to() -> None:
    for where in ({"redis_url": "redis://localhost"}, {"store": "redis://localhost"}):
        make: Any = named_store(**where, ttl=60, key_prefix="acme")
        store = make()
        assert isinstance(store, RedisStore)
        assert (store._ttl, store._prefix.split(":")[0]) == ("60000", "acme")
        store.close()


@pytest.mark.parametrize("setting", [{"ttl": 60}, {"key_prefix": "acme"}])
@pytest.mark.parametrize("store", [None, "memory://", "sqlite:///memory.db"])
def test_settings_of_redis_elsewhere_are_refused(store: str | None, setting: dict[str, Any]) -> None:
    """They were left aside: a user's talk outlived its ttl by years, and two tenants shared their sessions."""
    with pytest.raises(ConfigError, match="Redis"):
        named_store(store, **setting)
    with pytest.raises(ConfigError, match="Redis"):
        engine_for(BeaconEngine("none", "memory://"), environ={"BEACON_REDIS_URL": "redis://localhost"}, **setting)


@pytest.mark.parametrize("ttl", [0, -1, 1.5, True, "60"])
def test_a_time_to_live_that_cannot_be_is_refused_before_the_store_is_opened(ttl: Any) -> None:
    with pytest.raises(ConfigError, match="ttl"):
        named_store(redis_url="redis://localhost", ttl=ttl)


def test_an_asynchronous_client_is_refused_where_it_is_given() -> None:
    with pytest.raises(ConfigError, match="synchronous"):
        named_store(redis_client=redis.asyncio.Redis())
