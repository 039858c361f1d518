"""Sessions in Redis or Valkey: the store that workers share (docs/redis.md).

Keys, all under one hash tag so that a cluster keeps a namespace in one slot; names are percent-encoded:

    beacon:{namespace}:sessions        sorted set: session names
    beacon:{namespace}:ledger          hash: bytes in all, b:DIGEST its size, v:SESSION its version
    beacon:{namespace}:lives           sorted set: digests of blobs
    beacon:{namespace}:head:SESSION    hash: body, digests (JSON), version, point, past, tag, bytes
    beacon:{namespace}:blob:DIGEST     string: a tag, the blob
    beacon:{namespace}:refs:DIGEST     sorted set: the sessions that name the blob
    beacon:{namespace}:turn:SESSION    string: whose turn it is, to write; for 12 seconds, unless renewed
    beacon:{namespace}:jobs            stream: sessions to fold, with a group "fold"
    beacon:{namespace}:waiting         hash: the entry of each session that waits in the stream
    beacon:{namespace}:dead            hash: sessions that could not be folded, and why

Scores are the millisecond in which a session, or the last one that names a blob, expires, or +inf.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import Any

from beacon_memory.errors import ConfigError, IntegrityError, QuotaExceeded, SegmentMissing, StoreUnavailable
from beacon_memory.stores.base import Head, StateStore, check_session, conflict, differs, missing, not_found
from beacon_memory.stores.chain import PAST, POINT, descends, drawn, grown, point
from beacon_memory.stores.delta import shared
from beacon_memory.stores.redis.client import TIMEOUT, Link, settings
from beacon_memory.stores.redis.queue import RedisQueue
from beacon_memory.stores.redis.space import NOTHING, CachedHead, RedisSpace, lost
from beacon_memory.stores.redis.turns import turn
from beacon_memory.stores.redis.upkeep import (
    BATCH_KEYS,
    collect,
    mended,
    purged,
    renewed,
    resealed,
    staged,
    sweep_blobs,
)

BATCH_BYTES = 32 << 20  # of one reply or command: the server holds each in its memory
INLINE_BYTES = 8 << 20  # blobs that are sent with their commit; more are written ahead of it
FIRST_KEYS = 4  # blobs that are read before their size is known
STAGED_MS = 15 * 60 * 1000  # how long a blob waits for its commit
ATTEMPTS = 8  # tries against other writers


class RedisStore(RedisSpace, StateStore):
    """A store on a server: `url` is redis://, rediss://, unix://, redis+cluster:// or redis+sentinel://, or `client` a
    redis-py client (Redis or RedisCluster), which stays open.

    Sessions in one `namespace` share blobs and see each other; namespaces share nothing. With `ttl` a session, and what
    only it names, expires that many seconds, or up to a sixteenth less, after it was last committed, loaded or touched;
    asking for its version does not renew it. A session whose blobs would pass `session_bytes`, or a namespace
    `namespace_bytes`, raises QuotaExceeded. With `replicas`, which must be the number of all that the master has, a
    commit returns once they have it, so that no failover loses it; else it raises StoreUnavailable. A server that hangs
    is given up after `timeout` seconds. All these and `prefix` may also be options of the URL:
    `redis://host?ttl=86400&namespace=acme&replicas=1`.

    With a `key` (16 bytes or more, the same for all workers) everything is signed with an HMAC: what someone without
    the key has written, moved or put back raises IntegrityError. `encrypt` encrypts blobs and heads too. While the key
    is changed, what was signed with `old_key` can be read, until `reseal` has signed it again; `trust` also accepts
    what was written without a key. Only core commands are used (Redis 6.2 to 8, Valkey).
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
        old_key: bytes | None = None,
        encrypt: bool = False,
        trust: bool = False,
        session_bytes: int | None = None,
        namespace_bytes: int | None = None,
        replicas: int | None = None,
        timeout: int | None = None,
    ) -> None:
        if (url is None) == (client is None):
            raise ConfigError("a Redis store takes either a url or a client")
        given = {"namespace": namespace, "prefix": prefix, "ttl": ttl, "replicas": replicas, "timeout": timeout}
        found, where = settings(url, **given, session_bytes=session_bytes, namespace_bytes=namespace_bytes)
        link = Link(where, client, timeout=found["timeout"] or TIMEOUT, replicas=found["replicas"] or 0)
        signer = {"key": key, "old_key": old_key, "encrypt": encrypt, "trust": trust}
        super().__init__(link, prefix=found["prefix"], namespace=found["namespace"], ttl=found["ttl"], signer=signer)
        self._quotas = [found[name] or "" for name in ("session_bytes", "namespace_bytes")]
        self._mean = 1  # mean bytes of a blob in the last reply

    def load(self, session: str) -> tuple[Head, int]:
        check_session(session)
        for _ in range(ATTEMPTS):
            cached, due = self._look(session)
            if cached is None:
                raise not_found(session)
            if not due or renewed(self, session, cached):
                return cached.head, cached.version
        raise StoreUnavailable(f"session {session!r} could not be renewed: other writers were faster each time")

    def version(self, session: str) -> int:
        check_session(session)
        with self._link.using():
            version = self._client.hget(self._head(session), "version")
        if version:
            return self._number(session, version)
        cached, _ = self._look(session)  # raises when the head should be there
        return cached.version if cached else 0

    def read(self, digests: Sequence[str]) -> list[bytes]:
        blobs: list[bytes] = []
        size = min(FIRST_KEYS, max(1, BATCH_BYTES // self._mean))
        while len(blobs) < len(digests):
            some = digests[len(blobs) : len(blobs) + size]
            with self._link.using():
                values = self._client.mget([self._key("blob", digest) for digest in some])
            for digest, value in zip(some, values, strict=True):
                if value is None:
                    raise missing(digest)
                blobs.append(self._signer.verify("blob", digest, value))
            # A session's blobs have similar sizes: the next reply gets as many as fit.
            self._mean = sum(len(value) for value in values) // len(values) + 1
            size = max(1, min(BATCH_KEYS, BATCH_BYTES // self._mean))
        return blobs

    def commit(
        self,
        session: str,
        head: Head,
        blobs: Mapping[str, bytes],
        *,
        expected: int,
        damaged: Container[str] = (),
    ) -> int:
        check_session(session)
        named = dict.fromkeys(head.digests)
        signed = {d: self._signer.sign("blob", d, blobs[d]) for d in named if d in blobs}
        # Blobs that replace damaged ones come first, and are never written ahead of their commit.
        replacing = {d: signed.pop(d) for d in list(signed) if d in damaged}
        in_front = sum(map(len, signed.values())) > INLINE_BYTES
        version = drawn(expected)
        encoded = json.dumps(head.digests, separators=(",", ":")).encode()
        there: set[str] = set()  # blobs that others have written already, with the same contents
        for attempt in range(ATTEMPTS):
            old = self._at(session, expected)
            if in_front:
                there |= self._equal(self._stage_all(signed), blobs)
            inline = replacing | ({} if in_front else {d: blob for d, blob in signed.items() if d not in there})
            before = dict.fromkeys(old.head.digests)
            added = [d for d in named if d not in inline and (d in blobs or d not in before)]
            order = [*inline, *added, *(d for d in before if d not in named)]
            past = grown(old.head.past, expected)
            tag, kept = self._signer.signed("head", session, head.body, b"%d" % version, past, encoded)
            body, names = shared(old.body, kept), shared(old.digests, encoded, start=0)
            status, detail = self._run(
                self._commit, session, order, expected, self._ttl, version, point(version),
                b"" if old.ours else point(expected), POINT * PAST, tag, *body.flat, *names.flat, len(inline),
                len(inline) + len(added), len(replacing), *self._quotas, *inline.values(),
            )  # fmt: skip
            if status == b"moved":
                self._heads.put(session, CachedHead(version, replace(head, past=past), encoded, kept))
                return version
            if status == b"renew":
                renewed(self, session, old)
            elif status == b"purge":
                purged(self)
            elif status == b"differs":
                there |= self._equal([order[int(detail) - 1]], blobs)
            elif not (status == b"missing" and order[int(detail) - 1] in blobs and attempt < ATTEMPTS - 1):
                # A staged blob may be removed with another session before its commit: it is staged again.
                if in_front:
                    sweep_blobs(self, signed)
                self._refuse(session, status, detail, order=order, expected=expected)
            else:
                there.discard(order[int(detail) - 1])
        raise StoreUnavailable(f"session {session!r} could not be committed: other writers were faster each time")

    def delete(self, session: str) -> None:
        check_session(session)
        first: CachedHead | None = None
        while True:
            try:
                cached, _ = self._look(session)
            except IntegrityError:
                # A head that cannot be trusted can still be forgotten: its digests only say where its name is removed.
                version, digests = self._forgettable(session)
            else:
                if cached is None:
                    if first is not None:
                        return  # deleted by us, with the reply lost, or by another
                    raise not_found(session)
                if first is not None and not descends(cached.version, cached.head.past, first.version):
                    return  # deleted, and created again by somebody
                first = cached
                version, digests = b"%d" % cached.version, cached.head.digests
            self._heads.drop(session)
            if self._run(self._delete, session, dict.fromkeys(digests), version):
                return

    def turn(self, session: str) -> AbstractContextManager[None]:
        return turn(self, check_session(session))

    def queue(self) -> RedisQueue:
        return RedisQueue(self)

    def sessions(self) -> list[str]:
        found: list[str] = []
        names = self._names()
        for start in range(0, len(names), 1000):
            some = names[start : start + 1000]
            with self._link.using():
                pipeline = self._client.pipeline(transaction=False)
                for name in some:
                    pipeline.exists(self._head(name))
                found += [name for name, there in zip(some, pipeline.execute(), strict=True) if there]
        return sorted(found)

    def touch(self, session: str) -> None:
        self.load(session)

    def gc(self) -> int:
        return collect(self)

    def mend(self, session: str) -> None:
        mended(self, check_session(session))

    def reseal(self, *, batch: int = 100) -> int:
        return resealed(self, batch=batch)

    def scrub(self) -> list[str]:
        try:
            with self._link.using():
                about = self._client.info("persistence")
        except StoreUnavailable:
            about = {}  # this user may not ask, or it is a cluster: said as if all of it were there
        if not isinstance(about.get("aof_enabled", 1), int):
            about = {}
        left = []
        if about.get("aof_enabled", 1):
            left.append("the append-only file holds what was removed until it is rewritten: BGREWRITEAOF")
        if about.get("rdb_last_save_time", 1):
            left.append("an RDB snapshot holds it until the next one is written, and so does every copy of it: BGSAVE")
        return [*left, "the slow log may hold commands with texts: SLOWLOG RESET"]

    def close(self) -> None:
        if self._link.owned:
            self._client.close()

    def _at(self, session: str, expected: int) -> CachedHead:
        """The head that a commit replaces, from the cache where it is there. Raises SessionConflict."""
        cached = self._heads.get(session)
        if cached is not None and cached.version == expected:
            return cached
        if expected == 0:
            return NOTHING  # the script checks whether it is there already
        cached, _ = self._look(session)
        if cached is None or cached.version != expected:
            raise conflict(session, cached.version if cached else 0, expected=expected)
        return cached

    def _equal(self, digests: Sequence[str], blobs: Mapping[str, bytes]) -> set[str]:
        """Those that are stored with the same contents, signed differently. Raises BlobDiffers, IntegrityError."""
        equal: set[str] = set()
        for digest in digests:
            with suppress(SegmentMissing):  # gone again: the next try writes it
                if self.read([digest]) != [blobs[digest]]:
                    raise differs(digest)
                equal.add(digest)
        return equal

    def _stage_all(self, signed: Mapping[str, bytes]) -> list[str]:
        """Write blobs ahead of their commit, in bounded commands; they expire if it never comes. Returns the digests
        under which other bytes are stored.
        """
        others: list[str] = []
        batch: dict[str, bytes] = {}
        for digest, value in signed.items():
            if batch and sum(map(len, batch.values())) + len(value) > INLINE_BYTES:
                others += staged(self, batch, life=STAGED_MS)
                batch = {}
            batch[digest] = value
        return others + staged(self, batch, life=STAGED_MS)

    def _refuse(self, session: str, status: bytes, detail: Any, *, order: Sequence[str], expected: int) -> None:
        if status == b"conflict":
            raise conflict(session, self._number(session, detail), expected=expected)
        if status == b"missing":
            raise missing(order[int(detail) - 1])
        if status == b"lost":
            raise lost(session)
        what, most = ("session", self._quotas[0]) if status == b"session" else ("namespace", self._quotas[1])
        raise QuotaExceeded(
            f"the {what} of {session!r} would hold {int(detail)} bytes, its budget is {most}: nothing was written; "
            f"forget something, fold at a higher ratio, or raise {what}_bytes"
        )
