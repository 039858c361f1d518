"""Sessions in Redis or Valkey: the store that workers share.

Keys, all under one hash tag so that a cluster keeps a namespace in one slot; names are percent-encoded:

    beacon:{namespace}:sessions        sorted set: session names
    beacon:{namespace}:head:SESSION    hash: body, version, digests (JSON), writer (of the last commit)
    beacon:{namespace}:blob:DIGEST     string
    beacon:{namespace}:refs:DIGEST     sorted set: the sessions that name the blob

A name's score is the millisecond in which its session expires, or +inf. So a list, and the blob it guards, can be
given the life of the longest-lived session on it, and sessions that have expired meanwhile do not count.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote

import redis
from redis.exceptions import OutOfMemoryError, RedisClusterException

from beacon_memory.errors import ConfigError, StoreFull, StoreUnavailable
from beacon_memory.stores.base import Head, StateStore, check_session, conflict, missing, not_found

BLOBS_PER_READ = 16  # a reply of any number of blobs of some 32 MiB would be held in the server's memory at once

# A script declares every key it touches: the digests of the old head are read before, and the version it was read at is
# checked inside. On a full server a script is stopped at its first command that takes memory, unless it has written
# already: commit begins with such a command, so it writes all or nothing; renew and delete with another, so they work.
_SHARED = """
-- KEYS: head, index, then blob and refs of each digest.  ARGV: name, version, ttl in ms or '', more.
local head, index, name, expected, ttl = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local death = ttl == '' and 'inf' or string.format('%.0f', now + ttl)
local version = redis.call('HGET', head, 'version') or '0'

local function expire(key, at)
  if at == 'inf' then redis.call('PERSIST', key)
  else redis.call('PEXPIREAT', key, string.format('%.0f', tonumber(at))) end
end

local function settle(names, blob)
  redis.call('ZREMRANGEBYSCORE', names, '-inf', string.format('(%.0f', now))
  local last = redis.call('ZRANGE', names, -1, -1, 'WITHSCORES')[2]
  if last then expire(names, last) end
  if blob and last then expire(blob, last) elseif blob then redis.call('UNLINK', blob) end
end

local function name_all(first, last)
  redis.call('ZADD', index, death, name)
  settle(index)
  for i = first, last, 2 do
    redis.call('ZADD', KEYS[i + 1], death, name)
    settle(KEYS[i + 1], KEYS[i])
  end
end

local function drop_all(first, last)
  for i = first, last, 2 do
    redis.call('ZREM', KEYS[i + 1], name)
    settle(KEYS[i + 1], KEYS[i])
  end
end
"""
# The blobs come in order: written now, in the store already, of the old head only. It is one script, so that no one can
# remove a blob between its writing and its naming; the price is that a commit's blobs travel together.
_COMMIT = f"""{_SHARED}
local writer, body, digests, written, named = ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
if version ~= expected then
  -- The client sends a script again when the reply is lost: then it finds its own commit.
  if redis.call('HGET', head, 'writer') == writer then return {{'moved', version}} end
  return {{'conflict', version}}
end
for i = written + 1, named do
  if redis.call('EXISTS', KEYS[2 * i + 1]) == 0 then return {{'missing', tostring(i)}} end
