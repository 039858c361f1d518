"""What is added raw is folded later, by workers, into the very segments that folding at once gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_memory import BeaconMemory
from beacon_memory.config import BeaconConfig
from beacon_memory.errors import BudgetExceeded, ConfigError, InputError, SessionNotFound, StoreUnavailable
from beacon_memory.models.model import BeaconModel
from beacon_memory.serving.folding import FoldWorker
from beacon_memory.sessions.stored import WINDOWS
from beacon_memory.state.state import Segment
from beacon_memory.stores.queue import Counts, Queue
from beacon_memory.stores.redis import RedisStore
from beacon_memory.testing import redis_server, tiny_model
from beacon_memory.testing.servers import RedisServer

LONG = "I live in Lyon, near the river, in a house with a green door. "  # more than a window


@pytest.fixture
def model(config: BeaconConfig, model_of: Callable[..., BeaconModel]) -> BeaconModel:
    return model_of(config)


@pytest.fixture
def memory(model: BeaconModel, tmp_path: Path) -> Iterator[BeaconMemory]:
    with BeaconMemory.open(model, f"sqlite:///{tmp_path}/memory.db") as memory:
        yield memory


def queue_of(memory: BeaconMemory) -> Queue:
    queue = memory.store.queue()
    assert queue is not None
    return queue


def at_once(model: BeaconModel, texts: list[str], **how: Any) -> BeaconMemory:
    memory = BeaconMemory.open(model)
    for text in texts:
        memory.session("ada", **how).add(text)
    return memory


TEXT = st.text("abc def", max_size=90).map(lambda text: f"{text}.")
ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("later"), TEXT),
        st.tuples(st.just("now"), TEXT),
        st.tuples(st.just("fold"), st.integers(1, 5)),
        st.tuples(st.just("cold"), st.none()),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(acts=ACTS, budget=st.sampled_from([None, 40]))
def test_folding_later_in_any_steps_is_folding_at_once(acts: list[tuple[str, Any]], budget: int | None) -> None:
    config = BeaconConfig(ratio=4, window=16, anchors="last", sink=2, keep_last=5, slot_dtype="float32")
    model, texts = MODELS.setdefault("small", tiny_model(config=config)), []
    memory = BeaconMemory.open(model)
    for act, what in acts:
        if act == "fold":
            if texts:
                memory.session("ada", budget=budget).fold(windows=what)
        elif act == "cold":
            memory = BeaconMemory(model, memory.store, cache_bytes=0, resident_bytes=0)
        else:
            memory.session("ada", budget=budget).add(what, fold=act == "now")
            texts.append(what)
    if not texts:
        return
    while memory.session("ada", budget=budget).fold():
        pass
    ours, theirs = memory.session("ada"), at_once(model, texts, budget=budget).session("ada")
    assert ours.state().equals(theirs.state())
    assert ours.messages() == theirs.messages()


MODELS: dict[str, BeaconModel] = {}


def test_what_is_raw_is_read_all_the_same(memory, model):
    """An answer does not wait for the worker: it reads the words."""
    memory.session("ada").add(LONG * 2, fold=False)
    info = memory.session("ada").info()
    assert (info.slots, info.messages) == (0, 1)
    prompt, state = memory.session("ada").prompt("Where?")
    assert LONG.strip() in model.decode(prompt)
    assert state.slots == 0


def test_adding_raw_reads_no_segment(memory, model):
    memory.session("ada").add(LONG * 9)
    other = BeaconMemory(model, memory.store, cache_bytes=0)
    reads: list[Any] = []
    other.store = Watched(memory.store, reads)  # type: ignore[assignment]
    other.session("ada").add("And I have a dog.", fold=False)
    assert reads == []
    assert memory.session("ada").info().messages == 2


class Watched:
    """A store that notes which blobs are read."""

    def __init__(self, store: Any, reads: list[Any]) -> None:
        self._store, self._reads = store, reads

    def __getattr__(self, name: str) -> Any:
        if name in ("read", "stream"):
            self._reads.append(name)
        return getattr(self._store, name)


def test_a_session_is_put_on_the_queue_when_a_window_is_full_and_not_before(memory):
    memory.session("ada").add("Hi", fold=False)
    assert queue_of(memory).counts() == Counts(0, 0, 0)
    memory.session("ada").add(LONG, fold=False)
    memory.session("ada").add(LONG, fold=False)
    assert queue_of(memory).counts() == Counts(1, 0, 0)


def test_a_worker_folds_what_waits_and_the_same_job_twice_changes_nothing(memory, model):
    said = []
    texts = {name: [f"{name}: {LONG * n}" for n in (1, 2, 5)] for name in ("ada", "bob")}
    for n in range(3):
        for name, lines in texts.items():
            memory.session(name).add(lines[n], fold=False)
    assert FoldWorker(memory, say=said.append).run(until_empty=True) == 2
    for name, lines in texts.items():
        reference = BeaconMemory.open(model)
        for line in lines:
            reference.session(name).add(line)
        assert memory.session(name).state().equals(reference.session(name).state())
    assert [line.split(":")[0] for line in said] == ["ada", "bob"]

    before = [memory.session(name).info().version for name in texts]
    for name in texts:
        queue_of(memory).put(name)
    assert FoldWorker(memory, say=said.append).run(until_empty=True) == 2
    assert [memory.session(name).info().version for name in texts] == before
    assert queue_of(memory).counts() == Counts(0, 0, 0)


class Watching(BeaconMemory):
    """A memory that does something each time when it has folded and has not written yet."""

    def __init__(self, model: BeaconModel, store: Any, act: Callable[[], None]) -> None:
        super().__init__(model, store)
        self._act = act

    def keep(self, segments: Sequence[Segment]) -> None:
        self._act()
        super().keep(segments)


def test_what_is_added_while_a_window_is_folded_stays_behind_it(memory, model):
    """The worker folds out of the writers' turn; who comes in between does not wait, and loses nothing."""
    memory.session("ada").add(LONG * 3, fold=False)
    added: list[int] = []

    def add_once() -> None:
        if not added:
            added.append(1)
            memory.session("ada").add("And I have a dog.", fold=False)

    while Watching(model, memory.store, add_once).session("ada").fold(windows=2):
        pass
    assert added
    assert memory.session("ada").state().equals(at_once(model, [LONG * 3, "And I have a dog."]).session("ada").state())


