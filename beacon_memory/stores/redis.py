"""Sessions in Redis or Valkey: the store that workers share (docs/redis.md).

Keys, all under one hash tag so that a cluster keeps a namespace in one slot; names are percent-encoded:

    beacon:{namespace}:sessions        sorted set: session names
    beacon:{namespace}:ledger          hash: bytes in all, b:DIGEST its size, v:SESSION its version and a tag of it
    beacon:{namespace}:lives           sorted set: digests of blobs
    beacon:{namespace}:head:SESSION    hash: body, digests (JSON), version, tag, bytes
    beacon:{namespace}:blob:DIGEST     string: a tag, the blob
    beacon:{namespace}:refs:DIGEST     sorted set: the sessions that name the blob

Scores are the millisecond in which a session, or the last one that names a blob, expires, or +inf.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

from beacon_memory.errors import (
    ConfigError,
    IntegrityError,
    QuotaExceeded,
    StoreUnavailable,
)
from beacon_memory.stores import redis_scripts as scripts
from beacon_memory.stores.base import Head, StateStore, check_session, conflict, missing, not_found
from beacon_memory.stores.delta import shared
from beacon_memory.stores.head_cache import CachedHead, HeadCache
from beacon_memory.stores.redis_client import connect, settings, translated
from beacon_memory.stores.signing import Signer

BATCH_BYTES = 32 << 20  # of one reply, and of one command: more would be held in the server's memory at once
INLINE_BYTES = 8 << 20  # blobs that travel with their commit; more are written in front of it
BATCH_KEYS = 256  # digests of one script where it may be divided
FIRST_KEYS = 4  # blobs that are read before it is known how large they are
STAGED_MS = 15 * 60 * 1000  # how long a blob waits for its commit
HEAD_CACHE_BYTES = 16 << 20  # bodies of heads on hand
ATTEMPTS = 8  # rounds with other writers in between


class RedisStore(StateStore):
    """A store on a server: `url` is redis://, rediss://, unix://, redis+cluster:// or redis+sentinel://, or `client` a
    redis-py client (Redis or RedisCluster), which stays open.

    Sessions of one `namespace` share blobs and see each other; nothing crosses from one to another. With `ttl` a
    session, and what only it names, is gone that many seconds, or up to a sixteenth less, after it was last committed,
    loaded or touched; asking for its version does not renew it. A session whose blobs would pass `session_bytes`, or a
    namespace `namespace_bytes`, raises QuotaExceeded. These four and `prefix` may stand in the URL:
    `redis://host?ttl=86400&namespace=acme`.

    With a `key` (16 bytes or more, the same for all workers) everything is sealed with an HMAC: what someone without
    the key has written, moved or put back raises IntegrityError. The commands are core ones (Redis 6.2 to 8, Valkey).
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        client: Any = None,
        namespace: str | None = None,
        prefix: str | None = None,
        ttl: int | None = None,
        key: bytes | None = None,
        session_bytes: int | None = None,
        namespace_bytes: int | None = None,
    ) -> None:
        if (url is None) == (client is None):
            raise ConfigError("a Redis store takes either a url or a client")
        found, where = settings(
            url,
            namespace=namespace,
            prefix=prefix,
            ttl=ttl,
            session_bytes=session_bytes,
            namespace_bytes=namespace_bytes,
        )
        self._prefix = f"{quote(found['prefix'], safe=':')}:{{{_encoded(found['namespace'])}}}"
        self._signer = Signer(self._prefix, key)
        self._ttl = str(1000 * found["ttl"]) if found["ttl"] else ""
        self._quotas = [found[name] or "" for name in ("session_bytes", "namespace_bytes")]
        self._owned = client is None
        # redis-py types a reply as all that it could be under any setting.
        self._client: Any = client if client is not None else connect(where)
        if self._client.get_encoder().decode_responses:
            raise ConfigError("blobs are bytes: give a Redis client made with decode_responses=False")
        register = self._client.register_script
        self._look_script, self._commit, self._delete = map(register, (scripts.LOOK, scripts.COMMIT, scripts.DELETE))
        self._renew, self._stage, self._sweep = map(register, (scripts.RENEW, scripts.STAGE, scripts.SWEEP))
        self._purge = register(scripts.PURGE)
        self._heads = HeadCache(HEAD_CACHE_BYTES)
        self._mean = 1  # bytes of a blob, in the newest reply

    def load(self, session: str) -> tuple[Head, int]:
        check_session(session)
        for _ in range(ATTEMPTS):
            cached, due = self._look(session)
            if cached is None:
                raise not_found(session)
            if not due or self._renewed(session, cached):
                return cached.head, cached.version
        raise StoreUnavailable(f"session {session!r} could not be renewed: other writers were faster each time")

    def version(self, session: str) -> int:
        check_session(session)
        with translated(self._client):
            version = int(self._client.hget(self._head(session), "version") or 0)
        if version:
            return version
        cached, _ = self._look(session)  # says so when the head should be there
        return cached.version if cached else 0

    def read(self, digests: Sequence[str]) -> list[bytes]:
        blobs: list[bytes] = []
        size = min(FIRST_KEYS, max(1, BATCH_BYTES // self._mean))
        while len(blobs) < len(digests):
            some = digests[len(blobs) : len(blobs) + size]
            with translated(self._client):
                values = self._client.mget([self._key("blob", digest) for digest in some])
            for digest, value in zip(some, values, strict=True):
                if value is None:
                    raise missing(digest)
                blobs.append(self._signer.verify("blob", digest, value))
            # Blobs of a session are much alike: the next reply holds as many as fit.
            self._mean = sum(len(value) for value in values) // len(values) + 1
            size = max(1, min(BATCH_KEYS, BATCH_BYTES // self._mean))
        return blobs

    def commit(self, session: str, head: Head, blobs: Mapping[str, bytes], *, expected: int) -> int:
        check_session(session)
        named = dict.fromkeys(head.digests)
        sealed = {d: self._signer.sign("blob", d, blobs[d]) for d in named if d in blobs}
        staged = sum(map(len, sealed.values())) > INLINE_BYTES
        # From here on each new version is one that nobody had: the clock in microseconds, and a number by lot.
        version = max(expected + 1, time.time_ns() // 1000 * 4096 + int.from_bytes(os.urandom(2)) % 4096)
        encoded = json.dumps(head.digests, separators=(",", ":")).encode()
        for attempt in range(ATTEMPTS):
            old = self._at(session, expected)
            if staged:
                self._stage_all(sealed)
            inline = {} if staged else sealed
            before = dict.fromkeys(old.head.digests)
            added = [d for d in named if d not in inline and (d in sealed or d not in before)]
            order = [*inline, *added, *(d for d in before if d not in named)]
            tag = self._signer.tag("head", session, b"%d" % version, encoded, head.body)
            mark = b"%d " % version + self._signer.tag("mark", session, b"%d" % version)
            body, names = shared(old.head.body, head.body), shared(old.digests, encoded, start=0)
            status, detail = self._run(
                self._commit, session, order, expected, self._ttl, version, tag, mark,
                *body.flat, *names.flat, len(inline), len(inline) + len(added), *self._quotas, *inline.values(),
            )  # fmt: skip
            if status == b"moved":
                self._heads.put(session, CachedHead(version, head, encoded))
                return version
            if status == b"renew":
                self._renewed(session, old)
            elif status == b"purge":
                self._purged()
            elif not (status == b"missing" and order[int(detail) - 1] in sealed and attempt < ATTEMPTS - 1):
                # A blob that was staged may go with another session before its commit: it is staged again.
                if staged:
                    self._sweep_blobs(sealed)
                self._refuse(session, status, detail, order=order, expected=expected)
        raise StoreUnavailable(f"session {session!r} could not be committed: other writers were faster each time")

    def delete(self, session: str) -> None:
        check_session(session)
        while True:
            try:
                cached, _ = self._look(session)
            except IntegrityError:
                # What cannot be trusted can be forgotten: its digests only name what loses this session's name.
                cached = self._unchecked(session)
            else:
                if cached is None:
                    raise not_found(session)
            self._heads.drop(session)
            if self._run(self._delete, session, dict.fromkeys(cached.head.digests), cached.version):
                return

    def sessions(self) -> list[str]:
        found: list[str] = []
        with translated(self._client):
            names = [name.decode() for name in self._client.zrange(self._key("sessions"), 0, -1)]
            for start in range(0, len(names), 1000):
                some = [unquote(name) for name in names[start : start + 1000]]
                pipeline = self._client.pipeline(transaction=False)
                for name in some:
                    pipeline.exists(self._head(name))
                found += [name for name, there in zip(some, pipeline.execute(), strict=True) if there]
        return sorted(found)

    def touch(self, session: str) -> None:
        self.load(session)

    def gc(self) -> int:
        self._purged()
        with translated(self._client):
            heads = {_name(key) for key in self._scan("head")}
            heads |= {unquote(name.decode()) for name in self._client.zrange(self._key("sessions"), 0, -1)}
        # First every session names its blobs again: a list of names may have been lost. Then what nobody names goes.
        for session in sorted(heads):
            cached = self._unchecked(session)
            if cached.version:
                self._rename(session, cached)
            else:
                self._sweep_heads([session])
        swept = 0
        with translated(self._client):
            digests = sorted({_name(key) for kind in ("blob", "refs") for key in self._scan(kind)})
        for start in range(0, len(digests), BATCH_KEYS):
            swept += self._sweep_blobs(digests[start : start + BATCH_KEYS])
        return swept

    def close(self) -> None:
        if self._owned:
            self._client.close()

    def _look(self, session: str) -> tuple[CachedHead | None, bool]:
        """The newest head, checked, or None; and whether it is to be renewed. One that is on hand is not read again."""
        cached = self._heads.get(session)
        reply = self._run(self._look_script, session, (), self._ttl, cached.version if cached else "")
        if reply[0] == b"none":
            self._heads.drop(session)
            return None, False
        if reply[0] == b"lost":
            raise _lost(session)
        version, due = int(reply[1]), bool(reply[2])
        if cached is not None and cached.version == version:
            return cached, due
        mark, tag, digests, body = reply[3:]
        self._signer.check(tag or b"", "head", session, b"%d" % version, digests or b"", body or b"")
        if self._signer.key is not None or mark:
            marked, _, proof = mark.partition(b" ")
            self._signer.check(proof, "mark", session, marked)
            if int(marked) != version:
                raise IntegrityError(f"the head of session {session!r} was put back: it is not the newest version's")
        cached = CachedHead(version, Head(body, tuple(json.loads(digests))), digests)
        self._heads.put(session, cached)
        return cached, due

    def _at(self, session: str, expected: int) -> CachedHead:
        """The head that a commit moves from, without a reading when it is on hand. Raises SessionConflict."""
        cached = self._heads.get(session)
        if cached is not None and cached.version == expected:
            return cached
        if expected == 0:
            return CachedHead(0, Head(b""), b"")  # whether it is there already, the script says
        cached, _ = self._look(session)
        if cached is None or cached.version != expected:
            raise conflict(session, cached.version if cached else 0, expected=expected)
        return cached

    def _unchecked(self, session: str) -> CachedHead:
        """A head as it stands, for sweeping: version 0 when it is gone."""
        with translated(self._client):
            version, digests = self._client.hmget(self._head(session), ["version", "digests"])
        try:
            names = [name for name in json.loads(digests or b"[]") if isinstance(name, str)]
            return CachedHead(int(version or 0), Head(b"", tuple(names)), b"")
        except (ValueError, TypeError) as exc:
            raise IntegrityError(f"the head of session {session!r} is damaged: {exc}") from exc

    def _renewed(self, session: str, cached: CachedHead) -> bool:
        """Give a session its whole life again, in bounded batches; False when it has moved meanwhile."""
        with translated(self._client):
            left = self._client.pttl(self._head(session))
            seconds, microseconds = self._time()
        death = str(seconds * 1000 + microseconds // 1000 + int(self._ttl)) if self._ttl else "inf"
        # No moment in which a head outlives its blobs.
        shrinks = bool(self._ttl) and not 0 <= left <= int(self._ttl)
        return self._name_all(session, cached, death, head_first=shrinks)

    def _rename(self, session: str, cached: CachedHead) -> None:
        """Put a session's name on its blobs again, with the life that its head has."""
        with translated(self._client):
            left = self._client.pttl(self._head(session))
            seconds, microseconds = self._time()
        if left != -2:
            death = "inf" if left == -1 else str(seconds * 1000 + microseconds // 1000 + left)
            self._name_all(session, cached, death, head_first=False)

    def _name_all(self, session: str, cached: CachedHead, death: str, *, head_first: bool) -> bool:
        digests = list(dict.fromkeys(cached.head.digests))
        batches = [digests[start : start + BATCH_KEYS] for start in range(0, len(digests), BATCH_KEYS)] or [[]]
        for number, batch in enumerate(batches):
            with_head = number == (0 if head_first else len(batches) - 1)
            if not self._run(self._renew, session, batch, cached.version, death, int(with_head)):
                return False
        return True

    def _stage_all(self, sealed: Mapping[str, bytes]) -> None:
        """Write blobs in front of their commit, in bounded commands; they go by themselves if it never comes."""
        batch: dict[str, bytes] = {}
        for digest, value in sealed.items():
            if batch and sum(map(len, batch.values())) + len(value) > INLINE_BYTES:
                self._stage_some(batch)
                batch = {}
            batch[digest] = value
        self._stage_some(batch)

    def _stage_some(self, batch: Mapping[str, bytes]) -> None:
        with translated(self._client):
            self._stage(keys=[self._key("blob", d) for d in batch], args=[STAGED_MS, *batch.values()])

    def _sweep_blobs(self, digests: Iterable[str]) -> int:
        """Remove those of the blobs that no session names; gives their number."""
        digests = list(digests)
        with translated(self._client):
            pipeline = self._client.pipeline(transaction=False)
            for digest in digests:
                pipeline.zrange(self._key("refs", digest), 0, -1)
            names = sorted({name.decode() for found in pipeline.execute() for name in found})
        return self._swept(digests, names)

    def _sweep_heads(self, sessions: Iterable[str]) -> None:
        self._swept([], [_encoded(session) for session in sessions])

    def _swept(self, digests: Sequence[str], names: Sequence[str]) -> int:
        keys = self._keys("", digests) + [self._head(unquote(name)) for name in names]
        with translated(self._client):
            return int(self._sweep(keys=keys, args=["", len(names), *names]))

    def _purged(self) -> None:
        while self._run(self._purge, "", ()):
            pass

    def _refuse(self, session: str, status: bytes, detail: Any, *, order: Sequence[str], expected: int) -> None:
        if status == b"conflict":
            raise conflict(session, int(detail), expected=expected)
        if status == b"missing":
            raise missing(order[int(detail) - 1])
        if status == b"lost":
            raise _lost(session)
        what, most = ("session", self._quotas[0]) if status == b"session" else ("namespace", self._quotas[1])
        raise QuotaExceeded(
            f"the {what} of {session!r} would hold {int(detail)} bytes, its budget is {most}: nothing was written; "
            f"forget something, fold at a higher ratio, or raise {what}_bytes"
        )

    def _run(self, script: Any, session: str, digests: Iterable[str], *more: Any) -> Any:
        with translated(self._client):
            reply = script(keys=self._keys(session, digests), args=[_encoded(session), *more])
        return [*reply, None] if isinstance(reply, list) and len(reply) == 1 else reply

    def _keys(self, session: str, digests: Iterable[str]) -> list[str]:
        keys = [self._head(session), self._key("sessions"), self._key("ledger"), self._key("lives")]
        for digest in digests:
            keys += [self._key("blob", digest), self._key("refs", digest)]
        return keys

    def _scan(self, kind: str) -> list[bytes]:
        pattern = self._key(kind).translate({ord(c): f"\\{c}" for c in "*?[]\\"}) + ":*"
        return list(self._client.scan_iter(match=pattern, count=1000))

    def _time(self) -> tuple[int, int]:
        # In a cluster nodes have clocks of their own: the one that keeps the namespace is asked.
        node = getattr(self._client, "get_node_from_key", None)
        seconds, microseconds = (
            self._client.time(target_nodes=node(self._key("sessions"))) if node else self._client.time()
        )
        return int(seconds), int(microseconds)

    def _head(self, session: str) -> str:
        return self._key("head", session)

    def _key(self, *parts: str) -> str:
        return ":".join((self._prefix, *map(_encoded, parts)))


def _lost(session: str) -> IntegrityError:
    return IntegrityError(
        f"the head of session {session!r} should be in Redis and is not: it was evicted or removed: "
        f"forget the session to begin it anew"
    )


def _encoded(text: str) -> str:
    """The text in letters, digits and -._~%: none of them means anything in a key."""
    return quote(text, safe="")


def _name(key: bytes) -> str:
    return unquote(key.decode().rpartition(":")[2])
