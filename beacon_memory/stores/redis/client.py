"""Makes a redis-py client from a URL, limits calls to it, and turns its errors into ours."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

import redis
from redis.backoff import EqualJitterBackoff
from redis.cluster import RedisCluster
from redis.connection import parse_url
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    OutOfMemoryError,
    RedisClusterException,
    TryAgainError,
)
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from beacon_memory.errors import ConfigError, IntegrityError, StoreFull, StoreUnavailable

# 10 ms, doubled up to a second. A server that refuses is given up after about four seconds, a hung one after TIMEOUT.
RETRIES, BACKOFF_BASE, BACKOFF_CAP = 10, 0.01, 1.0
TIMEOUT, ATTEMPT_S = 15.0, 5.0  # seconds until a call is given up, and until one attempt of it is
CALLS = 64  # calls at once, more wait; redis-py's own pool would raise an error
WAIT_MS = 1000  # how long replicas have to answer
MASTER_S = 0.25  # how often the sentinels are asked for the master
SENTINEL_PORT = 26379

HINT = (
    "this is not a Redis URL: write redis://[user:password@]host:6379/0, rediss:// for TLS, unix:///path.sock, "
    "redis+cluster://host:6379 or redis+sentinel://host:26379,host:26379/service/0, with the password before the @ and "
    "its special characters percent-encoded, and only options that this store or redis-py knows"
)


NUMBERS, NAMES = ("ttl", "session_bytes", "namespace_bytes", "replicas", "timeout"), ("namespace", "prefix")
UNITS = {"ttl": "seconds", "timeout": "seconds", "replicas": "replicas"}


def settings(url: str | None, **given: Any) -> tuple[dict[str, Any], str]:
    """A store's settings, from its URL and the arguments, and the URL without them. Raises ConfigError."""
    found: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    rest, options = _split(url) if url is not None else ("", {})
    if twice := sorted(found.keys() & options.keys()):
        raise ConfigError(f"{', '.join(twice)}: in the URL or as an argument, not both")
    found = {"namespace": "default", "prefix": "beacon"} | dict.fromkeys(NUMBERS) | found | options
    for name in NUMBERS:
        value = found[name]
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            unit = UNITS.get(name, "bytes")
            raise ConfigError(f"{name} must be a number of {unit}, 1 or more, or None for no limit, not {value!r}")
    for name in NAMES:
        if not isinstance(found[name], str) or not found[name]:
            raise ConfigError("namespace and prefix of a Redis store must be text of 1 character or more")
        if any("\ud800" <= char <= "\udfff" for char in found[name]):
            raise ConfigError(f"{name} of a Redis store must be valid unicode, not {found[name]!a:.80}")
    return found, rest


def _split(url: str) -> tuple[str, dict[str, Any]]:
    """The URL without the store's own options, and those options."""
    # The URL is not repeated in an error: it may hold the password.
    try:
        query = urlsplit(url).query
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ConfigError(HINT) from None
    if {"password", "username"} & dict(pairs).keys():
        raise ConfigError("user name and password belong before the @ of a Redis URL, not among its options")
    found: dict[str, Any] = {name: value for name, value in pairs if name in NAMES}
    for name, value in pairs:
        if name in NUMBERS:
            if not value.isdecimal():
                raise ConfigError(f"the option {name} of a Redis URL must be a whole number, not {value!r:.40}")
            found[name] = int(value)
    rest = urlencode([(name, value) for name, value in pairs if name not in (*NUMBERS, *NAMES)])
    return url.partition("?")[0] + (f"?{rest}" if rest else ""), found