end
for i = 1, written do redis.call('SET', KEYS[2 * i + 1], ARGV[8 + i]) end
-- Versions are the server's microseconds: they do not come back after a delete, a flush or a lost write either.
version = string.format('%.0f', math.max(tonumber(version) + 1, time[1] * 1000000 + time[2]))
redis.call('HSET', head, 'version', version, 'writer', writer, 'body', body, 'digests', digests)
expire(head, death)
name_all(3, 2 * named + 1)
drop_all(2 * named + 3, #KEYS)
return {{'moved', version}}
"""
_DELETE = f"""{_SHARED}
if version == '0' then return 1 end
if version ~= expected then return 0 end
redis.call('UNLINK', head)
redis.call('ZREM', index, name)
settle(index)
drop_all(3, #KEYS)
return 1
"""
_RENEW = f"""{_SHARED}
if version ~= expected then return 0 end
expire(head, death)
name_all(3, #KEYS)
return 1
"""


class RedisStore(StateStore):
    """A store on a server: `url` is redis://, rediss:// or unix://, or `client` a redis-py client, which stays open.

    Sessions of one `namespace` share blobs and see each other. With `ttl` a session, and what only it names, is gone
    that many seconds after it was last committed, loaded or touched; asking for its version does not renew it.
    The commands are core ones (Redis 6.2 to 8, Valkey). Under an eviction policy, blobs may go before their session:
    then SegmentMissing is raised, never something else read.

    A commit sends its blobs in one command, each of them within one socket_timeout: for slow links give more than
    redis-py's 5 seconds (`redis://host?socket_timeout=60`).
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        client: redis.Redis | None = None,
        namespace: str = "default",
        prefix: str = "beacon",
        ttl: int | None = None,
    ) -> None:
        if (url is None) == (client is None):
            raise ConfigError("a Redis store takes either a url or a client")
        if ttl is not None and (not isinstance(ttl, int) or isinstance(ttl, bool) or ttl < 1):
            raise ConfigError(f"ttl is a number of seconds, 1 or more, or None to keep sessions for ever, not {ttl!r}")
        if not namespace or not prefix:
            raise ConfigError("namespace and prefix of a Redis store are text of 1 character or more")
        self._owned = client is None
        # redis-py types a reply as all that it could be under any setting.
        self._client: Any = client if client is not None else _client(str(url))
        if self._client.get_encoder().decode_responses:
            raise ConfigError("blobs are bytes: give a Redis client made with decode_responses=False")
        self._prefix = f"{quote(prefix, safe=':')}:{{{_encoded(namespace)}}}"
        self._ttl = "" if ttl is None else str(1000 * ttl)
        self._commit, self._delete, self._renew = map(self._client.register_script, (_COMMIT, _DELETE, _RENEW))

    def load(self, session: str) -> tuple[Head, int]:
        check_session(session)
        while True:
            with self._translated():
                body, version, digests = self._client.hmget(self._head(session), ["body", "version", "digests"])
            if version is None:
                raise not_found(session)
            head = Head(body, tuple(json.loads(digests)))
            if not self._ttl or self._run(self._renew, session, int(version), dict.fromkeys(head.digests)):
                return head, int(version)

    def version(self, session: str) -> int:
        check_session(session)
        with self._translated():
            return int(self._client.hget(self._head(session), "version") or 0)

    def read(self, digests: Sequence[str]) -> list[bytes]:
        blobs: list[bytes] = []
        for start in range(0, len(digests), BLOBS_PER_READ):
            some = digests[start : start + BLOBS_PER_READ]
            with self._translated():
                values = self._client.mget([self._key("blob", digest) for digest in some])
            for digest, value in zip(some, values, strict=True):
                if value is None:
                    raise missing(digest)
                blobs.append(value)
        return blobs

    def commit(self, session: str, head: Head, blobs: Mapping[str, bytes], *, expected: int) -> int:
        version, old = self._look(session)
        if version != expected:
            raise conflict(session, version, expected=expected)
        named = dict.fromkeys(head.digests)
        written = [digest for digest in named if digest in blobs]
        order = [*written, *(d for d in named if d not in blobs), *(d for d in old if d not in named)]
        settings = os.urandom(8).hex(), head.body, json.dumps(head.digests), len(written), len(named)
        status, detail = self._run(self._commit, session, expected, order, *settings, *(blobs[d] for d in written))
        if status == b"conflict":
            raise conflict(session, int(detail), expected=expected)
        if status == b"missing":
            raise missing(order[int(detail) - 1])
        return int(detail)

    def delete(self, session: str) -> None:
        while True:
            version, digests = self._look(session)
            if not version:
                raise not_found(session)
            if self._run(self._delete, session, version, digests):
                return

    def sessions(self) -> list[str]:
        with self._translated():
            names = [name.decode() for name in self._client.zrange(self._key("sessions"), 0, -1)]
            pipeline = self._client.pipeline(transaction=False)
            for name in names:
                pipeline.exists(self._head(unquote(name)))
            return sorted(unquote(name) for name, there in zip(names, pipeline.execute(), strict=True) if there)

    def touch(self, session: str) -> None:
        if self._ttl:
            self.load(session)
        elif not self.version(session):
            raise not_found(session)

    def close(self) -> None:
        if self._owned:
            self._client.close()

    def _look(self, session: str) -> tuple[int, dict[str, None]]:
        """The session's version, 0 when there is none, and the digests that its head names, each once."""
        check_session(session)
        with self._translated():
            version, digests = self._client.hmget(self._head(session), ["version", "digests"])
        return int(version or 0), dict.fromkeys(json.loads(digests or "[]"))

    def _run(self, script: Any, session: str, version: int, digests: Iterable[str], *more: Any) -> Any:
        keys = [self._head(session), self._key("sessions")]
        for digest in digests:
            keys += [self._key("blob", digest), self._key("refs", digest)]
        with self._translated():
            return script(keys=keys, args=[_encoded(session), version, self._ttl, *more])

    def _head(self, session: str) -> str:
        return self._key("head", session)

    def _key(self, *parts: str) -> str:
        return ":".join((self._prefix, *map(_encoded, parts)))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Inside, redis-py's errors are ours; they name the server, never its password."""
        try:
            yield
        except (redis.RedisError, RedisClusterException) as exc:
            pool = getattr(self._client, "connection_pool", None)
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


def _client(url: str) -> redis.Redis:
    try:
        client = redis.Redis.from_url(url)
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # connects to nothing, and refuses an option it does not know
    except (ValueError, TypeError):
        # Neither the URL nor redis-py's words are repeated: they may hold the password.
        raise ConfigError(
            "this is no Redis URL: write redis://[user:password@]host:6379/0, rediss:// for TLS or unix:///path.sock, "
            "with special characters of a password percent-encoded, and only options that redis-py knows"
        ) from None
    return client


def _encoded(text: str) -> str:
    """The text in letters, digits and -._~%: none of them means anything in a key."""
    return quote(text, safe="")
