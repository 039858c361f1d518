"""Where sessions are kept: in this process, in one SQLite file, or in Redis. Stores see bytes, never tensors.

May import: config, errors; never torch. Hands out: `open_store`, `StateStore`, `Head`.
A new store goes here: a class of `base.StateStore`, a scheme in `open_store`, and a test of `testing.StoreContract`.
"""

from __future__ import annotations

from typing import Any

from beacon_memory.errors import ConfigError
from beacon_memory.stores.base import Head, StateStore

__all__ = ["Head", "StateStore", "open_store"]

SCHEMES = (
    "memory://, sqlite:///relative.db, sqlite:////absolute/path.db, redis://, rediss://, unix://, redis+cluster:// or "
    "redis+sentinel://"
)
REDIS = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel")


def open_store(
    url: str | StateStore,
    *,
    key: bytes | None = None,
    old_key: bytes | None = None,
    encrypt: bool = False,
    trust: bool = False,
) -> StateStore:
    """The store that `url` names; a StateStore is returned as it is. Raises ConfigError, StoreUnavailable.

    `key`, `old_key`, `encrypt` and `trust` sign and encrypt what SQLite and Redis keep (see `SqliteStore`).

    >>> open_store("memory://").sessions()
    []
    """
    if isinstance(url, StateStore):
        return url
    # The rest of a URL is not repeated in an error: it may hold a password.
    scheme, separator, rest = str(url).partition("://")
    if not separator:
        raise ConfigError(f"a store is named by a URL: {SCHEMES}; for a file write sqlite:/// before its path")
    signing: dict[str, Any] = {"key": key, "old_key": old_key, "encrypt": encrypt, "trust": trust}
    if scheme == "memory" and any(signing.values()):
        raise ConfigError("a key signs what is kept outside this process: memory:// takes none")
    # Imported on use: each store has its own dependencies.
    if scheme == "memory":
        if rest:
            raise ConfigError("memory:// takes no name: every store opened with it is a new one")
        from beacon_memory.stores.memory import MemoryStore

        return MemoryStore()
    if scheme == "sqlite":
        if len(rest) < 2 or not rest.startswith("/"):
            raise ConfigError("a SQLite URL has three slashes before a relative path, four before an absolute one")
        from beacon_memory.stores.sqlite import SqliteStore

        return SqliteStore(rest[1:], **signing)
    if scheme in REDIS:
        from beacon_memory.stores.redis import RedisStore

        return RedisStore(str(url), **signing)
    raise ConfigError(f"no store for {scheme}://: write {SCHEMES}")
