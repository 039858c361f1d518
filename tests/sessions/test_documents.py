"""Documents under one name: folded apart, joined, changed one by one, and never half-written."""

from __future__ import annotations

import pytest

from beacon_memory import BeaconConfig, BeaconMemory, BeaconModel
from beacon_memory.errors import BudgetExceeded, InputError, ModelMismatch, SessionExists, SessionNotFound
from beacon_memory.sessions.context import CONTEXT
from beacon_memory.sessions.documents import Document, Documents, Written
from beacon_memory.sessions.turn import Turn
from beacon_memory.state.state import BeaconState
from beacon_memory.stores.memory import MemoryStore
from beacon_memory.testing import tiny_model

CONFIG = BeaconConfig(window=32, keep_last=8, sink=2, anchors="last")
LONG = "The harbour tower is tall, and the keeper counts the boats each night. " * 4


@pytest.fixture(scope="module")
def model() -> BeaconModel:
    return tiny_model(config=CONFIG)


@pytest.fixture
def memory(model: BeaconModel) -> BeaconMemory:
    return BeaconMemory(model, MemoryStore())


def doc(key: str, text: str | None = None, **more) -> Document:
    return Document(key, text or f"The {key} is painted green.", **more)


def keys(documents: Documents) -> list[str]:
    return [info.key for info in documents.info()]


def state_of(memory: BeaconMemory, name: str) -> BeaconState:
    return memory.context(name).state()


def apart(memory: BeaconMemory, *texts: str) -> BeaconState:
    """The documents as the core folds each by itself, joined."""
    state = BeaconState()
    for text in texts:
        ids = [*memory.transcript.start, *memory.model.encode(text)]
        state = state.join(memory.model.compress(ids, close=True).segments)
    return state


def test_documents_are_folded_apart_and_joined_in_order(memory):
    a, b = doc("a"), doc("b", LONG)
    house = Documents(memory, "house")
    assert house.put([a, b]).changed == (True, True)
    assert state_of(memory, "house").equals(apart(memory, a.text, b.text))
    assert [(i.key, i.slots > 0, i.hash) for i in house.info()] == [("a", True, a.identity), ("b", True, b.identity)]


def test_adding_one_folds_one_and_changing_one_folds_one(memory):
    house = Documents(memory, "house")
    first = house.put([doc("a"), doc("b"), doc("c")])
    assert first == Written((True, True, True), windows=3)
    assert house.put([doc("d")], new=True) == Written((True,), windows=1)
    again = house.put([doc("a"), doc("b", "Now it is blue."), doc("c"), doc("e")])
    assert again == Written((False, True, False, True), windows=2)
    assert keys(house) == ["a", "b", "c", "d", "e"]  # in place
    texts = [doc("a").text, "Now it is blue.", doc("c").text, doc("d").text, doc("e").text]
    assert state_of(memory, "house").equals(apart(memory, *texts))


def test_removing_one_folds_none_and_takes_its_bytes(memory):
    house = Documents(memory, "house")
    house.put([doc("a"), doc("b", about={"text": "secret"}), doc("c")])
    gone = [e.digest for e in memory.load(CONTEXT + "house")[0].entries][1]
    beside = memory.load(CONTEXT + "house")[0].notes["b"]
    house.remove("b")
    assert state_of(memory, "house").equals(apart(memory, doc("a").text, doc("c").text))
    for digest in (gone, beside):
        assert digest not in memory.store._blobs
    house.remove("a", "c")
    assert house.info() == []
    assert house.version > 0


def test_a_text_under_two_keys_stands_once(memory):
    house = Documents(memory, "house")
    same = doc("a").text
    assert house.put([doc("a"), doc("b", same)]) == Written((True, True), windows=1)
    assert state_of(memory, "house").equals(apart(memory, same))
    house.remove("a")
    assert state_of(memory, "house").equals(apart(memory, same))


def test_what_is_beside_a_document_may_change_without_a_fold(memory):
    house = Documents(memory, "house")
    house.put([doc("a", about={"page": 1})])
    assert house.put([doc("a", about={"page": 2})]) == Written((True,), windows=0)
    assert house.about() == {"a": {"page": 2}}


def test_an_owners_hash_decides_what_is_equal(memory):
    house = Documents(memory, "house")
    house.put([doc("a", "Old.", hash="1")])
    assert house.put([doc("a", "New.", hash="1")]).changed == (False,)


