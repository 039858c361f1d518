"""Maintenance of a namespace: renewing sessions, sweeping blobs, rebuilding what was lost beside the heads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import unquote

from beacon_memory.errors import IntegrityError, StoreError
from beacon_memory.stores.base import not_found
from beacon_memory.stores.redis.space import FIELDS, CachedHead, RedisSpace, encoded
from beacon_memory.stores.signing import TAG

BATCH_KEYS = 256  # digests of one script call, where the work can be divided
KINDS = {"sessions": b"zset", "ledger": b"hash", "lives": b"zset"}


def collect(space: RedisSpace) -> int:
    """Rebuild the index, the ledger and the blobs' refs from the heads, then remove blobs that no session names;
    returns their number.
    """
    _drop_foreign(space)
    purged(space)
    heads = {*space._scan("head"), *space._names(), *_marked(space)}
    # First every session is added to its blobs' refs again, since some may be lost. Then come blobs without refs.
    for session in sorted(heads):
        try:
            version, named = space._unchecked(session)
        except IntegrityError:
            continue  # not a head: reading the session raises, and it can be forgotten
        if version:
            _named_again(space, session, version, named)
            _marked_again(space, session)
        else:
            _sweep_heads(space, [session])
    swept, digests = 0, sorted({*space._scan("blob"), *space._scan("refs")})
    for start in range(0, len(digests), BATCH_KEYS):
        swept += sweep_blobs(space, digests[start : start + BATCH_KEYS])
    return swept


def mended(space: RedisSpace, session: str) -> None:
    """Rebuild what is kept beside one session's head. Raises SessionNotFound, IntegrityError."""
    _drop_foreign(space)
    version, digests = space._unchecked(session)
    if not version:
        raise not_found(session)
    _marked_again(space, session, quiet=False)
    _named_again(space, session, version, digests)


def resealed(space: RedisSpace, *, batch: int) -> int:
    """Sign with the newest key what is signed otherwise; returns how many values that were. Raises IntegrityError."""
    done = 0
    for session in space._scan("head"):
        done += _resealed_head(space, session)
    digests = space._scan("blob")
    for start in range(0, len(digests), batch):
        for digest in digests[start : start + batch]:
            key = space._key("blob", digest)
            with space._link.using():
                kept = space._client.get(key) or b""
            if not kept or space._signer.newest(kept[:TAG], "blob", digest, kept[TAG:]):
                continue
            signed = space._signer.sign("blob", digest, space._signer.verify("blob", digest, kept))
            done += int(space._run(space._reseal, "", [digest], "blob", kept[:TAG], signed))
    return done


def _resealed_head(space: RedisSpace, session: str) -> int:
    with space._link.using():
        fields = space._client.hmget(space._head(session), FIELDS)
    if fields[0] is None:
        return 0
    past = fields[1]
    version, _, tag, digests, kept = (field or b"" for field in fields)
    about = (version, past or b"", digests)
    if past is not None and space._signer.newest(tag, "head", session, *about, kept):
        return 0
    cached = space._checked(session, fields, None)
    tag, body = space._signer.signed("head", session, cached.head.body, *about)
    space._heads.drop(session)
    return int(space._run(space._reseal, session, (), "head", version, tag, past or b"", body))


