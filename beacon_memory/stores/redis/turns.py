"""Turns of the writers of one session, by a lock with a lease (redis-py's own)."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from redis.exceptions import LockError

from beacon_memory.errors import StoreError
from beacon_memory.stores.redis.space import RedisSpace
from beacon_memory.stores.turns import TURN_SECONDS, waited

LEASE_S = 12  # seconds after which the turn of a writer that died is over; a living one renews it


@contextmanager
def turn(space: RedisSpace, session: str, *, seconds: float = TURN_SECONDS, lease: int = LEASE_S) -> Iterator[None]:
    """A turn at this session. Where Redis does not give one in so many seconds, or at all, it goes on without."""
    key, ours = space._key("turn", session), secrets.token_hex(16).encode()
    lock = space._client.lock(key, timeout=lease, thread_local=False)
    over = threading.Event()

    def take() -> bool:
        with space._link.using():  # no connection is held between two looks
            # Sent again after its reply was lost, it is told that the turn is taken: by itself.
            return bool(lock.acquire(blocking=False, token=ours)) or space._client.get(key) == ours

    def renew() -> None:
        while not over.wait(lease / 3):
            with suppress(StoreError, LockError), space._link.using():
                lock.reacquire()

    mine = unknown = done = False
    try:
        mine = waited(take, seconds=seconds)
    except StoreError:  # whatever is wrong, the write that follows tells
        unknown = True
    lock.local.token = ours
    renewing = threading.Thread(target=renew, name="beacon-turn", daemon=True)
    if mine:
        renewing.start()
    try:
        yield
        done = True
    finally:
        over.set()
        if mine:
            renewing.join()
        if mine or (unknown and done):
            # Another's already, where it could not be renewed in time.
            with suppress(StoreError, LockError), space._link.using():
                lock.release()
