"""Queues of sessions to fold: every job is some worker's until it is done, whoever dies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from beacon_memory.errors import StoreUnavailable
from beacon_memory.stores import open_store
from beacon_memory.stores.file_queue import FileQueue
from beacon_memory.stores.queue import Counts, Job, Queue
from beacon_memory.stores.redis import RedisStore
from beacon_memory.testing import redis_server
from beacon_memory.testing.servers import until


@pytest.fixture(scope="module", params=["sqlite", "redis", "valkey"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('queue')}/memory.db"
        return
    with redis_server(request.param) as url:
        yield url


@pytest.fixture
def queue(place: str, request: pytest.FixtureRequest) -> Iterator[Queue]:
    """An empty queue in a place of its own."""
    namespace = "".join(c for c in request.node.name if c.isalnum())[:60]
    with open_store(place, namespace=namespace) as store:
        found = store.queue()
        assert found is not None
        yield found


def take(queue: Queue, *, lease: float = 60) -> Job | None:
    return queue.take(lease=lease, seconds=0)


def taken(queue: Queue, *, lease: float = 60) -> Job:
    job = take(queue, lease=lease)
    assert job is not None
    return job


def silent(queue: Queue, *, lease: float) -> Job:
    """The job of a worker that has been silent for its lease, once it is."""
    found: list[Job] = []
    until(lambda: found.append(job) or True if (job := take(queue, lease=lease)) else False, 10)
    return found[0]


def test_a_job_is_given_to_one_worker_and_gone_when_it_is_done(queue):
    assert take(queue) is None
    for name in ("ada", "bob", "käse %{}:"):
        queue.put(name)
    jobs = [taken(queue) for _ in range(3)]
    assert [(job.session, job.tries) for job in jobs] == [("ada", 1), ("bob", 1), ("käse %{}:", 1)]
    assert take(queue) is None
    assert queue.counts() == Counts(waiting=0, taken=3, dead=0)
    for job in jobs:
        queue.done(job)
        queue.done(job)  # sent again
    assert queue.counts() == Counts(0, 0, 0)


def test_a_session_waits_once_and_again_while_it_is_worked_on(queue):
    """What is added while a worker folds may come too late for it: it makes a job of its own."""
    for _ in range(3):
        queue.put("ada")
    job = taken(queue)
    assert take(queue) is None
    for _ in range(3):
        queue.put("ada")
    queue.done(job)
    again = taken(queue)
    assert (again.session, again.tries) == ("ada", 1)
    assert again.id != job.id
    assert take(queue) is None


def test_the_job_of_a_worker_that_is_silent_is_given_to_another(queue):
    queue.put("ada")
    first = taken(queue, lease=0.3)
    second = silent(queue, lease=0.3)
    assert (second.session, second.id, second.tries) == ("ada", first.id, 2)
    assert silent(queue, lease=0.3).tries == 3


def test_a_job_that_is_renewed_stays_its_workers(queue):
    queue.put("ada")
    job = taken(queue, lease=1)
    looks: list[Job | None] = []

    def renewed() -> bool:
        queue.renew(job, lease=1)
        looks.append(queue.take(lease=1, seconds=0.2))
        return len(looks) == 10  # for two leases

    until(renewed, 60)
    assert looks == [None] * 10
    assert silent(queue, lease=1).tries == 2  # renewals are no tries


def test_one_that_cannot_be_folded_is_kept_apart_with_the_reason(queue):
    for name in ("ada", "bob"):
        queue.put(name)
        queue.bury(taken(queue), f"{name} is broken")
    queue.put("ada")
    queue.bury(taken(queue), "ada is broken still")
    assert [(one.session, one.why, one.tries) for one in queue.dead()] == [
        ("ada", "ada is broken still", 1),
        ("bob", "bob is broken", 1),
    ]
    assert queue.counts() == Counts(0, 0, dead=2)
    assert take(queue) is None
    assert queue.revive() == 2
    assert queue.dead() == []
    assert sorted([taken(queue).session, taken(queue).session]) == ["ada", "bob"]


def test_what_is_folded_after_all_is_dead_no_more(queue):
    for name in ("ada", "bob"):
        queue.put(name)
        queue.bury(taken(queue), "broken")
    queue.put("ada")
    queue.done(taken(queue))
    assert [one.session for one in queue.dead()] == ["bob"]


def test_what_is_dropped_neither_waits_nor_is_dead(queue):
    queue.drop("ada")  # nothing is known of it
    queue.put("ada")
    queue.bury(taken(queue), "broken")
    for name in ("ada", "bob"):
        queue.put(name)
    queue.drop("ada")
    assert queue.counts() == Counts(1, 0, 0)
    assert taken(queue).session == "bob"
    queue.put("ada")
    assert taken(queue).session == "ada"


def test_a_worker_waits_for_a_job(queue):
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(queue.take, lease=60, seconds=20)
        queue.put("ada")
        job = waiting.result()
    assert job is not None
    assert job.session == "ada"


def test_many_workers_are_given_each_job_once(queue):
    names = [f"session-{n}" for n in range(60)]

    def work(_: int) -> list[str]:
        done = []
        while job := queue.take(lease=60, seconds=0.3):
            done.append(job.session)
            queue.done(job)
        return done

    with ThreadPoolExecutor(8) as pool:
        working = [pool.submit(work, n) for n in range(6)]
        list(pool.map(queue.put, names))
        done = Counter(name for one in working for name in one.result())
    assert done == Counter(names)


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_a_queue_that_was_flushed_goes_on(kind):
    with redis_server(kind) as url, RedisStore(url) as store:
        queue = store.queue()
        queue.put("ada")
        job = taken(queue)
        store._client.flushall()
        queue.renew(job, lease=60)
        queue.done(job)
        assert take(queue) is None
        store._client.flushall()
        assert queue.counts() == Counts(0, 0, 0)
        queue.put("ada")
        assert taken(queue).session == "ada"


def test_a_stream_that_was_lost_alone_takes_new_jobs():
    with redis_server() as url, RedisStore(url) as store:
        queue = store.queue()
        queue.put("ada")
        store._client.delete(store._key("jobs"))
        queue.put("ada")  # it does not wait, whatever is kept beside the stream
        assert taken(queue).session == "ada"


def test_a_silent_job_is_found_behind_many_that_are_worked_on():
    with redis_server() as url, RedisStore(url) as store:
        queue = store.queue()
        for n in range(40):
            queue.put(f"session-{n}")
        jobs = [taken(queue) for _ in range(40)]
        found: list[Job] = []

        def looked() -> bool:
            for job in jobs[:-1]:
                queue.renew(job, lease=1)
            if job := take(queue, lease=1):
                found.append(job)
            return bool(found)

        until(looked, 30)
        assert found[0].session == "session-39"


def test_what_others_wrote_into_the_stream_stops_nobody():
    with redis_server() as url, RedisStore(url) as store:
        queue = store.queue()
        client = store._client
        client.xadd(store._key("jobs"), {"other": "field"})
        client.xadd(store._key("jobs"), {"session": b"\xff\xfe"})
        client.hset(store._key("dead"), "ada", "no JSON")
        assert [taken(queue).session for _ in range(2)] == ["", "\ufffd\ufffd"]
        assert [(one.session, one.tries) for one in queue.dead()] == [("ada", 0)]
        assert queue.revive() == 1
        assert taken(queue).session == "ada"


def test_a_file_that_cannot_be_used_is_told_in_our_words(tmp_path: Path):
    with pytest.raises(StoreUnavailable, match="cannot use the queue"):
        FileQueue(f"{tmp_path}/missing/queue").put("ada")
    (tmp_path / "text").write_text("no database, but long enough to be taken for the header of one " * 4)
    with pytest.raises(StoreUnavailable, match="cannot use the queue"):
        FileQueue(f"{tmp_path}/text").counts()


def test_a_file_is_its_owners_and_made_when_first_used(tmp_path: Path):
    with open_store(f"sqlite:///{tmp_path}/memory.db") as store:
        queue = store.queue()
        assert queue is not None
        assert not (tmp_path / "memory.db-queue").exists()
        queue.put("ada")
    assert (tmp_path / "memory.db-queue").stat().st_mode & 0o777 == 0o600


def test_a_store_of_this_process_alone_has_no_queue():
    with open_store("memory://") as store:
        assert store.queue() is None