def connect(url: str, *, timeout: float = TIMEOUT) -> Any:
    """A client that reconnects by itself, and raises within `timeout` seconds when it cannot. Raises ConfigError, and
    StoreUnavailable when no cluster answers.
    """
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    try:
        attempt = float(options.get("socket_timeout", min(ATTEMPT_S, timeout / 3)))
    except ValueError:
        raise ConfigError(HINT) from None
    if "socket_timeout" not in options:
        url += f"{'&' if parts.query else '?'}socket_timeout={attempt}"
        parts = urlsplit(url)
    retry = Patience(timeout, attempt)
    secure = parts.scheme.startswith("rediss")
    try:
        if parts.scheme.endswith("+sentinel"):
            return _by_sentinel(parts, secure=secure, retry=retry)
        if parts.scheme.endswith("+cluster"):
            plain = parts._replace(scheme="rediss" if secure else "redis").geturl()
            redis.ConnectionPool.from_url(plain)  # refuses a wrong URL before connecting
            return RedisCluster.from_url(plain, retry=retry)
        if parts.scheme in ("redis", "rediss") and not (parts.path.strip("/") or "0").isdecimal():
            raise ConfigError(f"{HINT}; the database after the host is a number")  # not repeated: see above
        # A server that starts or changes its role refuses for a while. A commit that is sent twice is one commit.
        client = redis.Redis.from_url(url, retry=retry)
        _check_options(client.connection_pool)
    except ConfigError:
        raise
    except (ValueError, TypeError):
        # Neither the URL nor redis-py's message is repeated: they may hold the password.
        raise ConfigError(HINT) from None
    except (redis.RedisError, RedisClusterException) as exc:
        raise StoreUnavailable(f"no Redis Cluster answers at {parts.hostname}:{parts.port or 6379}: {exc}") from exc
    return client


def _by_sentinel(parts: SplitResult, *, secure: bool, retry: Retry) -> redis.Redis:
    """A client of the master that the sentinels name at the time of each connection."""
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    service, _, database = parts.path.strip("/").partition("/")
    if not service or not hosts:
        raise ConfigError("a Sentinel URL names its service: redis+sentinel://host:26379,host:26379/service/0")
    sentinels = []
    for host in hosts.split(","):
        name, colon, port = host.rpartition(":")
        sentinels.append((name, int(port)) if colon else (host, SENTINEL_PORT))
    # redis-py itself gives the options their types.
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
    pool.connection_class(**pool.connection_kwargs)  # does not connect, but refuses unknown options


def check_client(client: Any) -> None:
    """Raises ConfigError unless this is a client of redis-py, and a synchronous one."""
    if not isinstance(client, redis.Redis | RedisCluster):
        kind = f"{type(client).__module__}.{type(client).__qualname__}"
        raise ConfigError(
            f"a Redis client is a redis.Redis or redis.RedisCluster, not {kind}"
            + (": work is done on threads here, so give the synchronous client" if "asyncio" in kind else "")
        )


class Patience(Retry):
    """Tries again with growing pauses, as long as `seconds` leave time for another attempt."""

    def __init__(self, seconds: float, attempt: float) -> None:
        super().__init__(EqualJitterBackoff(cap=BACKOFF_CAP, base=BACKOFF_BASE), RETRIES)
        self._seconds, self._attempt = seconds, attempt

    def call_with_retry(self, do: Any, fail: Any, *args: Any, **options: Any) -> Any:
        retryable, counted = (*args, None, False)[:2]
        retryable = options.get("is_retryable", retryable)
        counted = options.get("with_failure_count", counted)
        end, failures = time.monotonic() + self._seconds, 0
        self._backoff.reset()  # type: ignore[no-untyped-call]
        while True:
            try:
                return do()
            except self._supported_errors as error:
                if retryable is not None and not retryable(error):
                    raise
                failures += 1
                fail(error, failures) if counted else fail(error)
                pause = self._backoff.compute(failures)
                if failures > self._retries or time.monotonic() + pause + self._attempt > end:
                    raise
                time.sleep(pause)