def test_a_budget_makes_old_documents_coarser_each_behind_itself_alone(memory):
    house = Documents(memory, "house", budget=60)
    for n in range(6):
        house.put([doc(f"d{n}", LONG + str(n))])
    head, _ = memory.load(CONTEXT + "house")
    assert sum(entry.slots for entry in head.entries) <= 60
    assert len({entry.ratio for entry in head.entries}) > 1
    # Whatever else is removed, nothing that is left was folded in sight of it.
    last = [e.digest for e in head.entries if e.document == head.entries[-1].document]
    house.remove(*[f"d{n}" for n in range(5)])
    assert [e.digest for e in memory.load(CONTEXT + "house")[0].entries] == last
    alone = Documents(memory, "alone", budget=60)
    with pytest.raises(BudgetExceeded):
        alone.put([doc(f"d{n}", LONG + str(n)) for n in range(60)])
    assert alone.version == 0


def test_repair_folds_a_lost_document_again(memory):
    house = Documents(memory, "house")
    house.put([doc("a"), doc("b", LONG, about={"page": 1})])
    before = state_of(memory, "house")
    lost = before.segments[-1].digest
    del memory.store._blobs[lost]
    fresh = BeaconMemory(memory.model, memory.store)
    assert fresh.repair(CONTEXT + "house") == 1
    assert state_of(fresh, "house").equals(before)
    assert Documents(fresh, "house").about() == {"a": {}, "b": {"page": 1}}


def test_documents_travel_in_a_session_file(memory, tmp_path):
    house = Documents(memory, "house")
    house.put([doc("a", about={"page": 1}), doc("b")])
    memory.context("house").export(tmp_path / "house.zip")
    other = BeaconMemory(memory.model, MemoryStore())
    other.import_session(tmp_path / "house.zip")
    assert Documents(other, "house").about() == {"a": {"page": 1}, "b": {}}


def test_documents_and_sessions_never_meet_by_their_names(memory, tmp_path):
    Documents(memory, "house").put([doc("a")])
    talk = memory.session("ada")
    talk.add("Hello there.")
    assert (memory.sessions(), memory.contexts()) == (["ada"], ["house"])
    for act in (
        lambda: memory.session(CONTEXT + "house"),
        lambda: memory.session(CONTEXT),
        lambda: talk.fork(CONTEXT + "flat"),
        lambda: memory.context("house").fork("bob"),
        lambda: memory.ask_many([(CONTEXT + "house", "What?")]),
    ):
        with pytest.raises(InputError):
            act()
    talk.export(tmp_path / "talk.zip")
    with pytest.raises(InputError, match="talk"):
        memory.import_session(tmp_path / "talk.zip", name=CONTEXT + "flat")
    assert memory.store.sessions() == ["ada", CONTEXT + "house"]


def test_bad_documents_are_refused_and_nothing_is_half_written(memory):
    house = Documents(memory, "house")
    for bad, match in (
        ([doc("a"), doc("b", " \n")], "'b' is empty"),
        ([doc("a"), doc("a", LONG)], "given twice"),
        ([doc("a"), doc("b", about={"x": object()})], "JSON"),
    ):
        with pytest.raises(InputError, match=match):
            house.put(bad)
        assert house.version == 0
    house.put([doc("a")])
    before = memory.store.load(CONTEXT + "house")
    with pytest.raises(InputError, match="already"):
        house.put([doc("b"), doc("a")], new=True)
    with pytest.raises(InputError, match="no document 'z'"):
        house.remove("a", "z")
    assert memory.store.load(CONTEXT + "house") == before


def test_what_is_not_there_and_what_is_not_ours_are_errors(memory):
    with pytest.raises(SessionNotFound):
        Documents(memory, "nowhere").info()
    with pytest.raises(SessionNotFound):
        Documents(memory, "nowhere").remove("a")
    memory.context("talk").add("Hello there.")
    with pytest.raises(InputError, match="conversation"):
        Documents(memory, "talk").put([doc("a")])
    Documents(memory, "house").put([doc("a")])
    other = BeaconMemory(tiny_model(config=CONFIG, seed=1), memory.store)
    for act in (lambda d: d.put([doc("b")]), lambda d: d.info(), lambda d: d.remove("a")):
        with pytest.raises(ModelMismatch, match="model"):
            act(Documents(other, "house"))


def test_a_slower_writer_puts_its_documents_behind_the_faster_ones(model):
    class Racing(MemoryStore):
        """Before its first commit, somebody else's."""

        def commit(self, session, head, blobs, *, expected):
            if not self._heads:
                other = MemoryStore()
                Documents(BeaconMemory(model, other), "house").put([doc("b")])
                stored, _ = other.load(session)
                blobs = dict(zip(stored.digests, other.read(stored.digests), strict=True))
                super().commit(session, stored, blobs, expected=0)
            return super().commit(session, head, blobs, expected=expected)

    memory = BeaconMemory(model, Racing())
    house = Documents(memory, "house")
    house.put([doc("a")])
    assert keys(house) == ["b", "a"]


