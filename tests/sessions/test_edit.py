"""One message or document in the middle is deleted or edited: what stands then is what reads as if it never was."""

from __future__ import annotations

import random

import pytest

from beacon_memory import BeaconMemory
from beacon_memory.config import BeaconConfig
from beacon_memory.errors import InputError, SessionNotFound
from beacon_memory.testing import tiny_model

SMALL = BeaconConfig(ratio=4, window=16, anchors="last", sink=2, keep_last=5, slot_dtype="float32")
WORDS = ["the", "green", "door", "of", "my", "house", "in", "Lyon", "was", "never", "locked", "in", "summer"]


@pytest.fixture(scope="module")
def memory():
    with BeaconMemory.open(tiny_model(config=SMALL), "memory://") as opened:
        yield opened


def drawn(rng: random.Random) -> list[dict[str, str]]:
    """Messages and documents of a session, in order."""
    found = []
    for n in range(rng.randint(2, 7)):
        text = f"{n} " + " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))
        role = rng.choice(["user", "assistant", "document"])
        found.append({"role": role, "content": text, "id": f"m{n}"})
    return found


def told(memory, name, things):
    session = memory.session(name, ratio=2)
    for thing in things:
        if thing["role"] == "document":
            session.add_text(thing["content"], name=thing["id"])
        else:
            session.add(thing)
    return session


def stands(session):
    state = session.state()
    return [segment.digest for segment in state.segments], state.tail


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(n, marks=pytest.mark.long) for n in range(12, 300))])
def test_a_session_without_a_message_is_as_if_it_was_never_said(memory, seed):
    rng = random.Random(seed)
    things = drawn(rng)
    gone = rng.randrange(len(things))
    session = told(memory, f"deleted {seed}", things)
    session.delete(rng.choice([gone, things[gone]["id"]]))
    rest = [thing for n, thing in enumerate(things) if n != gone]
    never = told(memory, f"never {seed}", rest) if rest else None
    if never is None:
        assert (session.messages(), stands(session)) == ([], ([], ()))
        return
    assert session.messages() == never.messages()
    assert stands(session) == stands(never)
    session.add("And then?")
    never.add("And then?")
    assert stands(session) == stands(never)


@pytest.mark.parametrize("seed", range(8))
def test_an_edited_message_is_read_as_it_is_now(memory, seed):
    rng = random.Random(seed)
    things = [thing for thing in drawn(rng) if thing["role"] != "document"] or [
        {"role": "user", "content": "Hello", "id": "m0"}
    ]
    place = rng.randrange(len(things))
    session = told(memory, f"edited {seed}", things)
    session.edit(place, "I live in Paris.")
    now = [thing | ({"content": "I live in Paris."} if n == place else {}) for n, thing in enumerate(things)]
    meant = told(memory, f"meant {seed}", now)
    assert session.messages() == meant.messages()
    assert stands(session) == stands(meant)


def test_a_message_is_not_forgotten_by_giving_it_no_text(memory):
    """None as an edit's text deleted the message, and its branches."""
    memory.session("none").add([{"role": "user", "content": "I live in Lyon.", "id": "a"}])
    for text in (None, "", " "):
        with pytest.raises(InputError):
            memory.session("none").edit("a", text)
    assert [message["content"] for message in memory.session("none").messages()] == ["I live in Lyon."]


def test_a_call_goes_with_its_results(memory):
    session = memory.session("calls")
    call = {"name": "weather", "args": {}, "id": "c1", "type": "tool_call"}
    session.add(
        [
            {"role": "user", "content": "Weather?", "id": "q"},
            {"role": "assistant", "content": "Let me look.", "tool_calls": [call], "id": "call"},
            {"role": "tool", "content": "Sun.", "tool_call_id": "c1"},
            {"role": "assistant", "content": "Sunny.", "id": "a"},
        ]
    )
    session.delete("call")
    assert [message["content"] for message in session.messages()] == ["Weather?", "Sunny."]


def test_branches_that_hold_what_was_deleted_go_too(memory):
    session = memory.session("branched")
    talk = [{"role": role, "content": text} for role, text in [("user", "My PIN is 7."), ("assistant", "I see.")]]
    session.add(talk)
    kept = session.messages()[0]
    memory_of = [*talk, {"role": "user", "content": "Bye."}]
    session.add(memory_of[2])
    session.edit(2, "Good night.")
    assert [m["content"] for m in session.messages()] == ["My PIN is 7.", "I see.", "Good night."]
    assert kept in session.messages()
    session.delete(0)
    assert session.branches() == []
    assert session.messages(query="pin") == []


def test_what_is_remembered_is_searched_by_its_words(memory):
    session = memory.session("searched")
    session.add("I live in Lyon.")
    session.add("It rains in LYON.")
    session.add_text("The door is green.", name="door")
    assert [m["content"] for m in session.messages(query="lyon")] == ["I live in Lyon.", "It rains in LYON."]
    assert session.messages(query="Berlin") == []


def test_what_is_not_there_cannot_be_deleted(memory):
    session = memory.session("wrong")
    session.add([{"role": "user", "content": "Hi", "id": "twice"}, {"role": "user", "content": "Ho", "id": "twice"}])
    for which, words in [
        ("nobody", "has 0 messages"),
        ("twice", "has 2 messages"),
        (2, "choose 0 to 1"),
        (-1, "choose"),
    ]:
        with pytest.raises(InputError, match=words):
            session.delete(which)
    assert len(session.messages()) == 2
    with pytest.raises(SessionNotFound):
        memory.session("never").delete(0)


def test_a_message_without_an_id_is_not_the_one_called_none(memory):
    """`delete(message.get("id"))` forgot the one message that had no id, and so did `edit(0, None)`."""
    session = memory.session("nameless")
    session.add([{"role": "user", "content": "Hello."}, {"role": "user", "content": "I live in Lyon.", "id": "m1"}])
    for act in (
        lambda: session.delete(None),
        lambda: session.delete(1.0),
        lambda: session.delete(True),
        lambda: session.edit(None, "Ah."),
        lambda: session.edit(0, None),
        lambda: session.edit(0, 3),
    ):
        with pytest.raises(InputError):
            act()
    assert len(session.messages()) == 2
