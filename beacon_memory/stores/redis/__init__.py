"""Sessions in Redis or Valkey: one server, a cluster, or the one a sentinel names.

May import: what `beacon_memory.stores` may. Hands out: `RedisStore`.
A new command on stored keys goes here: what a server runs is in `scripts`, how it is reached in `client`.
"""

from __future__ import annotations

from beacon_memory.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
