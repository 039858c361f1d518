"""Turns of the writers of one session, by a lock with a lease (redis-py's own)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from redis.exceptions import LockError

from beacon_memory.errors import StoreError
from beacon_memory.stores.redis.space import RedisSpace
from beacon_memory.stores.turns import TURN_SECONDS, waited

LEASE_S = 30  # a turn that takes longer, or whose writer has died, is over for the others


@contextmanager
def turn(space: RedisSpace, session: str, *, seconds: float = TURN_SECONDS, lease: int = LEASE_S) -> Iterator[None]:
    """A turn at this session. Where Redis does not give one in so many seconds, or at all, it goes on without."""
    lock = space._client.lock(space._key("turn", session), timeout=lease)

    def take() -> bool:
        with space._link.using():  # no connection is held between two looks
            return bool(lock.acquire(blocking=False))

    mine = False
    with suppress(StoreError):  # whatever is wrong, the write that follows tells
        mine = waited(take, seconds=seconds)
    try:
        yield
    finally:
        if mine:
            # Another's already, where it took longer than its lease.
            with suppress(StoreError, LockError), space._link.using():
                lock.release()
