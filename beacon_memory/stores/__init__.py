"""Where sessions are kept: in this process, in one SQLite file, or in Redis. Stores see bytes, never tensors.

May import: config, errors; never torch. Hands out: `open_store`, `StateStore`, `Head`.
A new store goes here: a class of `base.StateStore`, a scheme in `open_store`, and a test of `testing.StoreContract`.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import parse_qsl, unquote

from beacon_memory.errors import ConfigError
from beacon_memory.stores.base import Head, StateStore

__all__ = ["Head", "StateStore", "open_store"]

SCHEMES = (
    "memory://, sqlite:///relative.db, sqlite:////absolute/path.db, redis://, rediss://, unix://, redis+cluster:// or "
    "redis+sentinel://"
)
_NAMESPACE = re.compile(r"[A-Za-z0-9_-]{1,64}")
REDIS = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel")


def open_store(
    url: str | StateStore,
    *,
    key: bytes | None = None,
    old_key: bytes | None = None,
    encrypt: bool = False,
    trust: bool = False,
    namespace: str | None = None,
) -> StateStore:
    """The store that `url` names; a StateStore is returned as it is. Raises ConfigError, StoreUnavailable.

    A `namespace` (letters, digits, - and _) is a place of its own beside the one named: `sqlite:///memory.db` becomes
    `memory.acme.db`, in Redis it is the URL's `namespace`, and memory:// is always a new place.

    `key`, `old_key`, `encrypt` and `trust` say how what a SQLite or Redis store keeps is signed (see `SqliteStore`);
    they are refused beside a store that is open already. The path of a SQLite URL may begin with "~", is
    percent-decoded, and takes one option: `sqlite:///memory.db?timeout=60`, the seconds that a writer waits for others.

    >>> open_store("memory://").sessions()
    []
    """
    signing: dict[str, Any] = {"key": key, "old_key": old_key, "encrypt": encrypt, "trust": trust}
    if namespace is not None and (isinstance(url, StateStore) or not _NAMESPACE.fullmatch(namespace)):
        raise ConfigError(
            f"a namespace goes with a store's URL, and is made of letters, digits, - and _: not {namespace!r:.80}"
        )
    if isinstance(url, StateStore):
        if any(signing.values()):
            raise ConfigError("this store is open already, with a key of its own or none: give the key with its URL")
        return url
    # The rest of a URL is not repeated in an error: it may hold a password.
    scheme, separator, rest = str(url).partition("://")
    if not separator:
        raise ConfigError(f"a store is named by a URL: {SCHEMES}; for a file write sqlite:/// before its path")
    if scheme == "memory" and any(signing.values()):
        raise ConfigError("a key signs what is kept outside this process: memory:// takes none")
    # Imported when asked for: each store brings its own dependencies.
    if scheme == "memory":
        if rest:
            raise ConfigError("memory:// takes no name and no option: every store opened with it is a new one")
        from beacon_memory.stores.memory import MemoryStore

        return MemoryStore()
    if scheme == "sqlite":
        if len(rest) < 2 or not rest.startswith("/"):
            raise ConfigError("a SQLite URL has three slashes before a relative path, four before an absolute one")
        from beacon_memory.stores.sqlite import SqliteStore

        path, signing["timeout"] = _file(rest[1:])
        if namespace is not None:
            stem, suffix = os.path.splitext(path)
            path = f"{stem}.{namespace}{suffix}"
        return SqliteStore(path, **signing)
    if scheme in REDIS:
        from beacon_memory.stores.redis import RedisStore

        return RedisStore(str(url), namespace=namespace, **signing)
    raise ConfigError(f"no store for {scheme}://: write {SCHEMES}")


def _file(rest: str) -> tuple[str, float]:
    """The path of a SQLite URL, and how long a writer waits. Raises ConfigError."""
    path, _, query = rest.partition("?")
    if "#" in rest:
        raise ConfigError("a SQLite URL has no #fragment: write a # or ? that belongs to its path as %23 or %3F")
    timeout: float | None = None
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        pairs = [(query, "")]
    for name, value in pairs:
        if name != "timeout" or timeout is not None:
            raise ConfigError(
                f"a SQLite URL takes one option, timeout (in seconds), once: not {name!r:.40}; write a ? that belongs "
                f"to its path as %3F"
            )
        try:
            timeout = float(value)
        except ValueError:
            raise ConfigError(f"the timeout of a SQLite URL is a number of seconds, not {value!r:.40}") from None
    path = unquote(path)
    return os.path.expanduser(path) if path.startswith("~") else path, 30.0 if timeout is None else timeout