def test_a_session_that_was_forgotten_is_no_work(memory):
    memory.session("ada").add(LONG * 3, fold=False)
    memory.session("ada").forget()
    assert queue_of(memory).counts() == Counts(0, 0, 0)
    queue_of(memory).put("ada")  # as by a writer that is late
    assert FoldWorker(memory).run(until_empty=True) == 1
    assert queue_of(memory).counts() == Counts(0, 0, 0)
    with pytest.raises(SessionNotFound):
        memory.session("ada").fold()


def test_a_worker_that_is_to_stop_puts_the_rest_back(memory, model):
    memory.session("ada").add(LONG * 40, fold=False)
    stop = Event()
    assert FoldWorker(Watching(model, memory.store, stop.set)).run(stop) == 0
    folded = memory.session("ada").info()
    assert sum(folded.ratios.values()) == WINDOWS * 16 + 2
    assert queue_of(memory).counts() == Counts(1, 0, 0)
    assert FoldWorker(memory).run(until_empty=True) == 1
    assert memory.session("ada").info().tail < 16 + 5


def test_a_session_of_another_model_is_put_among_the_dead_with_the_reason(memory, config, tmp_path):
    memory.session("ada").add(LONG * 3, fold=False)
    memory.session("bob").add(LONG * 3, fold=False)
    other = BeaconMemory(tiny_model(config=config, seed=5), memory.store)
    other.session("cyd").add(LONG * 3, fold=False)
    said: list[str] = []
    assert FoldWorker(other, say=said.append).run(until_empty=True) == 3
    assert [one.session for one in queue_of(memory).dead()] == ["ada", "bob"]
    assert "ModelMismatch" in queue_of(memory).dead()[0].why
    assert [message["content"] for message in memory.session("ada").messages()] == [LONG * 3]
    assert queue_of(memory).revive() == 2
    assert FoldWorker(memory).run(until_empty=True) == 2
    assert queue_of(memory).counts() == Counts(0, 0, 0)
    assert memory.session("ada").info().slots > 0


