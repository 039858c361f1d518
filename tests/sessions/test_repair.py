"""Folding again what a store has lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from beacon_memory import BeaconConfig, BeaconMemory, BeaconModel, BeaconState
from beacon_memory.errors import CodecError, SegmentMissing, SessionNotFound
from beacon_memory.state.codec import encode_segment
from beacon_memory.stores.base import Head
from beacon_memory.stores.memory import MemoryStore
from beacon_memory.testing import tiny_model

CONFIG = BeaconConfig(window=32, keep_last=8, sink=2, anchors="last", overlap=5)
LEASE = "The lease ends in May, and the rent is due on the first. " * 6


@pytest.fixture(scope="module")
def model() -> BeaconModel:
    return tiny_model(config=CONFIG)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def memory(model: BeaconModel, store: MemoryStore) -> BeaconMemory:
    """A session that talked, read, and talked again."""
    memory = BeaconMemory(model, store)
    for text in ("I live in Lyon. " * 4, "My dog is called Rex. " * 4):
        memory.session("alice").add(text)
    memory.session("alice").add_document(LEASE)
    memory.session("alice").add("And I am a carpenter. " * 5)
    return memory


def fresh(memory: BeaconMemory) -> BeaconMemory:
    """Another worker: nothing on hand."""
    return BeaconMemory(memory.model, memory.store)


def test_a_whole_session_needs_no_repair(memory):
    before = memory.store.load("alice")
    assert memory.repair("alice") == 0
    assert memory.store.load("alice") == before
    with pytest.raises(SessionNotFound):
        memory.repair("nobody")


def test_every_segment_that_is_lost_comes_back_bit_for_bit(memory, store):
    state = memory.session("alice").state()
    entries = memory.load("alice")[0].entries
    assert {bool(entry.document) for entry in entries} == {True, False}
    for entry in entries:
        del store._blobs[entry.digest]
        with pytest.raises(SegmentMissing):
            fresh(memory).session("alice").state()
        assert fresh(memory).repair("alice") == 1
        assert fresh(memory).session("alice").state().equals(state)
    for entry in entries:
        del store._blobs[entry.digest]
    assert fresh(memory).repair("alice") == len(entries)
    assert fresh(memory).session("alice").state().equals(state)


def test_a_damaged_segment_is_folded_again(memory, store, tmp_path):
    state = memory.session("alice").state()
    digest = state.segments[1].digest
    blob = store._blobs[digest]
    store._blobs[digest] = blob[:-1] + bytes([blob[-1] ^ 1])
    with pytest.raises(CodecError):
        fresh(memory).session("alice").state()
    assert fresh(memory).repair("alice") == 1
    assert fresh(memory).session("alice").state().equals(state)


def test_a_repaired_document_is_repaired_for_every_session_that_reads_it(memory, store):
    memory.session("bob").add_document(LEASE)
    state = memory.session("bob").state()
    digests = [entry.digest for entry in memory.load("alice")[0].entries if entry.document]
    del store._blobs[digests[0]]
    assert fresh(memory).repair("alice") == 1
    assert fresh(memory).session("bob").state().equals(state)


def test_a_segment_whose_context_was_folded_coarser_since_is_folded_behind_what_is_there(model, store):
    memory = BeaconMemory(model, store)
    for number in range(40):
        memory.session("alice", budget=100).add(f"Fact number {number}: door {number} is painted colour {number * 7}.")
    before = memory.session("alice").state()
    assert len({segment.ratio for segment in before.segments}) > 1
    for segment in before.segments:
        store._blobs.pop(segment.digest)
    assert fresh(memory).repair("alice") == len(before.segments)
    after = fresh(memory).session("alice").state()
    assert [(s.ids, s.ratio, s.sink, s.slots) for s in after.segments] == [
        (s.ids, s.ratio, s.sink, s.slots) for s in before.segments
    ]
    assert after.tail == before.tail
    assert torch.isfinite(model.logits([5, 6, 7], after)).all()
    fresh(memory).session("alice").rewind(3)


def test_ids_of_a_document_are_made_again_from_its_segments(memory, store):
    head, _ = memory.load("alice")
    (digest,) = head.sources.values()
    blob = store._blobs.pop(digest)
    assert fresh(memory).repair("alice") == 0
    assert store._blobs[digest] == blob


def test_what_cannot_be_folded_again_says_what_is_lost(memory, store):
    head, _ = memory.load("alice")
    (source,) = head.sources.values()
    document = next(entry for entry in head.entries if entry.document)
    del store._blobs[source], store._blobs[document.digest]
    with pytest.raises(SegmentMissing, match=document.document):
        fresh(memory).repair("alice")


def test_a_rewound_session_keeps_no_ids_of_what_it_forgot(memory, store):
    memory.session("alice").rewind(2)
    head, _ = memory.load("alice")
    assert head.sources == {}
    assert set(store._blobs) == set(head.digests)


def test_a_session_goes_through_a_file_with_its_documents_ids(memory, tmp_path):
    memory.session("alice").export(tmp_path / "alice.beacon")
    other = BeaconMemory(memory.model, MemoryStore())
    other.import_session(tmp_path / "alice.beacon")
    entry = next(entry for entry in other.load("alice")[0].entries if entry.document)
    del other.store._blobs[entry.blob]  # an imported segment is kept apart
    assert fresh(other).repair("alice") == 1


def test_a_session_of_an_older_release_gets_places_when_it_is_asked_to(memory, store):
    """Two sessions share the document: the one that is not repaired stays as it is."""
    memory.session("bob").add_document(LEASE)
    fingerprint, config = memory.model.fingerprint, memory.model.config
    read = {name: fresh(memory).session(name).state() for name in ("alice", "bob")}
    for name, state in read.items():
        head, version = fresh(memory).load(name)
        segments = [replace(segment, placed=None) for segment in state.segments]
        blobs = {s.digest: encode_segment(s, fingerprint=fingerprint, config=config) for s in segments}
        store._blobs.update(blobs)
        old = replace(head, entries=tuple(replace(entry, checksum="") for entry in head.entries)).where(head, blobs)
        store.commit(name, Head(old.to_bytes(), old.digests), {}, expected=version)
    before, bobs = (fresh(memory).session(name).state() for name in ("alice", "bob"))
    assert fresh(memory).repair("alice") == 0
    assert fresh(memory).repair("alice", places=True) == len(before.segments)
    after = fresh(memory).session("alice").state()
    assert all(segment.placed is not None for segment in after.segments)
    assert BeaconState(tuple(replace(s, placed=None) for s in after.segments), after.tail).equals(before)
    assert fresh(memory).session("bob").state().equals(bobs)
    assert fresh(memory).repair("alice", places=True) == 0
    fresh(memory).session("alice").add("And I have a dog. " * 9)
    assert all(segment.placed is not None for segment in fresh(memory).session("alice").state().segments)
