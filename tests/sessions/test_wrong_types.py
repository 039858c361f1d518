"""Whatever a public method is given, in whatever place: it works, or one of our errors says why, and nothing moves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beacon_memory import BeaconConfig, BeaconMemory, BeaconModel, Document, Documents, Session
from beacon_memory.errors import BeaconError
from beacon_memory.models.finder import Finder
from beacon_memory.stores import open_store
from beacon_memory.testing import tiny_model

CONFIG = BeaconConfig(window=16, keep_last=5, sink=2, anchors="last", slot_dtype="float32")
MODEL = tiny_model(config=CONFIG)
MODEL.finder = Finder(((1, 0), (0, 1)), (2.0, 1.0), 0.0)  # finds something, whatever is asked
SAID = [{"role": "user", "content": "I live in Lyon. " * 5}, {"role": "assistant", "content": "Nice."}]

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.sampled_from(["\ud800", "a\0b", "context:x", "branch:x", "~nobody/x", Path("nope"), Path(), object(), int]),
    st.complex_numbers(),
)
JUNK = st.recursive(
    VALUES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.sampled_from(["role", "content", "id", "tool_calls"]), st.integers()), inner),
    ),
    max_leaves=4,
)


class Room:
    """A memory with a talk and documents."""

    def __init__(self) -> None:
        self.memory = BeaconMemory.open(MODEL, "memory://")
        self.ada = self.memory.session("ada")
        self.ada.add(SAID)
        self.ada.add_text("The door is green.", name="door")
        self.house = Documents(self.memory, "house")
        self.house.put([Document("lease", "The lease ends in May.")])

    def versions(self) -> dict[str, int]:
        return {name: self.memory.store.version(name) for name in self.memory.store.sessions()}


Act = Callable[..., Any]
# What each public method is called with when all is well; each argument is then replaced by junk.
SHORT: dict[str, Any] = {"max_new_tokens": 2, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
SHORT |= {"stop": None, "seed": None, "constraint": None}
OPENED: dict[str, Any] = {"ratio": 4, "budget": 100, "slot_dtype": "float32", "at_least": 0, "create": None}
CALLS: dict[str, tuple[Callable[[Room], Act], dict[str, Any]]] = {
    "Session.add": (lambda room: room.ada.add, {"messages": "Hi", "progress": None}),
    "Session.fold": (lambda room: room.ada.fold, {"windows": 1}),
    "Session.set": (lambda room: room.ada.set, {"messages": SAID}),
    "Session.add_document": (
        lambda room: room.ada.add_document,
        {"source": "Some text.", "name": "note", "progress": None},
    ),
    "Session.add_text": (lambda room: room.ada.add_text, {"text": "Some text.", "name": "note", "progress": None}),
    "Session.ask": (
        lambda room: room.ada.ask,
        {"question": "Who?", "system": None, "stream": False, "recall_tokens": None, **SHORT},
    ),
    "Session.chat": (
        lambda room: room.ada.chat,
        {"text": "Who?", "system": None, "stream": True, "recall_tokens": None, **SHORT},
    ),
    "Session.prompt": (lambda room: room.ada.prompt, {"question": "Who?", "system": None}),
    "Session.prompt_for": (
        lambda room: room.ada.prompt_for,
        {"question": "Who?", "system": None, "recall_tokens": None, "answer": 9},
    ),
    "Session.search": (lambda room: room.ada.search, {"text": "Who?", "limit": 5}),
    "Session.messages": (lambda room: room.ada.messages, {"query": "lyon"}),
    "Session.delete": (lambda room: room.ada.delete, {"message": 0}),
    "Session.edit": (lambda room: room.ada.edit, {"message": 0, "text": "Ah."}),
    "Session.fork": (lambda room: room.ada.fork, {"new": "bob"}),
    "Session.rewind": (lambda room: room.ada.rewind, {"messages": 1}),
    "Session.checkout": (lambda room: room.ada.checkout, {"name": "1"}),
    "Session.refold": (lambda room: room.ada.refold, {"tokenizer": None, "progress": None}),
    "Session.export": (lambda room: room.ada.export, {"path": "out.beacon"}),
    "BeaconMemory.open": (
        lambda room: BeaconMemory.open,
        {"model": MODEL, "store": "memory://", "recall_tokens": 0, "key": None, "old_key": None, "encrypt": False},
    ),
    "BeaconMemory": (
        lambda room: lambda **how: BeaconMemory(MODEL, room.memory.store, **how).session("ada").ask("Who?", **SHORT),
        {"cache_bytes": 1 << 20, "resident_bytes": 1 << 20, "recall_tokens": 0},
    ),
    "BeaconMemory.session": (
        lambda room: lambda **how: room.memory.session(**how).add("Hi"),
        {"session_id": "bob", **OPENED},
    ),
    "BeaconMemory.context": (
        lambda room: lambda **how: room.memory.context(**how).add_text("Hi", name="hi"),
        {"name": "bob", **OPENED},
    ),
    "BeaconMemory.ask_many": (
        lambda room: room.memory.ask_many,
        {"asked": [("ada", "Who?")], "system": None, "left": None, "recall_tokens": None, **SHORT},
    ),
    "BeaconMemory.repair": (lambda room: room.memory.repair, {"session_id": "ada", "places": False}),
    "BeaconMemory.refold": (lambda room: room.memory.refold, {"tokenizer": None}),
    "BeaconMemory.import_session": (lambda room: room.memory.import_session, {"path": "in.beacon", "name": "eve"}),
    "Documents": (
        lambda room: lambda **how: Documents(room.memory, **how).put([Document("a", "b")]),
        {"name": "yard", "ratio": 4, "budget": 100},
    ),
    "Document": (
        lambda room: lambda **how: room.house.put([Document(**how)]),
        {"key": "a", "text": "b", "about": {}, "hash": ""},
    ),
    "Documents.put": (
        lambda room: room.house.put,
        {"documents": [Document("a", "b")], "new": False, "delete_missing": False, "keep": (), "progress": None},
    ),
    "Documents.remove": (lambda room: lambda key: room.house.remove(key), {"key": "lease"}),
    "Documents.rename": (lambda room: room.house.rename, {"name": "yard"}),
    "open_store": (
        lambda room: open_store,
        {"url": "sqlite:///there/memory.db", "key": None, "old_key": None, "encrypt": False, "trust": False},
    ),
    "BeaconConfig": (lambda room: BeaconConfig, CONFIG.to_dict()),
    "BeaconModel.encode": (lambda room: MODEL.encode, {"text": "Hi"}),
    "BeaconModel.decode": (lambda room: MODEL.decode, {"ids": [5]}),
    "BeaconModel.compress": (
        lambda room: MODEL.compress,
        {"ids": [5, 6] * 20, "state": None, "ratio": 4, "close": False, "document": False, "budget": 100}
        | {"known": None, "slot_dtype": None, "progress": None},
    ),
    "BeaconModel.fit": (lambda room: MODEL.fit, {"segments": [], "budget": 100, "known": None, "slot_dtype": None}),
    "BeaconModel.generate": (lambda room: MODEL.generate, {"prompts": [[5]], "states": None, **SHORT}),
    "BeaconModel.answers": (lambda room: MODEL.answers, {"prompts": [[5]], "states": None, **SHORT}),
    "BeaconModel.stream": (lambda room: MODEL.stream, {"prompt": [5], "state": None, **SHORT}),
    "BeaconModel.logits": (lambda room: MODEL.logits, {"ids": [5], "state": None}),
}
# These take nothing, or what another method of ours made.
OTHERS = {
    "Session": "append behind branches change extended forget info newest opened part put_on_queue replace_talk "
    "resident settled state unpart write",
    "BeaconMemory": "after_fork begin caches check_ids close commit contexts decode forget keep known let_go load "
    "messages pages positions read resident sessions state turn view written",
    "Documents": "about alone forget info version texts",
    "BeaconModel": "adapted detach from_pretrained positions raw_bytes_per_token recurrent recurrent_shapes "
    "refold tail",
}


def called(act: Act, given: dict[str, Any]) -> BeaconError | None:
    """Our error, if the call raises one; an iterator is read to its end."""
    try:
        done = act(**given)
        for _ in done if isinstance(done, Iterator) else ():
            pass
    except BeaconError as exc:
        return exc
    return None


@pytest.mark.parametrize("kind", [Session, BeaconMemory, Documents, BeaconModel])
def test_every_public_method_is_tried(kind):
    public = {name for name, _ in inspect.getmembers(kind) if not name.startswith("_")}
    tried = {name.partition(".")[2] for name in CALLS if name.startswith(f"{kind.__name__}.")}
    assert public == tried | set(OTHERS[kind.__name__].split())


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("wrong"))
        Path("there").mkdir()
        Room().ada.export("in.beacon")
        yield


@pytest.mark.parametrize("examples", [10, pytest.param(300, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", CALLS)
def test_what_has_the_wrong_type_is_refused_with_a_reason_and_nothing_moves(name, examples):
    make, good = CALLS[name]

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(which=st.sampled_from(sorted(good)), junk=JUNK)
    def holds(which: str, junk: Any) -> None:
        room = Room()
        before = room.versions()
        refused = called(make(room), {**good, which: junk})
        if refused is not None:
            assert len(str(refused).split()) >= 4
            assert room.versions() == before

    holds()


@pytest.mark.parametrize("name", CALLS)
def test_what_each_method_is_tried_with_works(name):
    make, good = CALLS[name]
    refused = called(make(Room()), good)
    # This session has no branch.
    assert (refused is None) == (name != "Session.checkout"), refused
