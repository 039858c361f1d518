"""A session and documents do the same in this process and on a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from puppets import said

from beacon_memory.client.engine import RemoteEngine
from beacon_memory.errors import BeaconError, ConfigError, InputError, SessionConflict, SessionExists, SessionNotFound
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.state.info import Document

Engine = BeaconEngine | RemoteEngine
TALK = [
    {"role": "user", "content": "My dog is called Rex.", "id": "u1"},
    {"role": "assistant", "content": "Noted.", "id": "a1"},
    {"role": "user", "content": "It rains in Lyon.", "id": "u2"},
]
SLASHED = "ada/7 %2F?#é"  # a session's id may be anything


def words(session: Any) -> list[str]:
    return [message["content"] for message in session.messages()]


def test_what_was_added_is_listed_searched_edited_and_deleted(engine: Engine) -> None:
    session = engine.session(SLASHED)
    session.add(TALK)
    session.add("And cold.")
    assert session.messages()[0] == TALK[0]
    assert [message["content"] for message in session.messages(query="LYON")] == ["It rains in Lyon."]
    session.edit("u2", "It rains in Nice.")
    session.delete(1)
    assert words(session) == ["My dog is called Rex.", "It rains in Nice.", "And cold."]
    assert session.newest() == (2, [{"role": "user", "content": "And cold."}])
    info = session.info()
    assert (info.session, info.messages, info.documents) == (SLASHED, 3, 0)
    assert info.tokens > 0


def test_a_session_longer_than_a_page_is_whole(engine: Engine) -> None:
    session = engine.session("ada")
    session.add([{"role": "user", "content": f"{n}"} for n in range(1100)])
    assert words(session) == [str(n) for n in range(1100)]


def test_a_conversation_is_replaced_and_its_documents_stay(engine: Engine) -> None:
    session = engine.session("ada")
    session.add(TALK)
    session.add_text("The lease ends in May.", name="lease")
    session.set([*TALK[:2], {"role": "user", "content": "It is dry."}])
    assert [m["content"] for m in session.messages() if m["role"] != "document"] == [
        "My dog is called Rex.",
        "Noted.",
        "It is dry.",
    ]
    assert session.info().documents == 1


def test_a_session_is_forked_rewound_exported_imported_and_forgotten(engine: Engine, tmp_path: Path) -> None:
    session = engine.session("ada")
    session.add(TALK)
    fork = session.fork("bob")
    fork.rewind(1)
    assert words(fork) == ["My dog is called Rex."]
    assert words(session) == [message["content"] for message in TALK]
    with pytest.raises(SessionExists):
        session.fork("bob")
    session.export(tmp_path / "ada.beacon")
    session.forget()
    with pytest.raises(SessionNotFound):
        session.messages()
    (engine if isinstance(engine, RemoteEngine) else engine.memory).import_session(tmp_path / "ada.beacon")
    assert words(session) == [message["content"] for message in TALK]


def test_a_file_that_cannot_be_written_or_read_is_told_and_none_is_left_half(engine: Engine, tmp_path: Path) -> None:
    importing = engine if isinstance(engine, RemoteEngine) else engine.memory
    engine.session("ada").add("Hi")
    for path in (tmp_path / "no" / "folder.beacon", tmp_path):
        with pytest.raises(InputError):
            engine.session("ada").export(path)
    with pytest.raises(SessionNotFound):
        engine.session("nobody").export(tmp_path / "nobody.beacon")
    (tmp_path / "odd.beacon").write_bytes(b"no archive")
    for path in (tmp_path / "none.beacon", tmp_path / "odd.beacon"):
        with pytest.raises(BeaconError):
            importing.import_session(path)
    assert [file.name for file in tmp_path.iterdir()] == ["odd.beacon"]


def test_an_edited_past_is_a_branch_that_can_be_gone_back_to(engine: Engine) -> None:
    session, talk = engine.session("ada"), [*TALK, {"role": "assistant", "content": "Take a coat."}]
    session.add(talk)
    "".join(engine.reply([*TALK[:2], {"role": "user", "content": "It snows."}], session_id="ada"))
    (branch,) = session.branches()
    assert [message["content"] for message in branch.messages] == [message["content"] for message in talk]
    session.checkout(branch.name)
    assert words(session) == [message["content"] for message in talk]


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda session: session.info(), SessionNotFound),
        (lambda session: session.forget(), SessionNotFound),
        (lambda session: session.rewind(0), SessionNotFound),
        (lambda session: session.delete("u9"), SessionNotFound),
        (lambda session: session.add([]), InputError),
        (lambda session: session.add("  "), InputError),
        (lambda session: session.add({"role": "wizard", "content": "Hi"}), InputError),
        (lambda session: session.add_text(" ", name="blank"), InputError),
        (lambda session: session.search("Who?"), ConfigError),
    ],
)
def test_what_cannot_be_done_raises_the_same_and_writes_nothing(engine: Engine, act: Any, error: type) -> None:
    if error is ConfigError:
        engine.session("ada").add("Hi")
    with pytest.raises(error):
        act(engine.session("ada"))
    if error is not ConfigError:
        with pytest.raises(SessionNotFound):
            engine.session("ada").info()


@pytest.mark.parametrize("name", ["", "x" * 513, "context:house", "branch:1", "\ud800"])
def test_what_is_no_id_is_refused(engine: Engine, name: str) -> None:
    with pytest.raises(InputError):
        engine.session(name).add("Hi")


def test_an_answer_is_remembered_with_the_id_and_the_calls_that_the_caller_has(engine: Engine) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    reply = engine.reply(said("My dog is called Rex. Who?"), session_id="ada")
    assert "".join(reply) == reply.said.text == "Rex!"
    assert engine.session("ada").messages()[-1]["id"] == reply.id
    assert reply.physical["session_id"] == "ada"
    called = engine.reply(said("And the weather?"), session_id="ada", tools=[tool], choice="weather")
    assert "".join(called) == ""
    (call,) = called.calls
    assert (call.name, call.arguments, called.finish) == ("weather", {}, "tool_calls")
    assert engine.session("ada").messages()[-1]["tool_calls"][0]["id"] == call.id
    assert called.said.calls[0].name == "weather"
    assert called.usage.tokens > reply.usage.tokens


def test_an_answer_behind_a_place_and_one_without_a_session_write_nothing(engine: Engine) -> None:
    engine.session("ada").add(TALK)
    for how in ({"session_id": "ada", "behind": 1}, {"context_id": None}):
        reply = engine.reply(said("Who is called Rex?"), **how)
        assert "".join(reply) == "Rex!"
    assert len(words(engine.session("ada"))) == 3


def test_an_answer_that_is_left_is_not_remembered(engine: Engine) -> None:
    reply = engine.reply(said("Tell a long story."), session_id="ada", max_new_tokens=1000)
    next(reply)
    reply.close()
    with pytest.raises(SessionNotFound):
        engine.session("ada").info()


def test_half_a_letter_and_a_date_are_sent_as_they_would_be_read(engine: Engine) -> None:
    engine.session("ada").add({"role": "user", "content": "My dog is called Rex \ud83d", "name": "ad\ud83da"})
    assert words(engine.session("ada")) == ["My dog is called Rex �"]


def test_an_answer_is_held_to_a_schema(engine: Engine) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    assert "".join(engine.reply(said("Who is 'Rex'?"), schema=schema)).startswith('{"name": "')


@pytest.mark.parametrize(
    "how", [{"max_new_tokens": 0}, {"history": "some"}, {"temperature": -1}, {"stop": [""]}, {"wit": 3}]
)
def test_an_answer_cannot_be_drawn_so(engine: Engine, how: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        "".join(engine.reply(said("Hi"), **how))


def test_texts_are_answered_one_by_one_and_together(engine: Engine) -> None:
    assert [one.text for one in engine.texts(["a dog called Rex", "a cat"])] == ["Rex!", "Who?"]
    text = engine.text("a dog called Rex", max_new_tokens=2)
    assert "".join(text) == text.completion.text == "Re"
    assert text.completion.finish == "length"
    assert engine.texts(["It is"], texts=["He is called Rex."])[0].text == "Rex!"
    assert engine.encode("a dog") == engine.encode("a dog")
    assert engine.count(said("Hi"), system="Be brief.") > engine.count(said("Hi")) > len(engine.encode("Hi"))


def test_documents_are_put_listed_replaced_renamed_and_removed(engine: Engine) -> None:
    house = engine.documents("house/7")
    assert house.version == 0
    first = house.put([Document("door", "The door is green.", {"page": 1}), Document("lease", "It ends in May.")])
    assert first.changed == (True, True)
    assert first.windows > 0
    assert house.put([Document("door", "The door is blue."), Document("lease", "It ends in May.")]).changed == (
        True,
        False,
    )
    assert [one.key for one in house.info()] == ["door", "lease"]
    assert house.texts()["door"] == "The door is blue."
    with pytest.raises(InputError, match="door"):
        house.put([Document("door", "Red."), Document("roof", "Flat.")], new=True)
    with pytest.raises(InputError):
        house.remove("lease", "cellar")
    house.put([Document("roof", "The roof is flat.", {"page": 2}, "own hash")], delete_missing=True, keep=["door"])
    assert house.about() == {"door": {}, "roof": {"page": 2}}
    assert house.info()[1].hash == "own hash"
    home = house.rename("home")
    assert engine.contexts() == ["home"]
    home.remove("door")
    assert [one.key for one in home.info()] == ["roof"]
    assert "".join(engine.reply(said("Who?"), context_id="home", system="He is called Rex.")) == "Rex!"
    home.forget()
    with pytest.raises(SessionNotFound):
        home.info()
    with pytest.raises(InputError, match="no context 'home'"):
        "".join(engine.reply(said("Who?"), context_id="home"))


def test_what_is_read_and_written_alone_loses_nothing_of_others(engine: Engine) -> None:
    """Another writer comes between reading and writing: the act is done again, or it waited for the writer."""
    house = engine.documents("house")
    house.put([Document("count", "none")])
    other = iter([True])

    def more() -> None:
        there = house.texts()["count"]
        if isinstance(engine, RemoteEngine) and next(other, False):
            engine.documents("house").put([Document("count", f"{there} and one")])
        house.put([Document("count", f"{there} and two")])

    house.alone(more)
    expected = "none and one and two" if isinstance(engine, RemoteEngine) else "none and two"
    assert house.texts() == {"count": expected}


def test_a_version_that_is_not_there_any_more_is_not_written_to(engine: Engine) -> None:
    if isinstance(engine, RemoteEngine):
        house = engine.documents("house")
        house.put([Document("door", "Green.")])
        house._expected = house.version + 1
        with pytest.raises(SessionConflict):
            house.put([Document("door", "Blue.")])
        assert house.texts() == {"door": "Green."}