class Link:
    """A client that several threads share, with limits on calls and their time."""

    def __init__(self, url: str, client: Any, *, timeout: float, replicas: int) -> None:
        """A client from a URL, or one that is given."""
        if client is not None:
            check_client(client)
        self.owned = client is None
        # Any: redis-py types a reply as everything that it could be under any setting.
        self.client: Any = connect(url, timeout=timeout) if client is None else client
        self._timeout, self._replicas = timeout, replicas
        pool = getattr(self.client, "connection_pool", None)
        self._calls = min(CALLS, getattr(pool, "max_connections", None) or CALLS)
        self._free = threading.BoundedSemaphore(self._calls)
        self._pid = os.getpid()
        attempt = pool and pool.connection_kwargs.get("socket_timeout")
        # WAIT must end before the connection times out.
        self._wait_ms = int(min(WAIT_MS, 500 * (attempt or min(ATTEMPT_S, timeout / 3))))
        self._sentinels = pool if isinstance(pool, SentinelConnectionPool) else None
        self._asked = 0.0

    @contextmanager
    def using(self) -> Iterator[Any]:
        """The client, for a bounded number of callers at once. redis-py's errors become ours."""
        if os.getpid() != self._pid:  # after a fork the threads that held it are gone
            self._free, self._pid = threading.BoundedSemaphore(self._calls), os.getpid()
        if not self._free.acquire(timeout=self._timeout):
            raise StoreUnavailable(
                f"all {self._calls} connections to Redis have been in use for {self._timeout} s: use fewer threads, "
                f"or more stores"
            )
        try:
            with translated(self.client):
                self._meet_master()
                yield self.client
        finally:
            self._free.release()

    def call(self, script: Any, keys: list[str], args: list[Any]) -> Any:
        """The result of a script."""
        with self.using():
            return script(keys=keys, args=args)

    def lasting(self, script: Any, keys: list[str], args: list[Any]) -> Any:
        """The result of a script that writes, once `replicas` replicas have it. Raises StoreUnavailable."""
        if not self._replicas:
            return self.call(script, keys, args)
        with self.using():
            reply, there = self._replicated(script, keys, args)
        if isinstance(reply, Exception):
            with translated(self.client):
                raise reply
        wrote = reply == [b"moved"] if isinstance(reply, list) else bool(reply)
        if wrote and there < self._replicas:
            raise StoreUnavailable(
                f"the master wrote it, but only {there} of {self._replicas} replicas had it after {self._wait_ms} ms: "
                f"a failover may lose it; load the session to find out"
            )
        return reply

    def _replicated(self, script: Any, keys: list[str], args: list[Any]) -> tuple[Any, int]:
        """A script's result, and how many replicas have what it wrote: in one round trip, on one connection."""
        end = time.monotonic() + self._timeout
        while True:
            client = self.client
            if node_of := getattr(client, "get_node_from_key", None):
                client = client.get_redis_connection(node_of(keys[0]))
            pipeline = client.pipeline(transaction=False)
            pipeline.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)
            pipeline.execute_command("WAIT", self._replicas, self._wait_ms)
            try:
                reply, there = pipeline.execute(raise_on_error=False)
            except (redis.ConnectionError, redis.TimeoutError):
                if node_of is None or time.monotonic() > end:
                    raise
                reply, there = MovedError("0 -:0"), 0
            if isinstance(reply, NoScriptError):
                client.script_load(script.script)
            elif isinstance(reply, AskError | MovedError | ClusterDownError | TryAgainError) and node_of:
                if time.monotonic() > end:
                    return StoreUnavailable(f"no master was found in the cluster within {self._timeout} s"), 0
                time.sleep(BACKOFF_CAP / 10)
                with suppress(redis.RedisError, RedisClusterException):
                    self.client.nodes_manager.initialize()
            else:
                return reply, there if isinstance(there, int) else 0

    def _meet_master(self) -> None:
        """Leave a master that the sentinels have replaced: it may accept writes for seconds, which are all lost."""
        if self._sentinels is None or time.monotonic() - self._asked < MASTER_S:
            return
        self._asked = time.monotonic()
        with suppress(redis.RedisError):
            # Closes idle connections when the master has changed.
            self._sentinels.get_master_address()  # type: ignore[no-untyped-call]


@contextmanager
def translated(client: Any) -> Iterator[None]:
    """Turns redis-py's errors into ours. They name the server, never its password."""
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
        # Redis 7 and later return a script's error as it is, Redis 6 wraps it in other words.
        if isinstance(exc, OutOfMemoryError) or "-OOM " in text:
            raise StoreFull(f"Redis at {where} has no memory left: nothing was written ({text})") from cause
        # What Lua says about text that is not a number.
        if any(word in text for word in ("WRONGTYPE", "attempt to", "not an integer", "not a valid float")):
            raise IntegrityError(f"a value in Redis at {where} has the wrong type: {text}") from cause
        raise StoreUnavailable(f"Redis at {where} cannot be used: {text}") from cause
