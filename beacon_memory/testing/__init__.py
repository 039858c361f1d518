"""What our tests are made of, for whoever writes a store, a model or an integration: the real thing, small.

May import: every room but cli. Hands out: `tiny_model`, `redis_server`, `scripted_engine`, `StoreContract`.
A new contract, test server or small model goes here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beacon_memory.testing.models import tiny_checkpoint as tiny_checkpoint
    from beacon_memory.testing.models import tiny_model as tiny_model
    from beacon_memory.testing.scripted import ScriptedModel as ScriptedModel
    from beacon_memory.testing.scripted import scripted_engine as scripted_engine
    from beacon_memory.testing.scripted import sensible as sensible
    from beacon_memory.testing.server import beacon_server as beacon_server
    from beacon_memory.testing.servers import RedisServer as RedisServer
    from beacon_memory.testing.servers import redis_cluster as redis_cluster
    from beacon_memory.testing.servers import redis_sentinel as redis_sentinel
    from beacon_memory.testing.servers import redis_server as redis_server
    from beacon_memory.testing.stores import StoreContract as StoreContract

# Name -> where it lives: each module brings dependencies that the others do without.
_EXPORTS = {
    "RedisServer": "beacon_memory.testing.servers",
    "ScriptedModel": "beacon_memory.testing.scripted",
    "StoreContract": "beacon_memory.testing.stores",
    "beacon_server": "beacon_memory.testing.server",
    "redis_cluster": "beacon_memory.testing.servers",
    "redis_sentinel": "beacon_memory.testing.servers",
    "redis_server": "beacon_memory.testing.servers",
    "scripted_engine": "beacon_memory.testing.scripted",
    "sensible": "beacon_memory.testing.scripted",
    "tiny_checkpoint": "beacon_memory.testing.models",
    "tiny_model": "beacon_memory.testing.models",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
