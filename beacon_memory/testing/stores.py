"""The contract of `StateStore`, one test for each sentence of it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from beacon_memory.errors import (
    InputError,
    MissingExtra,
    SegmentMissing,
    SessionConflict,
    SessionExists,
    SessionNotFound,
)
from beacon_memory.stores.base import Head, StateStore, retrying

try:
    import pytest
except ImportError as exc:
    raise MissingExtra("StoreContract is written for pytest: pip install 'beacon-memory[dev]'") from exc

ODD_SESSIONS = [" ", ".", "../other", "a:b", "{a}", "}{", "*", "[a-z]?", "%7Ba%7D", "100%", "';--", "a\nb", "a\0b"]
ODD_SESSIONS += ["x" * 512, "\U0001f600" * 512, "\u00e9", "e\u0301"]  # the last two look the same


def digest(blob: bytes) -> str:
    """The blob's address, as our own writers make it."""
    return hashlib.sha256(blob).hexdigest()


def put(store: StateStore, session: str, *blobs: bytes, expected: int = 0, body: bytes = b"body") -> int:
    """The version after a commit of a head that names these blobs, all of them sent along."""
    named = {digest(blob): blob for blob in blobs}
    return store.commit(session, Head(body, tuple(map(digest, blobs))), named, expected=expected)


def holds(store: StateStore, blob: bytes) -> bool:
    """Whether the store has the blob; what it gives for it is checked."""
    try:
        (found,) = store.read([digest(blob)])
    except SegmentMissing:
        return False
    assert found == blob
    return True