class Broken(BeaconMemory):
    """A memory whose model fails on some sessions, as one without enough room on its device does."""

    broken: tuple[str, ...] = ()

    def resident(self, *sessions: str) -> Any:
        if set(sessions) & set(self.broken):
            raise RuntimeError("out of memory")
        return super().resident(*sessions)


def test_what_fails_is_tried_again_and_then_put_among_the_dead_and_others_are_folded(memory, model):
    for name in ("ada", "bob"):
        memory.session(name).add(LONG * 3, fold=False)
    broken = Broken(model, memory.store)
    broken.broken = ("ada",)
    worker = FoldWorker(broken, lease=0.05, tries=3)
    runs = [worker.run(until_empty=True)]
    while not queue_of(memory).dead():
        runs.append(worker.run(until_empty=True))
    (dead,) = queue_of(memory).dead()
    assert (dead.session, dead.tries, dead.why) == ("ada", 3, "RuntimeError: out of memory")
    assert memory.session("bob").info().slots > 0
    assert memory.session("ada").info().messages == 1


def test_a_job_that_kills_its_workers_is_put_among_the_dead(memory):
    """Nobody says why: all that is known is that it was taken and never finished."""
    memory.session("ada").add(LONG * 3, fold=False)
    queue = queue_of(memory)
    for _ in range(3):
        assert queue.take(lease=0, seconds=0) is not None
    assert FoldWorker(memory, tries=3).run(until_empty=True) == 1
    assert "taken 3 times and never finished" in queue.dead()[0].why


def test_a_session_that_can_never_be_folded_is_refused_when_it_is_added(memory):
    room = memory.session("ada", budget=10)
    with pytest.raises(BudgetExceeded):
        room.add(LONG * 40, fold=False)
    with pytest.raises(SessionNotFound):
        memory.session("ada").info()


def test_a_queue_that_fails_costs_no_turn(model, caplog):
    """The turn is written before its job: an error now would have it said twice."""
    with redis_server() as url, RedisStore(url) as store:
        memory = BeaconMemory(model, store)
        store._client.set(store._key("jobs"), "not a stream")
        memory.session("ada").add(LONG * 3, fold=False)
        assert "waits for its next turn" in caplog.text
        assert memory.session("ada").info().messages == 1
        store._client.delete(store._key("jobs"))
        assert FoldWorker(memory).look() == 1
        assert FoldWorker(memory).run(until_empty=True) == 1
        assert memory.session("ada").info().tail < 16 + 5


def test_a_worker_goes_on_when_its_server_comes_back(model):
    stop = Event()
    with RedisServer(appendonly="yes", appendfsync="always") as server, RedisStore(f"{server.url}?timeout=1") as store:
        memory = BeaconMemory(model, store)
        memory.session("ada").add(LONG * 3, fold=False)
        server.kill()
        worker = FoldWorker(memory, say=lambda line: stop.set())
        with pytest.raises(StoreUnavailable):
            worker.look()
        server.start()
        assert worker.run(stop) == 1
        assert memory.session("ada").info().tail < 16 + 5


@pytest.mark.parametrize("windows", [0, -1, True, 1.5, "2", None])
def test_a_number_of_windows_that_is_none_is_refused(memory, windows):
    memory.session("ada").add(LONG * 3, fold=False)
    with pytest.raises(InputError, match="number of windows"):
        memory.session("ada").fold(windows=windows)


def test_a_store_without_a_queue_has_no_workers(model):
    memory = BeaconMemory.open(model)
    with pytest.raises(ConfigError, match="no queue"):
        FoldWorker(memory)
    memory.session("ada").add(LONG * 3, fold=False)
    assert memory.session("ada").fold() > 0


def test_redis_and_sqlite_serve_workers_alike(model):
    with redis_server() as url, BeaconMemory.open(model, url) as memory:
        memory.session("ada").add(LONG * 3, fold=False)
        assert FoldWorker(memory).run(until_empty=True) == 1
        assert memory.session("ada").state().equals(at_once(model, [LONG * 3]).session("ada").state())
