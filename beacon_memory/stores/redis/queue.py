"""The queue of sessions to fold as a Redis stream, read by one group of workers (docs/redis.md)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import redis

from beacon_memory.locks import Lock
from beacon_memory.stores.queue import Counts, Dead, Job, Queue
from beacon_memory.stores.redis.space import RedisSpace

T = TypeVar("T")
# One consumer for all workers: who has a job is told by how long it was silent, so names of dead ones need no sweeping.
GROUP = CONSUMER = "fold"
BLOCK_S = 1.0  # the longest wait in one call: it must end before the connection times out

# KEYS: jobs, waiting. `waiting` names the entry under which a session waits; an entry that is gone counts for nothing.
PUT = """
local id = redis.call('HGET', KEYS[2], ARGV[1])
if id and #redis.call('XRANGE', KEYS[1], id, id) > 0 then return 0 end
redis.call('HSET', KEYS[2], ARGV[1], redis.call('XADD', KEYS[1], '*', 'session', ARGV[1]))
return 1
"""
# KEYS: jobs, waiting, dead. ARGV: session.
DROP = """
local id = redis.call('HGET', KEYS[2], ARGV[1])
if id then redis.call('XDEL', KEYS[1], id) end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
return 1
"""
# KEYS: jobs, dead. ARGV: group, id, session, what is said about it among the dead.
END = """
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
if ARGV[4] == '' then redis.call('HDEL', KEYS[2], ARGV[3]) else redis.call('HSET', KEYS[2], ARGV[3], ARGV[4]) end
return 1
"""


class RedisQueue(Queue):
    """The queue of one namespace."""

    def __init__(self, space: RedisSpace) -> None:
        self._link = space._link
        self._jobs, self._waiting, self._dead = (space._key(name) for name in ("jobs", "waiting", "dead"))
        self._put_script, self._end, self._drop = map(space._client.register_script, (PUT, END, DROP))
        self._from, self._lock = "0-0", Lock()  # where the next look for jobs of dead workers begins

    def put(self, session: str) -> None:
        self._link.call(self._put_script, [self._jobs, self._waiting], [session])

    def take(self, *, lease: float, seconds: float) -> Job | None:
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            found = self._silent(lease) or self._next(min(left, BLOCK_S))
            if found is None and left > BLOCK_S:
                continue
            return found

    def renew(self, job: Job, *, lease: float) -> None:
        # Claimed by itself, an entry is idle for no time; with `justid` that counts for no try.
        self._grouped(lambda client: client.xclaim(self._jobs, GROUP, CONSUMER, 0, [job.id], justid=True))

    def done(self, job: Job) -> None:
        self._link.call(self._end, [self._jobs, self._dead], [GROUP, job.id, job.session, ""])

    def bury(self, job: Job, why: str) -> None:
        said = json.dumps({"why": why, "tries": job.tries, "at": time.time()})
        self._link.call(self._end, [self._jobs, self._dead], [GROUP, job.id, job.session, said])

    def drop(self, session: str) -> None:
        self._link.call(self._drop, [self._jobs, self._waiting, self._dead], [session])

    def dead(self) -> list[Dead]:
        with self._link.using() as client:
            found = client.hgetall(self._dead)
        return sorted((_read(name, said) for name, said in found.items()), key=lambda one: one.session)

    def revive(self) -> int:
        found = self.dead()
        for one in found:
            self.put(one.session)
            with self._link.using() as client:
                client.hdel(self._dead, one.session)
        return len(found)

    def counts(self) -> Counts:
        def read(client: Any) -> Counts:
            taken = int(client.xpending(self._jobs, GROUP)["pending"])
            return Counts(int(client.xlen(self._jobs)) - taken, taken, int(client.hlen(self._dead)))

        return self._grouped(read)

    def _silent(self, lease: float) -> Job | None:
        """A job whose worker was silent for its lease."""
        with self._lock:
            start = self._from

        def claim(client: Any) -> Any:
            idle = int(1000 * lease)
            return client.xautoclaim(self._jobs, GROUP, CONSUMER, idle, start_id=start, count=1)

        following, found = self._grouped(claim)[:2]
        with self._lock:
            self._from = following.decode()
        return self._taken([entry for entry in found if entry[0]])

    def _next(self, seconds: float) -> Job | None:
        """The next job that nobody has taken."""
        block = int(1000 * seconds) if seconds >= 0.001 else None  # 0 would be for ever

        def read(client: Any) -> Any:
            return client.xreadgroup(GROUP, CONSUMER, {self._jobs: ">"}, count=1, block=block)

        found = self._grouped(read)
        return self._taken(found[0][1]) if found else None

    def _taken(self, entries: list[Any]) -> Job | None:
        """The job in a stream's entry. From now on its session may be put again: what is added is not missed."""
        if not entries:
            return None
        id, fields = entries[0][0].decode(), entries[0][1]
        session = fields.get(b"session", b"").decode(errors="replace")

        def about(client: Any) -> Any:
            client.hdel(self._waiting, session)
            return client.xpending_range(self._jobs, GROUP, min=id, max=id, count=1)

        pending = self._grouped(about)
        return Job(id, session, int(pending[0]["times_delivered"]) if pending else 1)

    def _grouped(self, act: Callable[[Any], T]) -> T:
        """The result of an act that needs the group, which is made when it is not there."""
        with self._link.using() as client:
            try:
                return act(client)
            except redis.ResponseError as exc:
                if "NOGROUP" not in str(exc):
                    raise
            with suppress(redis.ResponseError):  # another worker was faster
                client.xgroup_create(self._jobs, GROUP, id="0", mkstream=True)
            return act(client)


def _read(name: bytes, said: bytes) -> Dead:
    session = name.decode(errors="replace")
    try:
        return Dead(session, **json.loads(said))
    except (TypeError, ValueError):  # nothing of ours: it can be revived all the same
        return Dead(session, repr(said)[:200], 0, 0.0)
