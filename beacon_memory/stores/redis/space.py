"""One namespace on one server: its keys, its scripts, and how heads are read and checked."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from beacon_memory.errors import ConfigError, IntegrityError
from beacon_memory.locks import Lock
from beacon_memory.stores.base import Head
from beacon_memory.stores.redis import scripts
from beacon_memory.stores.redis.client import Link
from beacon_memory.stores.signing import Signer

HEAD_CACHE_BYTES = 16 << 20  # of cached heads
LONGEST = 60  # a version has fewer digits
FIELDS = ("version", "past", "tag", "digests", "body")


@dataclass(frozen=True)
class CachedHead:
    """A session's head at one version, and the bytes it is kept as."""

    version: int
    head: Head
    digests: bytes
    body: bytes
    ours: bool = True  # whether it is in this release's form


NOTHING = CachedHead(0, Head(b""), b"", b"")


class RedisSpace:
    """The keys of one namespace. Every head that it returns has been checked."""

    def __init__(self, link: Link, *, prefix: str, namespace: str, ttl: int | None, signer: dict[str, Any]) -> None:
        self._link = link
        self._client = link.client
        self._prefix = f"{quote(prefix, safe=':')}:{{{encoded(namespace)}}}"
        self._signer = Signer(self._prefix, **signer)
        self._ttl = str(1000 * ttl) if ttl else ""
        if self._client.get_encoder().decode_responses:
            raise ConfigError("blobs are bytes: give a Redis client made with decode_responses=False")
        register = self._client.register_script
        self._look_script, self._commit, self._delete = map(register, (scripts.LOOK, scripts.COMMIT, scripts.DELETE))
        self._renew, self._stage, self._sweep = map(register, (scripts.RENEW, scripts.STAGE, scripts.SWEEP))
        self._purge, self._mark, self._reseal = map(register, (scripts.PURGE, scripts.MARK, scripts.RESEAL))
        self._heads = HeadCache(HEAD_CACHE_BYTES)

    def _look(self, session: str) -> tuple[CachedHead | None, bool]:
        """The newest head, checked, or None; and whether it is to be renewed. An unchanged cached one is not sent."""
        cached = self._heads.get(session)
        reply = self._run(self._look_script, session, (), self._ttl, cached.version if cached else "")
        if reply[0] == b"none":
            self._heads.drop(session)
            return None, False
        if reply[0] == b"lost":
            self._heads.drop(session)
            raise lost(session)
        if reply[0] == b"same" and cached is not None:
            return cached, bool(reply[1])
        due, mark, fields = bool(reply[1]), reply[2], reply[3:]
        cached = self._checked(session, fields, mark)
        self._heads.put(session, cached)
        return cached, due

    def _checked(self, session: str, fields: Sequence[bytes | None], mark: bytes | None) -> CachedHead:
        """A head from its fields. `mark` is its version in the ledger, None if not compared. Raises IntegrityError."""
        version, past, tag, digests, kept = (field or b"" for field in fields)
        number = self._number(session, version)
        try:
            if fields[1] is None:  # written by an older release
                self._signer.check(tag, "head", session, version, digests, kept)
                body = kept
            else:
                body = self._signer.verified(tag, "head", session, kept, version, past, digests)
            names = json.loads(digests)
        except (ValueError, RecursionError) as exc:
            raise IntegrityError(f"the head of session {session!r} is damaged: {exc!r:.120}") from exc
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise IntegrityError(f"the head of session {session!r} is damaged: its digests are not a list of texts")
        if mark is not None:
            marked = mark.partition(b" ")[0]  # older releases wrote a tag after it
            if not marked and self._signer.key is not None:
                raise IntegrityError(
                    f"the ledger has no entry of session {session!r}: it was evicted or edited; `gc`, or a repair of "
                    f"the session, writes it again from the head"
                )
            if marked and marked != version:
                raise IntegrityError(f"the head of session {session!r} was put back: the ledger has another version")
        return CachedHead(number, Head(body, tuple(names), past), digests, kept, ours=fields[1] is not None)

    def _number(self, session: str, version: bytes) -> int:
        if not (version.isdigit() and len(version) < LONGEST):
            raise IntegrityError(f"the head of session {session!r} is damaged: its version is {version!r:.40}")
        return int(version)

    def _unchecked(self, session: str) -> tuple[bytes, tuple[str, ...]]:
        """A head's version and digests as they are, for sweeping. No version when the head is gone, no digests when
        they cannot be read. Raises IntegrityError when the key is not a head at all.
        """
        with self._link.using():
            version, digests = self._client.hmget(self._head(session), ["version", "digests"])
        try:
            names = [name for name in json.loads(digests or b"[]") if isinstance(name, str)]
        except (ValueError, TypeError, RecursionError):
            names = []  # `gc` removes the blobs that no session names
        return version or b"", tuple(names)

    def _forgettable(self, session: str) -> tuple[bytes, tuple[str, ...]]:
        """The same, for forgetting a head that cannot be trusted. A key that is not a head at all is removed."""
        try:
            version, digests = self._unchecked(session)
        except IntegrityError:
            with self._link.using():
                self._client.delete(self._head(session))
            return b"0", ()
        return version or b"0", digests

    def _run(self, script: Any, session: str, digests: Iterable[str], *more: Any) -> Any:
        durable = script is self._commit or script is self._delete
        keys, args = self._keys(session, digests), [encoded(session), *more]
        reply = self._link.lasting(script, keys, args) if durable else self._link.call(script, keys, args)
        return [*reply, None] if isinstance(reply, list) and len(reply) == 1 else reply

    def _keys(self, session: str, digests: Iterable[str]) -> list[str]:
        keys = [self._head(session), self._key("sessions"), self._key("ledger"), self._key("lives")]
        for digest in digests:
            keys += [self._key("blob", digest), self._key("refs", digest)]
        return keys

    def _names(self) -> list[str]:
        """The sessions in the index, without what cannot be a name of ours."""
        with self._link.using():
            found = self._client.zrange(self._key("sessions"), 0, -1)
        return [unquote(name.decode()) for name in found if name.isascii()]

    def _scan(self, kind: str) -> list[str]:
        """The names behind all keys of this kind."""
        pattern = self._key(kind).translate({ord(c): f"\\{c}" for c in "*?[]\\"}) + ":*"
        with self._link.using():
            keys = list(self._client.scan_iter(match=pattern, count=1000))
        return [unquote(key.decode().rpartition(":")[2]) for key in keys if key.isascii()]

    def _time(self) -> tuple[int, int]:
        # Each node of a cluster has a clock of its own: the one with the namespace is asked.
        node = getattr(self._client, "get_node_from_key", None)
        with self._link.using():
            seconds, microseconds = (
                self._client.time(target_nodes=node(self._key("sessions"))) if node else self._client.time()
            )
        return int(seconds), int(microseconds)

    def _head(self, session: str) -> str:
        return self._key("head", session)

    def _key(self, *parts: str) -> str:
        return ":".join((self._prefix, *map(encoded, parts)))