def test_many_documents_keep_their_notes_in_pages(memory):
    house = Documents(memory, "house")
    house.put([doc(f"d{n:03}", f"Fact {n}: the door number {n} is green.", about={"n": n}) for n in range(150)])
    assert keys(house) == [f"d{n:03}" for n in range(150)]
    house.remove("d003")
    assert house.put([doc("d100", "Another fact.")]).windows == 1
    assert len(house.about()) == 149


def test_a_context_that_was_read_without_keys_is_opened_too(memory):
    memory.context("old").add_text(LONG, name="long")
    old = Documents(memory, "old")
    assert old.put([doc("a")]) == Written((True,), windows=1)
    assert len(old.info()) == 2
    assert list(old.about().values()) == [{}, {}]


def test_what_is_asked_of_documents_is_asked_of_their_joined_state(memory):
    Documents(memory, "house").put([doc("a"), doc("b", LONG)])
    question = "What is tall?"
    turn = Turn(memory, [{"role": "user", "content": question}], contexts=[CONTEXT + "house"], max_new_tokens=8)
    answer = memory.context("house").ask(question, max_new_tokens=8)
    assert "".join(turn) == answer
    assert turn.usage.read == sum(info.tokens for info in Documents(memory, "house").info())
    assert turn.usage.folded == 0


def test_documents_get_another_name_and_keep_their_folds(memory):
    house = Documents(memory, "house")
    house.put([doc("a", about={"page": 1})])
    home = house.rename("home")
    assert (keys(home), home.about(), house.version) == (["a"], {"a": {"page": 1}}, 0)
    assert home.put([doc("b")]).windows == 1
    Documents(memory, "taken").put([])
    with pytest.raises(SessionExists):
        home.rename("taken")
    assert keys(home) == ["a", "b"]


def test_documents_are_kept_in_step_with_what_is_given(memory):
    house = Documents(memory, "house")
    house.put([doc("a"), doc("b"), doc("c"), doc("d")])
    wrote = house.put([doc("b", "Now it is blue."), doc("e")], delete_missing=True, keep=["d"])
    assert wrote == Written((True, True), windows=2)
    assert keys(house) == ["b", "d", "e"]
    version = house.version
    assert house.put([doc("d"), doc("b", "Now it is blue."), doc("e")], delete_missing=True).windows == 0
    assert house.version == version
    assert house.put([doc("e")], delete_missing=True) == Written((False,), windows=0)
    assert keys(house) == ["e"]
    house.put([], delete_missing=True)
    assert keys(house) == []


def test_a_name_that_has_no_key_is_its_documents_key(memory):
    """Contexts that were written by `add_text`."""
    old = memory.context("old")
    old.add_text("The door is green.", name="door")
    old.add_text("One.", name="twice")
    old.add_text("Two.", name="twice")
    house = Documents(memory, "old")
    assert keys(house)[0] == "door"
    assert house.put([doc("door", "The door is green.")]) == Written((True,), windows=0)
    assert house.put([doc("door", "The door is blue.")]) == Written((True,), windows=1)
    assert state_of(memory, "old").equals(apart(memory, "The door is blue.", "Two."))
    old.add_text("Another door.", name="door")
    assert len(house.info()) == 2  # each name has the text that it was given last
    house.remove("door")
    assert len(house.info()) == 1


def test_a_text_that_is_read_at_another_ratio_or_dtype_stands_once(memory):
    for how in ({"ratio": 2}, {"ratio": 8}, {"slot_dtype": "int8"}, {}):
        memory.session("ada", **how).add_text(LONG, name="long")
        Documents(memory, "house", ratio=how.get("ratio")).put([doc("long", LONG)])
    assert memory.session("ada").info().documents == memory.context("house").info().documents == 1
    assert [message["content"] for message in memory.session("ada").messages()] == ["long"]
    memory.session("ada").delete("long")
    memory.session("ada", ratio=8).add_text(LONG, name="long")  # it was gone: it is read again
    assert memory.session("ada").info().documents == 1


def test_the_text_of_each_document_is_told(memory):
    house = Documents(memory, "house")
    house.put([doc("a", "The door is green."), doc("b", "The lease ends in May."), doc("c", "The door is green.")])
    memory.context("house").add_text("It was told.", name="told")
    assert list(house.texts().items()) == [
        ("a", "The door is green."),
        ("b", "The lease ends in May."),
        ("c", "The door is green."),
        ("told", "It was told."),
    ]
    with pytest.raises(SessionNotFound):
        Documents(memory, "nobody").texts()
