"""A redis-py client from a URL, and redis-py's errors as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

import redis
from redis.backoff import EqualJitterBackoff
from redis.cluster import RedisCluster
from redis.connection import parse_url
from redis.exceptions import OutOfMemoryError, RedisClusterException
from redis.retry import Retry
from redis.sentinel import Sentinel

from beacon_memory.errors import ConfigError, StoreFull, StoreUnavailable

# 10 ms, doubled up to a second: about four seconds until a server counts as gone.
RETRIES, BACKOFF_BASE, BACKOFF_CAP = 10, 0.01, 1.0
SENTINEL_PORT = 26379

HINT = (
    "this is no Redis URL: write redis://[user:password@]host:6379/0, rediss:// for TLS, unix:///path.sock, "
    "redis+cluster://host:6379 or redis+sentinel://host:26379,host:26379/service/0, with special characters of a "
    "password percent-encoded and before the @, and only options that this store or redis-py knows"
)


NUMBERS, NAMES = ("ttl", "session_bytes", "namespace_bytes"), ("namespace", "prefix")


def settings(url: str | None, **given: Any) -> tuple[dict[str, Any], str]:
    """A store's settings, from its URL's options and what was given, and the URL without them. Raises ConfigError."""
    found: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    rest, options = _split(url) if url is not None else ("", {})
    if twice := sorted(found.keys() & options.keys()):
        raise ConfigError(f"{', '.join(twice)}: in the URL or as an argument, not both")
    found = {"namespace": "default", "prefix": "beacon"} | dict.fromkeys(NUMBERS) | found | options
    for name in NUMBERS:
        value = found[name]
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            unit = "seconds" if name == "ttl" else "bytes"
            raise ConfigError(f"{name} is a number of {unit}, 1 or more, or None for no limit, not {value!r}")
    for name in NAMES:
        if not isinstance(found[name], str) or not found[name]:
            raise ConfigError("namespace and prefix of a Redis store are text of 1 character or more")
    return found, rest


def _split(url: str) -> tuple[str, dict[str, Any]]:
    """The URL without the options that are the store's own, and these."""
    # The URL is not repeated in an error: it may hold the password.
    try:
        query = urlsplit(url).query
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ConfigError(HINT) from None
    if {"password", "username"} & dict(pairs).keys():
        raise ConfigError("name and password stand before the @ of a Redis URL, not among its options")
    found: dict[str, Any] = {name: value for name, value in pairs if name in NAMES}
    for name, value in pairs:
        if name in NUMBERS:
            if not value.isdecimal():
                raise ConfigError(f"the option {name} of a Redis URL is a whole number, not {value!r:.40}")
            found[name] = int(value)
    rest = urlencode([(name, value) for name, value in pairs if name not in (*NUMBERS, *NAMES)])
    return url.partition("?")[0] + (f"?{rest}" if rest else ""), found


def connect(url: str) -> Any:
    """A client that finds its server again by itself. Raises ConfigError, and StoreUnavailable for a cluster."""
    parts = urlsplit(url)
    retry = Retry(EqualJitterBackoff(cap=BACKOFF_CAP, base=BACKOFF_BASE), RETRIES)
    secure = parts.scheme.startswith("rediss")
    try:
        if parts.scheme.endswith("+sentinel"):
            return _by_sentinel(parts, secure=secure, retry=retry)
        if parts.scheme.endswith("+cluster"):
            plain = parts._replace(scheme="rediss" if secure else "redis").geturl()
            redis.ConnectionPool.from_url(plain)  # refuses what is no URL, before anything is connected to
            return RedisCluster.from_url(plain, retry=retry)
        # Transient answers of a server that starts or changes its role; a commit that is sent twice is one commit.
        client = redis.Redis.from_url(url, retry=retry)
        _check_options(client.connection_pool)
    except ConfigError:
        raise
    except (ValueError, TypeError):
        # Neither the URL nor redis-py's words are repeated: they may hold the password.
        raise ConfigError(HINT) from None
    except (redis.RedisError, RedisClusterException) as exc:
        raise StoreUnavailable(f"no Redis Cluster answers at {parts.hostname}:{parts.port or 6379}: {exc}") from exc
    return client


def _by_sentinel(parts: SplitResult, *, secure: bool, retry: Retry) -> redis.Redis:
    """The master that the sentinels name, whichever that is by then."""
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    service, _, database = parts.path.strip("/").partition("/")
    if not service or not hosts:
        raise ConfigError("a Sentinel URL names its service: redis+sentinel://host:26379,host:26379/service/0")
    sentinels = []
    for host in hosts.split(","):
        name, colon, port = host.rpartition(":")
        sentinels.append((name, int(port)) if colon else (host, SENTINEL_PORT))
    # redis-py's own reading of options, with their types.
    options: dict[str, Any] = parse_url(f"redis://host?{parts.query}" if parts.query else "redis://host")  # type: ignore[no-untyped-call]
    options.pop("host", None)
    own = {name.removeprefix("sentinel_"): options.pop(name) for name in list(options) if name.startswith("sentinel_")}
    login_kwargs = {"username": unquote(user) or None, "password": unquote(password) or None}
    shared = {"ssl": True} if secure else {}
    sentinel: Any = Sentinel(sentinels, sentinel_kwargs={**own, **shared, "retry": retry, "socket_timeout": 2})  # type: ignore[no-untyped-call]
    client: redis.Redis = sentinel.master_for(
        service, db=int(database or 0), retry=retry, **login_kwargs, **shared, **options
    )
    return client


def _check_options(pool: redis.ConnectionPool) -> None:
    pool.connection_class(**pool.connection_kwargs)  # connects to nothing, and refuses an option it does not know


@contextmanager
def translated(client: Any) -> Iterator[None]:
    """Inside, redis-py's errors are ours; they name the server, never its password."""
    try:
        yield
    except (redis.RedisError, RedisClusterException) as exc:
        pool = getattr(client, "connection_pool", None)
        settings = pool.connection_kwargs if pool else {}
        where = settings.get("path") or f"{settings.get('host', 'the server')}:{settings.get('port', 6379)}"
        text, password = str(exc), settings.get("password")
        cause: Exception | None = exc
        # A server that does not know HELLO or AUTH repeats their arguments.
        if password and str(password) in text:
            text, cause = type(exc).__name__, None
        # A script's error comes as it is from Redis 7 on, and wrapped in words of its own from Redis 6.
        if isinstance(exc, OutOfMemoryError) or "-OOM " in text:
            raise StoreFull(f"Redis at {where} has no memory left: nothing was written ({text})") from cause
        raise StoreUnavailable(f"Redis at {where} cannot be used: {text}") from cause