def renewed(space: RedisSpace, session: str, cached: CachedHead) -> bool:
    """Give a session its full time to live again, in bounded batches; False when another writer has committed."""
    with space._link.using():
        left = space._client.pttl(space._head(session))
    seconds, microseconds = space._time()
    ttl = int(space._ttl or 0)
    death = str(seconds * 1000 + microseconds // 1000 + ttl) if ttl else "inf"
    # A head must never outlive its blobs.
    shrinks = bool(ttl) and not 0 <= left <= ttl
    version, digests = b"%d" % cached.version, cached.head.digests
    return _name_all(space, session, version, digests, death, head_first=shrinks)


def purged(space: RedisSpace) -> None:
    """Remove from the ledger what has expired."""
    while space._run(space._purge, "", ()):
        pass


def sweep_blobs(space: RedisSpace, digests: Iterable[str]) -> int:
    """Remove those of these blobs that no session names; returns their number."""
    digests = list(digests)
    with space._link.using():
        pipeline = space._client.pipeline(transaction=False)
        for digest in digests:
            pipeline.type(space._key("refs", digest))
        kinds = pipeline.execute()
        pipeline = space._client.pipeline(transaction=False)
        for digest, kind in zip(digests, kinds, strict=True):
            key = space._key("refs", digest)
            # Refs of another type protect nothing, and sessions are in the refs of their blobs again by now.
            pipeline.zrange(key, 0, -1) if kind in (b"zset", b"none") else pipeline.delete(key)
        found = [names for names in pipeline.execute() if isinstance(names, list)]
    return _swept(space, digests, sorted({name.decode("ascii", "replace") for names in found for name in names}))


def _named_again(space: RedisSpace, session: str, version: bytes, digests: Sequence[str]) -> None:
    """Add a session to the refs of its blobs again, to expire when its head does."""
    with space._link.using():
        left = space._client.pttl(space._head(session))
    seconds, microseconds = space._time()
    if left != -2:
        death = "inf" if left == -1 else str(seconds * 1000 + microseconds // 1000 + left)
        _name_all(space, session, version, digests, death, head_first=False)


def _marked_again(space: RedisSpace, session: str, *, quiet: bool = True) -> None:
    """Write a session's version to the ledger again, where there is none or it cannot be read."""
    with space._link.using():
        fields = space._client.hmget(space._head(session), FIELDS)
        mark = space._client.hget(space._key("ledger"), f"v:{encoded(session)}") or b""
    if mark.partition(b" ")[0].isdigit():
        return
    try:
        cached = space._checked(session, fields, None)
    except StoreError:
        if quiet:
            return  # no entry for a head whose tag is wrong: reading the session raises
        raise
    space._run(space._mark, session, (), str(cached.version))


def _marked(space: RedisSpace) -> set[str]:
    """The sessions in the ledger."""
    with space._link.using():
        fields = [name for name, _ in space._client.hscan_iter(space._key("ledger"), match="v:*", count=1000)]
    return {unquote(name.decode()[2:]) for name in fields if name.isascii()}


def _drop_foreign(space: RedisSpace) -> None:
    """Remove keys of another type that have the name of the index, the ledger or the lives."""
    with space._link.using():
        for name, kind in KINDS.items():
            key = space._key(name)
            if space._client.type(key) not in (b"none", kind):
                space._client.delete(key)


def _name_all(
    space: RedisSpace, session: str, version: bytes, digests: Sequence[str], death: str, *, head_first: bool
) -> bool:
    names = list(dict.fromkeys(digests))
    batches = [names[start : start + BATCH_KEYS] for start in range(0, len(names), BATCH_KEYS)] or [[]]
    for number, batch in enumerate(batches):
        with_head = number == (0 if head_first else len(batches) - 1)
        if not space._run(space._renew, session, batch, version, death, int(with_head)):
            return False
    return True


def _sweep_heads(space: RedisSpace, sessions: Iterable[str]) -> None:
    _swept(space, [], [encoded(session) for session in sessions])


def _swept(space: RedisSpace, digests: Sequence[str], names: Sequence[str]) -> int:
    keys = space._keys("", digests) + [space._head(unquote(name)) for name in names]
    return int(space._link.call(space._sweep, keys, ["", len(names), *names]))


def staged(space: RedisSpace, batch: Mapping[str, bytes], *, life: int) -> list[str]:
    """Write blobs ahead of their commit, for `life` milliseconds; returns the digests that hold other bytes."""
    keys, names = [space._key("blob", digest) for digest in batch], list(batch)
    return [names[int(place) - 1] for place in space._link.call(space._stage, keys, [life, *batch.values()])]
