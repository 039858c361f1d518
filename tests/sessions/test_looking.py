"""A memory that looks again: what it reads a second time was read before, is named, and changes nothing else."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from beacon_memory import BeaconConfig, BeaconMemory, BeaconModel
from beacon_memory.errors import ConfigError, InputError
from beacon_memory.models.finder import Finder
from beacon_memory.sessions.documents import Document, Documents
from beacon_memory.sessions.looking.plain import text_looked
from beacon_memory.sessions.turn import Turn
from beacon_memory.state.state import BeaconState
from beacon_memory.testing import tiny_model

CONFIG = BeaconConfig(window=32, keep_last=8, sink=2, overlap=5)
FINDER = Finder(((1, 0), (0, 1)), (2.0, 1.0), 0.0)  # finds something, whatever is asked
LEASE = "The lease ends in May, and the rent is due on the first. Où? 去哪里! The door is green. " * 3
SAMPLING: dict[str, Any] = {"max_new_tokens": 5, "temperature": 0}


def finding(finder: Finder | None = FINDER, **changes: Any) -> BeaconModel:
    model = tiny_model(config=CONFIG.replace(**changes))
    model.finder = finder
    return model


@pytest.fixture(scope="module")
def model() -> BeaconModel:
    return finding()


@pytest.fixture
def memory(model: BeaconModel) -> BeaconMemory:
    """A session that talked, read, and talked again."""
    memory = BeaconMemory(model, BeaconMemory.open(model).store, recall_tokens=256)
    talk = [("user", "I live in Lyon, in a small house. "), ("assistant", "That is a lovely town, I like it a lot.")]
    memory.session("ada").add([{"role": role, "content": text, "id": f"id-{text[:6]}"} for role, text in talk] * 2)
    memory.session("ada").add_text(LEASE, name="lease.txt")
    memory.session("ada").add({"role": "user", "content": "And I am a carpenter by trade. " * 4, "time": "09:15"})
    return memory


SOME = settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
WORDS = st.text(alphabet="ab où去. !?<|", min_size=1, max_size=120).filter(str.strip)
TALKS = st.lists(st.tuples(st.sampled_from(["say", "answer", "read"]), WORDS), min_size=1, max_size=6)


def told(memory: BeaconMemory, talk: list[tuple[str, str]]) -> None:
    session = memory.session("ada")
    for act, text in talk:
        if act == "read":
            session.add_text(text, name=text[:9])
        else:
            session.add({"role": "user" if act == "say" else "assistant", "content": text})


@SOME
@given(TALKS, WORDS, st.integers(1, 200))
def test_a_source_is_text_that_was_really_read(talk, question, recall):
    memory = BeaconMemory.open(finding(), recall_tokens=recall)
    told(memory, talk)
    prompt = memory.session("ada").prompt_for(question)
    assert len(prompt.part("recalled")) <= recall
    messages = memory.session("ada").messages()
    texts = {text[:9]: text for act, text in talk if act == "read"}
    for source in [*prompt.sources, *memory.session("ada").search(question, limit=100)]:
        assert source.session == "ada"
        assert source.text
        if source.document is not None:
            assert any(
                source.text in text
                for act, text in talk
                if act == "read" and text.startswith(texts[source.document][:9])
            )
            assert source.message is None
        else:
            assert source.message is not None
            assert source.text in messages[source.message]["content"]
            assert source.role == messages[source.message]["role"]


@SOME
@given(TALKS, WORDS, st.integers(0, 200), st.sampled_from([None, FINDER]))
def test_nothing_else_of_a_prompt_changes_and_with_nothing_to_recall_nothing_does(talk, question, recall, finder):
    memory = BeaconMemory.open(finding(finder))
    told(memory, talk)
    plain = memory.session("ada").prompt_for(question, recall_tokens=0)
    prompt = memory.session("ada").prompt_for(question, recall_tokens=recall)
    assert plain.part("recalled") == ()
    assert plain.sources == ()
    if finder is None or not recall:
        assert prompt == plain
    again = prompt.part("recalled")
    assert bool(again) == bool(prompt.sources) or not any(s.text for s in prompt.sources)
    start = next((part.start for part in prompt.parts if part.name == "recalled"), 0)
    assert (*prompt.ids[:start], *prompt.ids[start + len(again) :]) == plain.ids
    assert prompt.segments == plain.segments
    assert prompt.tokens == plain.tokens
    for name in ("system", "tail", "asked", "header"):
        assert prompt.part(name) == plain.part(name)


def test_with_nothing_to_recall_every_answer_is_what_it_was(model):
    """The same talk by a model without a finder, and by one with it that is told to recall nothing."""
    said = []
    for finder, recall in ((None, 256), (FINDER, 0)):
        memory = BeaconMemory.open(finding(finder), recall_tokens=recall)
        session = memory.session("ada")
        session.add_text(LEASE, name="lease.txt")
        answers = [session.chat(f"{text} " * 6, **SAMPLING) for text in ("I live in Lyon.", "Who are you?")]
        answers.append(session.ask("When does the lease end?", **SAMPLING))
        answers += memory.ask_many([("ada", "When?"), ("ada", "Why?")], **SAMPLING)
        messages = [{"role": "user", "content": "Where do I live?"}]
        answers.append("".join(Turn(memory, messages, session=memory.session("ada"), **SAMPLING)))
        said.append((answers, session.messages()))
    assert said[0] == said[1]


def test_what_is_read_again_stands_in_front_of_the_question_and_is_named(memory):
    prompt = memory.session("ada").prompt_for("Where do I live?", recall_tokens=100)
    names = [part.name for part in prompt.parts if part.end > part.start]
    assert names == ["system", "tail", "recalled", "asked", "header"]
    assert 0 < len(prompt.part("recalled")) <= 100
    scores = [source.score for source in prompt.sources]
    assert scores == sorted(scores, reverse=True)
    folded = [i for segment in prompt.segments for i in segment.ids]
    assert set(prompt.part("recalled")) <= set(folded)
    every = memory.session("ada").search("Where do I live?", limit=100)
    assert {source.document for source in every} == {None, "lease.txt"}
    assert {source.role for source in every} == {"user", "assistant", None}
    assert {source.id for source in every} >= {"id-I live", "id-That i"}
    assert every[: len(prompt.sources)][0] == prompt.sources[0]
    assert prompt.sources[0].to_dict()["text"] == prompt.sources[0].text


def test_the_answer_sees_what_is_read_again(memory):
    session = memory.session("ada")
    prompt = session.prompt_for("Where do I live?", recall_tokens=64)
    assert prompt.part("recalled")
    assert session.prompt("Where do I live?")[0] == list(session.prompt_for("Where do I live?").ids)
    by_hand = memory.model.generate([list(prompt.ids)], [prompt.state], stop=prompt.stop, **SAMPLING)[0]
    assert session.ask("Where do I live?", recall_tokens=64, **SAMPLING) == by_hand
    assert session.ask("Where do I live?", recall_tokens=64, **SAMPLING) == by_hand  # hot
    assert memory.ask_many([("ada", "Where do I live?")], recall_tokens=64, **SAMPLING) == [by_hand]


def test_a_talk_with_recall_goes_on_and_nothing_that_was_recalled_is_remembered(memory):
    session = memory.session("ada")
    before = session.messages()
    turn = Turn(memory, [{"role": "user", "content": "Where do I live?"}], session=session, raw=1, **SAMPLING)
    said = "".join(turn)
    assert turn.sources
    assert turn.usage is not None
    assert turn.usage.prefill > 0
    asked = [{"role": "user", "content": "Where do I live?"}]
    assert session.messages() == [
        *before,
        *asked,
        *([{"role": "assistant", "content": said.strip()}] if said.strip() else []),
    ]
    quiet = BeaconMemory(memory.model, memory.store, recall_tokens=0)
    ids = [i for m in session.messages() if m["role"] != "document" for i in memory.transcript.turn(m)]
    state = quiet.session("ada").state()
    own = [s for s, e in zip(state.segments, quiet.load("ada")[0].entries, strict=True) if not e.document]
    assert [*(i for s in own for i in s.ids), *state.tail][-len(ids) :] == ids


def test_a_question_among_folded_messages_is_looked_for_too(memory):
    """What frameworks send is in the tail by then, not asked apart; contexts stand in front."""
    Documents(memory, "house").put([Document("door", LEASE)])
    messages = [
        {"role": "user", "content": "I like tea. " * 9},
        {"role": "user", "content": "What colour is the door?"},
    ]
    turn = Turn(memory, messages, contexts=["context:house"], **SAMPLING)
    turn.begin()
    assert turn.sources
    assert {(source.session, source.document) for source in turn.sources} == {("context:house", "door")}
    prompt = turn._begun[0].prompt
    behind = prompt.ids[next(p.end for p in prompt.parts if p.name == "recalled") :]
    assert list(behind) == [*memory.transcript.turn(messages[1]), *memory.transcript.header()]


@pytest.mark.parametrize("raw", [2, 3, 4, 6])
def test_behind_a_tools_result_it_is_the_users_question_that_is_looked_for(memory, raw):
    """What is read again stands in front of the question, never between a call and its result."""
    call = {"name": "clock", "args": {}, "id": "c1", "type": "tool_call"}
    messages = [
        *({"role": role, "content": f"{role} said {n}. " * 4} for n in range(3) for role in ("user", "assistant")),
        {"role": "user", "content": "When does it end?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "It is seven.", "tool_call_id": "c1"},
    ]
    turn = Turn(memory, messages, session=memory.session("bob"), keep=raw, **SAMPLING)
    turn.begin()
    prompt = turn._begun[0].prompt
    if raw < 3 and "recalled" not in {part.name for part in prompt.parts}:
        return  # the question is folded
    end = next(part.end for part in prompt.parts if part.name == "recalled")
    since = [i for message in messages[-3:] for i in memory.transcript.turn(message)]
    assert list(prompt.ids[end:]) == [*since, *memory.transcript.header()]


def test_a_bare_prompt_is_looked_for_in_the_documents_in_front(memory):
    Documents(memory, "house").put([Document("door", LEASE)])
    ids = memory.model.encode("The door is")
    plain = text_looked(memory, ids, contexts=["context:house"], recall_tokens=0)
    assert (plain.ids, plain.sources) == (tuple(ids), ())
    prompt = text_looked(memory, ids, contexts=["context:house"], recall_tokens=100)
    assert prompt.ids == (*prompt.part("recalled"), *ids)
    assert 0 < len(prompt.part("recalled")) <= 100
    assert {source.document for source in prompt.sources} == {"door"}
    assert text_looked(memory, ids, recall_tokens=100).sources == ()  # nothing stands in front
    tight = finding(ratio=2)
    tight.lm.config.max_position_embeddings = 300
    short = BeaconMemory.open(tight, recall_tokens=100)
    assert text_looked(short, ids * 200, answer=10).sources == ()  # a text too long to be read raw asks nothing


def test_a_document_that_was_removed_is_no_source(memory):
    house = Documents(memory, "house")
    house.put([Document("door", "The door is green. " * 9), Document("roof", "The roof is red and new. " * 9)])
    session = memory.session("ada")
    assert {source.document for source in _of(memory, "context:house").search("Which?", limit=99)} == {"door", "roof"}
    house.remove("door")
    assert {source.document for source in _of(memory, "context:house").search("Which?", limit=99)} == {"roof"}
    session.rewind(0)
    assert session.search("Where?") == []


def _of(memory: BeaconMemory, name: str) -> Any:
    from beacon_memory.sessions.session import Session

    return Session(memory, name)


def test_naming_sources_reads_the_pages_of_a_transcript_once(model, monkeypatch):
    """Only messages that have no page yet, and those that a passage is of, are tokenized again."""
    memory = BeaconMemory(model, BeaconMemory.open(model).store, recall_tokens=256)
    session = memory.session("ada")
    said = [{"role": ("user", "assistant")[n % 2], "content": f"Number {n} is {n * 7 % 31}."} for n in range(140)]
    session.add(said)
    first = session.search("What is number 9?", limit=3)
    turn, read = memory.transcript.turn, []

    def counted(message):
        read.append(message)
        return turn(message)

    monkeypatch.setattr(memory.transcript, "turn", counted)
    assert session.search("What is number 9?", limit=3) == first
    assert len(read) <= 12 + 3 * 8 + 2  # the newest, those of three passages, the question
    whole = BeaconMemory(model, memory.store).session("ada").search("What is number 9?", limit=100)
    for source in whole:
        assert source.message is not None
        assert source.text in said[source.message]["content"]
    assert {source.message for source in whole} > set(range(20))


def test_what_overlaps_the_raw_tail_is_not_read_a_second_time(memory):
    prompt = memory.session("ada").prompt_for("What am I?", recall_tokens=200)
    newest, tail = prompt.segments[-1].ids, prompt.part("tail")
    assert tail[:5] == newest[-5:]
    every = [i for s in prompt.segments for i in s.ids]
    assert len(prompt.part("recalled")) > 0
    whole = memory.session("ada").search("What am I?", limit=10_000)
    assert max(s.end for s in whole if s.document is None) <= sum(len(s.ids) for s in prompt.segments) - 5
    assert len(every) > 5


def test_what_is_read_again_leaves_room_for_the_answer():
    model = tiny_model(config=CONFIG.replace(ratio=2), max_position_embeddings=320)
    model.finder = FINDER
    memory = BeaconMemory.open(model, recall_tokens=1000)
    memory.session("ada").add_text(LEASE, name="lease.txt")
    prompt = memory.session("ada").prompt_for("Where?", answer=60)
    assert prompt.part("recalled")
    assert prompt.slots + len(prompt.ids) + 60 <= 320
    assert memory.session("ada").prompt_for("Where?", answer=320).part("recalled") == ()
    assert memory.session("ada").ask("Where?", max_new_tokens=60, temperature=0) is not None


def test_a_session_of_an_older_release_answers_and_says_that_it_cannot_look_again(memory, monkeypatch, caplog):
    plain = memory.session("ada").ask("Where do I live?", recall_tokens=0, **SAMPLING)
    read = memory.state
    monkeypatch.setattr(
        memory,
        "state",
        lambda head: BeaconState(tuple(replace(s, placed=None) for s in read(head).segments), read(head).tail),
    )
    with caplog.at_level(logging.WARNING):
        assert memory.session("ada").ask("Where do I live?", **SAMPLING) == plain
    assert "repair(…, places=True)" in caplog.text
    with pytest.raises(InputError, match="places=True"):
        memory.session("ada").search("Where do I live?")


def test_a_model_without_a_finder_says_so(memory):
    other = BeaconMemory(finding(None), memory.store, recall_tokens=256)
    assert other.session("ada").prompt_for("Where?").sources == ()
    with pytest.raises(ConfigError, match="fit-finder"):
        other.session("ada").search("Where?")


@pytest.mark.parametrize("recall", [-1, 1.5, True, "256"])
def test_what_is_no_number_of_tokens_is_refused(memory, recall):
    for wrong in (-1, "3", 2.5, True, None):
        with pytest.raises(InputError, match="limit"):
            memory.session("ada").search("Who?", limit=wrong)
    with pytest.raises(ConfigError, match="recall_tokens"):
        memory.session("ada").ask("Where?", recall_tokens=recall)
    with pytest.raises(ConfigError, match="recall_tokens"):
        BeaconMemory.open(memory.model, recall_tokens=recall)


def test_an_empty_question_is_refused(memory):
    with pytest.raises(InputError, match="empty"):
        memory.session("ada").search("  ")


def test_a_question_about_nothing_is_asked_once_of_a_memory(memory, monkeypatch):
    asked: list[int] = []
    idle = Finder.idle
    monkeypatch.setattr(Finder, "idle", lambda *args, **how: asked.append(1) or idle(*args, **how))
    memory.model.finder = replace(FINDER, baseline=0.5)
    try:
        ada = memory.session("ada")
        ada.ask("When does the lease end?", **SAMPLING)
        ada.ask("What is green?", **SAMPLING)
        assert len(asked) == 1
        slots = ada.info().slots
        ada.add([{"role": "user", "content": "I have a dog, a cat and a small blue bird at home. " * 4}])
        assert ada.info().slots > slots
        ada.ask("What is green?", **SAMPLING)
        assert len(asked) == 2
        # What another memory over the same store folds is asked anew before it is looked at, not after.
        BeaconMemory(memory.model, memory.store).session("ada").add({"role": "user", "content": "I am old. " * 30})
        found = ada.search("What is green?", limit=3)
        assert len(asked) == 3
        alone = BeaconMemory(memory.model, memory.store).session("ada").search("What is green?", limit=3)
        assert [one.score for one in found] == pytest.approx([one.score for one in alone], rel=1e-4)
    finally:
        memory.model.finder = FINDER


def test_a_question_about_nothing_leaves_what_stands_raw_as_it_is(memory):
    memory.model.finder = replace(FINDER, baseline=0.5)
    try:
        memory.session("ada").ask("Is it raw? " * 4, recall_tokens=0, **SAMPLING)  # its tail is on the device from here
        hot, cold = memory.session("ada"), BeaconMemory(memory.model, memory.store, recall_tokens=256).session("ada")
        found = [one.search("What is green?", limit=100) for one in (hot, cold)]  # asks the question about nothing
        assert len(found[0]) > 1
        found += [one.search("And who am I?", limit=100) for one in (hot, cold)]  # asks of what it left
        scores = [[one.score for one in each] for each in found]
        assert scores[0] == pytest.approx(scores[1], rel=1e-4)
        assert scores[2] == pytest.approx(scores[3], rel=1e-4)
    finally:
        memory.model.finder = FINDER


@pytest.mark.parametrize("limit", [-1, 1.5, True, "3", None])
def test_what_is_no_number_of_passages_is_refused(memory, limit):
    """A limit below 0 gave all passages but the last; text and fractions raised a TypeError."""
    assert memory.session("ada").search("Where?", limit=0) == []
    with pytest.raises(InputError, match="number of passages"):
        memory.session("ada").search("Where?", limit=limit)


def test_below_the_threshold_nothing_is_read_again(memory):
    quiet = BeaconMemory(finding(replace(FINDER, threshold=1e9)), memory.store, recall_tokens=256)
    plain = quiet.session("ada").prompt_for("Where do I live?", recall_tokens=0)
    assert quiet.session("ada").prompt_for("Where do I live?") == plain
    assert quiet.session("ada").search("Where do I live?")