class StoreContract:
    """What every store must do: subclass it, give a `store` fixture, and pytest runs the contract on your store.

        class TestMyStore(StoreContract):
            @pytest.fixture
            def store(self):
                with MyStore() as store:
                    yield store

    Each test gets a store without sessions.
    """

    # Heads and versions

    def test_a_head_is_loaded_as_it_was_committed(self, store: StateStore) -> None:
        head = Head(bytes(range(256)) * 3, (digest(b"two"), digest(b"one"), digest(b"two")))
        version = store.commit("alice", head, {digest(b"one"): b"one", digest(b"two"): b"two"}, expected=0)
        assert store.load("alice") == (head, version)

    def test_a_head_may_be_empty(self, store: StateStore) -> None:
        version = store.commit("alice", Head(b""), {}, expected=0)
        assert store.load("alice") == (Head(b""), version)

    def test_a_version_is_positive_and_grows_with_each_commit(self, store: StateStore) -> None:
        versions = [0]
        for _ in range(5):
            versions.append(put(store, "alice", expected=versions[-1]))
            store.touch("alice")
            put(store, f"someone at {versions[-1]}")
            assert store.version("alice") == versions[-1]
        assert versions == sorted(set(versions))

    def test_a_session_that_does_not_exist_is_at_version_0(self, store: StateStore) -> None:
        assert store.version("nobody") == 0

    @pytest.mark.parametrize("act", ["load", "delete", "touch"])
    def test_a_session_that_does_not_exist_is_not_found(self, store: StateStore, act: str) -> None:
        put(store, "alice")
        with pytest.raises(SessionNotFound, match="nobody"):
            getattr(store, act)("nobody")
        assert store.sessions() == ["alice"]

    def test_a_commit_from_another_version_is_a_conflict_and_changes_nothing(self, store: StateStore) -> None:
        first = put(store, "alice", b"one", body=b"first")
        second = put(store, "alice", b"one", b"two", body=b"second", expected=first)
        for stale in (0, first, second + 1):
            with pytest.raises(SessionConflict, match="alice"):
                put(store, "alice", b"three", body=b"stale", expected=stale)
        assert store.load("alice") == (Head(b"second", (digest(b"one"), digest(b"two"))), second)
        assert not holds(store, b"three")

    def test_a_commit_to_a_session_that_is_gone_is_a_conflict(self, store: StateStore) -> None:
        with pytest.raises(SessionConflict):
            put(store, "nobody", b"one", expected=7)
        assert store.sessions() == []

    def test_a_session_created_again_never_comes_back_to_an_old_version(self, store: StateStore) -> None:
        seen = [put(store, "alice", b"one")]
        seen.append(put(store, "alice", b"one", expected=seen[-1]))
        store.delete("alice")
        seen.append(put(store, "alice", b"one"))
        seen.append(put(store, "alice", b"one", expected=seen[-1]))
        assert len(set(seen)) == 4

    # Blobs

    @pytest.mark.parametrize("times", [0, 1, 12_000])
    def test_a_blob_is_read_as_it_was_written(self, store: StateStore, times: int) -> None:
        blob = bytes(range(256)) * times
        put(store, "alice", blob)
        assert store.read([digest(blob)]) == [blob]

    def test_blobs_are_read_in_the_order_asked(self, store: StateStore) -> None:
        blobs = [b"%d" % number for number in range(40)]
        put(store, "alice", *blobs)
        order = [*reversed(blobs), blobs[7], blobs[7]]
        assert store.read([digest(blob) for blob in order]) == order
        assert store.read([]) == []

    def test_the_first_blob_that_is_not_there_is_named(self, store: StateStore) -> None:
        put(store, "alice", b"one")
        with pytest.raises(SegmentMissing, match="lost-1"):
            store.read([digest(b"one"), "lost-1", "lost-2"])

    def test_a_stream_gives_what_reading_gives(self, store: StateStore) -> None:
        blobs = [b"%d" % number for number in range(11)]
        put(store, "alice", *blobs)
        order = [*reversed(blobs), blobs[7]]
        assert list(store.stream([digest(blob) for blob in order])) == order
        assert list(store.stream([])) == []
        with pytest.raises(SegmentMissing, match="lost-1"):
            list(store.stream([*(digest(blob) for blob in order), "lost-1", "lost-2"]))
        early = store.stream([digest(blob) for blob in order])
        assert next(early) == order[0]
        early.close()  # type: ignore[attr-defined]
        assert store.read([digest(order[-1])]) == [order[-1]]

    def test_a_commit_may_name_blobs_that_are_in_the_store_already(self, store: StateStore) -> None:
        version = put(store, "alice", b"one")
        head = Head(b"grown", (digest(b"one"), digest(b"two")))
        store.commit("alice", head, {digest(b"two"): b"two"}, expected=version)
        assert store.read(head.digests) == [b"one", b"two"]

    def test_a_commit_that_names_a_missing_blob_writes_nothing(self, store: StateStore) -> None:
        version = put(store, "alice", b"one")
        torn = Head(b"torn", (digest(b"two"), "lost"))
        for session, expected in (("alice", version), ("bob", 0)):
            with pytest.raises(SegmentMissing, match="lost"):
                store.commit(session, torn, {digest(b"two"): b"two"}, expected=expected)
        assert store.load("alice") == (Head(b"body", (digest(b"one"),)), version)
        assert store.sessions() == ["alice"]
        assert not holds(store, b"two")

    def test_writing_a_blob_twice_is_writing_it_once(self, store: StateStore) -> None:
        version = put(store, "alice", b"one")
        put(store, "alice", b"one", expected=version)
        put(store, "bob", b"one")
        store.delete("alice")
        assert holds(store, b"one")
        store.delete("bob")
        assert not holds(store, b"one")

    def test_a_blob_that_the_head_does_not_name_is_not_kept(self, store: StateStore) -> None:
        store.commit("alice", Head(b"body"), {digest(b"one"): b"one"}, expected=0)
        assert not holds(store, b"one")

    def test_a_commit_removes_what_its_head_no_longer_names(self, store: StateStore) -> None:
        version = put(store, "alice", b"one", b"two", b"three", b"one")
        put(store, "alice", b"three", b"four", expected=version)
        assert store.read([digest(b"three"), digest(b"four")]) == [b"three", b"four"]
        assert not holds(store, b"one")
        assert not holds(store, b"two")

    def test_a_commit_leaves_what_another_session_names(self, store: StateStore) -> None:
        version = put(store, "alice", b"one", b"two")
        put(store, "bob", b"two")
        put(store, "alice", expected=version)
        assert holds(store, b"two")

    # Deleting, forking, names

    def test_deleting_removes_the_session_and_its_blobs(self, store: StateStore) -> None:
        put(store, "alice", b"one", b"two")
        store.delete("alice")
        assert store.sessions() == []
        assert store.version("alice") == 0
        assert not holds(store, b"one")
        assert not holds(store, b"two")

    def test_deleting_leaves_the_blobs_that_another_session_names(self, store: StateStore) -> None:
        put(store, "alice", b"own", b"shared")
        put(store, "bob", b"shared")
        store.delete("alice")
        assert holds(store, b"shared")
        assert not holds(store, b"own")

    def test_a_fork_has_the_same_head_and_then_its_own_life(self, store: StateStore) -> None:
        version = put(store, "alice", b"one", body=b"first")
        forked = store.fork("alice", "bob")
        assert store.load("bob") == (store.load("alice")[0], forked)
        put(store, "bob", b"two", expected=forked)
        assert store.load("alice") == (Head(b"first", (digest(b"one"),)), version)
        store.delete("alice")
        assert holds(store, b"two")

    def test_forking_a_session_that_does_not_exist_makes_none(self, store: StateStore) -> None:
        with pytest.raises(SessionNotFound, match="nobody"):
            store.fork("nobody", "new")
        assert store.sessions() == []

    def test_a_fork_onto_a_session_that_exists_is_refused(self, store: StateStore) -> None:
        put(store, "alice", body=b"alice")
        put(store, "bob", body=b"bob")
        with pytest.raises(SessionExists, match="bob"):
            store.fork("alice", "bob")
        assert store.load("bob")[0].body == b"bob"

    def test_touching_changes_nothing_to_read(self, store: StateStore) -> None:
        put(store, "alice", b"one")
        before = store.load("alice")
        store.touch("alice")
        assert store.load("alice") == before

    def test_sessions_are_listed_in_order(self, store: StateStore) -> None:
        assert store.sessions() == []
        for session in ("bob", "alice", "Zo\u00eb", "carol"):
            put(store, session)
        assert store.sessions() == ["Zo\u00eb", "alice", "bob", "carol"]

    def test_odd_names_are_kept_apart(self, store: StateStore) -> None:
        for session in ODD_SESSIONS:
            put(store, session, session.encode(), body=session.encode())
        assert store.sessions() == sorted(ODD_SESSIONS)
        for session in ODD_SESSIONS:
            head, _ = store.load(session)
            assert (head.body, store.read(head.digests)) == (session.encode(), [session.encode()])
        for left, session in enumerate(ODD_SESSIONS, 1):
            store.delete(session)
            assert len(store.sessions()) == len(ODD_SESSIONS) - left

    @pytest.mark.parametrize("session", ["", "x" * 513, "\ud800"], ids=["empty", "too long", "lone surrogate"])
    def test_what_is_not_a_session_id_is_refused_everywhere(self, store: StateStore, session: str) -> None:
        acts: list[Callable[[str], object]] = [store.load, store.version, store.delete, store.touch]
        acts += [lambda one: put(store, one), lambda one: store.fork("alice", one)]
        put(store, "alice")
        for act in acts:
            with pytest.raises(InputError, match="session id"):
                act(session)
        assert store.sessions() == ["alice"]

    def test_gc_leaves_what_sessions_name(self, store: StateStore) -> None:
        version = put(store, "alice", b"own", b"shared", body=b"alice")
        put(store, "bob", b"shared")
        put(store, "alice", b"shared", b"new", expected=version, body=b"alice")
        store.fork("alice", "carol")
        before = {session: store.load(session) for session in store.sessions()}
        assert store.gc() == 0
        assert {session: store.load(session) for session in store.sessions()} == before
        assert store.read([digest(b"shared"), digest(b"new")]) == [b"shared", b"new"]
        for session in before:
            store.delete(session)
        assert store.gc() == 0
        assert not holds(store, b"shared")

    def test_a_long_session_grows_shrinks_and_is_forgotten(self, store: StateStore) -> None:
        version = 0
        kept: list[bytes] = []
        for turn in range(30):
            kept = [*kept[turn % 3 == 2 :], *(b"%d of turn %d" % (number, turn) for number in range(12))]
            body = b"".join(kept)
            head = Head(body, tuple(map(digest, kept)))
            version = store.commit("alice", head, {digest(b): b for b in kept[-12:]}, expected=version)
            assert store.load("alice") == (head, version)
        assert store.read(head.digests) == kept
        version = put(store, "alice", kept[7], expected=version)
        assert [blob for blob in kept if holds(store, blob)] == [kept[7]]
        store.delete("alice")
        assert not holds(store, kept[7])

    # Several writers

    def test_of_several_writers_one_wins_and_the_others_get_a_conflict(self, store: StateStore) -> None:
        versions = [put(store, str(number)) for number in range(10)]
        start = threading.Barrier(4, timeout=30)

        def race(turn: int) -> int:
            start.wait()
            try:
                return put(store, str(turn // 4), b"%d" % turn, expected=versions[turn // 4])
            except SessionConflict:
                return 0

        with ThreadPoolExecutor(4) as pool:
            won = list(pool.map(race, range(40)))
        for number in range(10):
            (winner,) = [turn for turn in range(4 * number, 4 * number + 4) if won[turn]]
            assert store.load(str(number)) == (Head(b"body", (digest(b"%d" % winner),)), won[winner])
        assert [holds(store, b"%d" % turn) for turn in range(40)] == [bool(version) for version in won]

    def test_writers_that_retry_lose_nothing(self, store: StateStore) -> None:
        put(store, "alice")

        def append(blob: bytes) -> None:
            head, version = store.load("alice")
            grown = Head(head.body + b"+", (*head.digests, digest(blob)))
            store.commit("alice", grown, {digest(blob): blob}, expected=version)

        def write(name: int) -> None:
            for number in range(5):
                retrying(lambda: append(b"%d-%d" % (name, number)), attempts=100)  # noqa: B023  (called at once)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
        head, _ = store.load("alice")
        assert sorted(store.read(head.digests)) == sorted(b"%d-%d" % (n, i) for n in range(4) for i in range(5))
        assert head.body == b"body" + b"+" * 20

    def test_a_blob_that_one_session_drops_while_another_names_it_survives(self, store: StateStore) -> None:
        def write(session: str) -> None:
            for _ in range(25):
                version = put(store, session, b"shared")
                assert holds(store, b"shared")
                put(store, session, expected=version)
                store.delete(session)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, ["alice", "bob", "carol", "dave"]))
        assert store.sessions() == []
        assert not holds(store, b"shared")