class HeadCache:
    """An LRU cache of heads by session, so that a worker need not read again what it last read or wrote."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._heads: OrderedDict[str, CachedHead] = OrderedDict()
        self._lock = Lock()

    def get(self, session: str) -> CachedHead | None:
        """The cached head. Only the store knows whether it is still the newest."""
        with self._lock:
            if session in self._heads:
                self._heads.move_to_end(session)
            return self._heads.get(session)

    def put(self, session: str, cached: CachedHead) -> None:
        """Cache this head."""
        with self._lock:
            self._remove(session)
            self._heads[session] = cached
            self._bytes += _size(cached)
            while self._bytes > self._limit and self._heads:
                self._remove(next(iter(self._heads)))

    def drop(self, session: str) -> None:
        """Remove this session's head from the cache."""
        with self._lock:
            self._remove(session)

    def _remove(self, session: str) -> None:
        if cached := self._heads.pop(session, None):
            self._bytes -= _size(cached)


def _size(cached: CachedHead) -> int:
    apart = 0 if cached.body is cached.head.body else len(cached.body)
    return 256 + len(cached.head.body) + apart + len(cached.head.past) + 2 * len(cached.digests)


def lost(session: str) -> IntegrityError:
    """The error for a head that should be there."""
    return IntegrityError(
        f"the head of session {session!r} should be in Redis and is not: it was evicted or removed; "
        f"forget the session to begin it again"
    )


def encoded(text: str) -> str:
    """The text in letters, digits and -._~%, none of which has a meaning in a key."""
    return quote(text, safe="")
