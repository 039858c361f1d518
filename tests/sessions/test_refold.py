"""Another model or adapter: the transcript stays readable, and a session can be moved to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_memory import BeaconConfig, BeaconMemory, BeaconModel
from beacon_memory.errors import ModelMismatch, SegmentMissing, SessionNotFound
from beacon_memory.sessions.documents import Document, Documents
from beacon_memory.state.head import DOCUMENT
from beacon_memory.stores.memory import MemoryStore
from beacon_memory.testing import tiny_model

CONFIG = BeaconConfig(window=32, keep_last=8, sink=2, anchors="last", slot_dtype="float32")
LEASE = "The lease ends on 31 March 2027. The rent is 900 euros a month. " * 3
DOOR = "The door of the house is green. " * 4
SAID = [
    {"role": "user", "content": "I live in Lyon, in a small flat with a balcony. " * 3},
    {"role": "assistant", "content": "You live in Lyon. " * 3},
    {"role": "user", "content": "My dog is called Rex."},
]


@pytest.fixture(scope="module")
def old() -> BeaconModel:
    return tiny_model(config=CONFIG, max_position_embeddings=2048)


@pytest.fixture(scope="module")
def new() -> BeaconModel:
    """Other weights, another width, the same tokenizer."""
    return tiny_model(config=CONFIG, seed=5, max_position_embeddings=2048)


def told(memory: BeaconMemory, name: str = "ada") -> None:
    session = memory.session(name)
    session.add(SAID[:2])
    session.add_text(LEASE, name="lease")
    session.add(SAID[2:])


def test_the_words_are_read_where_the_slots_cannot_be(old: BeaconModel, new: BeaconModel) -> None:
    """After an upgrade of the model nothing of a session could be read out, not even its text."""
    store = MemoryStore()
    told(BeaconMemory(old, store))
    said = BeaconMemory(old, store).session("ada").messages()
    later = BeaconMemory(new, store)
    assert later.session("ada").messages() == said
    assert [m["content"] for m in later.session("ada").messages(query="rex")] == ["My dog is called Rex."]
    acts: list[Callable[[], Any]] = [
        lambda: later.session("ada").ask("Where?"),
        lambda: later.session("ada").add("More."),
        lambda: later.session("ada").state(),
    ]
    for act in acts:
        with pytest.raises(ModelMismatch, match="refold"):
            act()
    assert later.session("ada").messages() == said
    later.session("ada").forget()
    assert later.sessions() == []


def test_a_session_is_what_it_would_be_had_the_new_model_read_it_all(old: BeaconModel, new: BeaconModel) -> None:
    store, fresh = MemoryStore(), BeaconMemory(new, MemoryStore())
    told(BeaconMemory(old, store))
    told(fresh)
    before = BeaconMemory(old, store).session("ada")
    said, tokens, version = before.messages(), before.info().tokens, before.info().version
    moved = BeaconMemory(new, store).session("ada", at_least=version)
    assert moved.refold() == tokens
    assert moved.refold() == 0
    assert moved.state().equals(fresh.session("ada").state())
    assert [(m["role"], m["content"]) for m in moved.messages()] == [(m["role"], m["content"]) for m in said]
    assert moved.ask("Where?", max_new_tokens=8) == fresh.session("ada").ask("Where?", max_new_tokens=8)
    assert BeaconMemory(new, store).repair("ada") == 0
    moved.add("And I like green.")
    with pytest.raises(ModelMismatch):
        before.ask("Where?")


def test_everything_in_a_store_moves(old: BeaconModel, new: BeaconModel) -> None:
    store = MemoryStore()
    memory = BeaconMemory(old, store)
    told(memory)
    memory.session("ada").fork("eve")
    house = Documents(memory, "house", ratio=2)
    house.put([Document("door", DOOR, {"page": 1}), Document("again", DOOR), Document("lease", LEASE)])
    mine = BeaconMemory(new, MemoryStore()).session("bob")
    mine.add("I am Bob.")
    later = BeaconMemory(new, store)
    later.session("bob").add("I am Bob.")
    assert set(later.refold()) == {"ada", "eve", "context:house"}
    assert later.refold() == {}
    assert later.session("eve").state().equals(later.session("ada").state())
    found = Documents(later, "house")
    assert [(d.key, d.slots > 0) for d in found.info()] == [("door", True), ("again", True), ("lease", True)]
    assert found.about()["door"] == {"page": 1}
    fresh = Documents(BeaconMemory(new, MemoryStore()), "house", ratio=2)
    fresh.put([Document("door", DOOR), Document("lease", LEASE)])
    assert found._session.state().equals(fresh._session.state())
    assert found.put([Document("door", DOOR, {"page": 1})]).changed == (False,)
    found.remove("door", "again")
    assert [d.key for d in found.info()] == ["lease"]


def test_branches_move_with_their_session(old: BeaconModel, new: BeaconModel) -> None:
    store = MemoryStore()
    memory = BeaconMemory(old, store)
    told(memory)
    session = memory.session("ada")
    head, version = memory.load("ada")
    parted = session.part(head)
    memory.commit("ada", parted, {}, expected=version)
    later = BeaconMemory(new, store).session("ada")
    assert len(later.branches()) == 1
    later.refold()
    (branch,) = later.branches()
    later.checkout(branch.name)
    later.ask("Where?", max_new_tokens=2)


def test_another_tokenizer_needs_the_old_one_for_documents_alone(old: BeaconModel) -> None:
    store = MemoryStore()
    memory = BeaconMemory(old, store)
    memory.session("talk").add(SAID)
    told(memory)
    other = tiny_model(config=CONFIG, seed=3, max_position_embeddings=2048)
    other.tokenizer.add_tokens(["Lyon", "rent"])
    other.lm.resize_token_embeddings(len(other.tokenizer))
    other = BeaconModel(other.detach(), other.tokenizer, CONFIG)
    later = BeaconMemory(other, store)
    assert later.session("talk").refold() > 0
    with pytest.raises(ModelMismatch, match="--from"):
        later.session("ada").refold()
    with pytest.raises(ModelMismatch, match="--from"):
        later.session("ada").refold(tokenizer=other.tokenizer)
    assert memory.session("ada").ask("Where?", max_new_tokens=2)  # as it was
    later.session("ada").refold(tokenizer=old.tokenizer)
    fresh = BeaconMemory(other, MemoryStore())
    told(fresh)
    assert later.session("ada").state().equals(fresh.session("ada").state())


def test_what_cannot_be_moved_stays_as_it_was(old: BeaconModel, new: BeaconModel) -> None:
    store = MemoryStore()
    memory = BeaconMemory(old, store)
    told(memory)
    version = memory.session("ada").info().version
    digest = next(iter(memory.load("ada")[0].sources.values()))
    kept = store._blobs.pop(digest)
    with pytest.raises(SegmentMissing):
        BeaconMemory(new, store).session("ada").refold()
    with pytest.raises(SessionNotFound):
        BeaconMemory(new, store).session("nobody").refold()
    assert store.version("ada") == version
    store._blobs[digest] = kept
    assert BeaconMemory(new, store).session("ada").refold() > 0


_ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("user"), st.sampled_from([message["content"] for message in SAID])),
        st.tuples(st.just(DOCUMENT), st.sampled_from([LEASE, DOOR, "Short."])),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=25, deadline=None)
@given(acts=_ACTS, ratio=st.sampled_from([1, 2, 8]), budget=st.sampled_from([None, 40]))
def test_any_session_moves_to_what_the_new_model_would_have_made_of_it(
    acts: list[tuple[str, str]], ratio: int, budget: int | None, old: BeaconModel, new: BeaconModel
) -> None:
    store, fresh = MemoryStore(), BeaconMemory(new, MemoryStore())
    for memory in (BeaconMemory(old, store), fresh):
        session = memory.session("ada", ratio=ratio, budget=budget)
        for role, text in acts:
            session.add_text(text, name=text[:9]) if role == DOCUMENT else session.add({"role": role, "content": text})
    moved = BeaconMemory(new, store).session("ada")
    words = [(m["role"], m["content"]) for m in moved.messages()]
    moved.refold()
    assert [(m["role"], m["content"]) for m in moved.messages()] == words
    state, wanted = moved.state(), fresh.session("ada").state()
    assert state.tokens == wanted.tokens
    if budget is None:
        assert state.equals(wanted)
    assert state.slots <= (budget or new.budget)
