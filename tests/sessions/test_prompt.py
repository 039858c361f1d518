"""Prompts: one piece of code makes them, and whoever asks the same thing gives the model the same ids."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from beacon_memory import BeaconConfig, BeaconMemory
from beacon_memory.errors import ConfigError
from beacon_memory.sessions.context import read_context
from beacon_memory.sessions.prompt import Prompt, make_prompt, text_prompt
from beacon_memory.sessions.turn import Turn
from beacon_memory.stores.memory import MemoryStore
from beacon_memory.testing import tiny_model

CONFIG = BeaconConfig(window=16, keep_last=6, sink=2, anchors="last", overlap=3)
QUESTION = "Where do I live?"
SYSTEM = "Be brief."


def digests(prompt) -> list[str]:
    return [segment.digest for segment in prompt.segments]


@pytest.fixture(params=[0, 1, 9])
def memory(request) -> BeaconMemory:
    """A memory whose session "ada" holds nothing folded, or one window, or several."""
    memory = BeaconMemory(tiny_model(config=CONFIG), MemoryStore())
    memory.session("ada").add("I live in Lyon, by the river. " * request.param or "Hi")
    return memory


@pytest.fixture
def asked(memory, monkeypatch) -> list[tuple[list[int], list[str]]]:
    """The ids and digests of each prompt that the model is given."""
    seen: list[tuple[list[int], list[str]]] = []
    stream, answers = memory.model.stream, memory.model.answers

    def one(ids, state=None, **how):
        seen.append((list(ids), digests(state)))
        return stream(ids, state, **how)

    def many(prompts, states=None, **how):
        seen.extend((list(ids), digests(st)) for ids, st in zip(prompts, states, strict=True))
        return answers(prompts, states, **how)

    monkeypatch.setattr(memory.model, "stream", one)
    monkeypatch.setattr(memory.model, "answers", many)
    return seen


def test_the_parts_of_a_prompt_cover_its_ids_and_say_what_they_are(memory):
    prompt = memory.session("ada").prompt_for(QUESTION, system=SYSTEM)
    assert [part.name for part in prompt.parts] == ["start", "system", "tail", "asked", "header"]
    assert [part.start for part in prompt.parts] == [0, *(part.end for part in prompt.parts[:-1])]
    assert prompt.parts[-1].end == len(prompt.ids)
    transcript = memory.transcript
    assert list(prompt.part("system")) == transcript.system(SYSTEM)
    assert list(prompt.part("asked")) == transcript.turn({"role": "user", "content": QUESTION})
    assert list(prompt.part("header")) == transcript.header()
    state = memory.session("ada").state()
    assert digests(prompt) == digests(state)
    assert prompt.part("tail")[-len(state.tail) :] == state.tail
    assert prompt.part("start") == (() if state.segments else tuple(transcript.start))
    assert prompt.tokens == sum(len(s.ids) for s in state.segments) + len(prompt.ids)
    ids, front = memory.session("ada").prompt(QUESTION, system=SYSTEM)
    assert (ids, digests(front), front.tail) == (list(prompt.ids), digests(state), ())


def test_ask_chat_and_a_batch_give_the_model_the_same_prompt(memory, asked):
    session, how = memory.session("ada"), {"system": SYSTEM, "max_new_tokens": 2}
    prompt = session.prompt_for(QUESTION, system=SYSTEM)
    session.ask(QUESTION, **how)
    memory.ask_many([("ada", QUESTION)], **how)
    "".join(session.ask(QUESTION, stream=True, **how))
    session.chat(QUESTION, **how)
    assert asked == [(list(prompt.ids), digests(prompt))] * 4


def test_what_is_read_raw_is_folded_once_the_answer_is_whole(memory, asked):
    there = memory.session("ada").messages()
    message = {"role": "user", "content": QUESTION}
    prompt = memory.session("ada").prompt_for(QUESTION)
    turn = Turn(memory, [message], session=memory.session("ada"), history="append", raw=1, max_new_tokens=2)
    answer = "".join(turn).strip()
    assert asked[0][0] == list(prompt.ids)
    said = [message, *([{"role": "assistant", "content": answer}] if answer else [])]
    assert memory.session("ada").messages() == [*there, *said]
    memory.session("alone").add([*there, *said])
    after, alone = memory.session("ada").state(), memory.session("alone").state()
    assert (digests(after), after.tail) == (digests(alone), alone.tail)


def test_a_bare_prompt_stands_behind_its_documents_and_folds_what_does_not_fit():
    memory = BeaconMemory(tiny_model(config=CONFIG, max_position_embeddings=256), MemoryStore())
    house = f"context:{read_context(memory, [('door', 'The door is green.')])}"
    short, long = memory.model.encode("The door is"), memory.model.encode("The sea is blue. " * 40)
    read = text_prompt(memory, short, contexts=[house], answer=16)
    assert [part.name for part in read.parts] == ["start", "text"]
    assert list(read.ids) == short
    assert read.slots > 0
    alone = text_prompt(memory, short, answer=16)
    assert list(alone.ids) == [*memory.transcript.start, *short]
    folded = text_prompt(memory, long, contexts=[house], answer=16)
    assert folded.slots + len(folded.ids) + 16 <= memory.model.positions
    assert folded.segments[0].ids == read.segments[0].ids
    whole = [i for segment in folded.segments[len(read.segments) :] for i in segment.ids]
    assert whole == [*memory.transcript.start, *long][: len(whole)]
    assert list(folded.ids[-4:]) == long[-4:]  # what overlaps it stands in front of what is raw


def test_a_prompt_of_nothing_opens_the_stream(memory):
    prompt = make_prompt(memory, memory.session("new").opened()[1], opens=True)
    assert list(prompt.part("start")) == memory.transcript.start
    assert not prompt.part("tail")


def test_a_callers_stop_strings_are_added_to_the_models_own():
    """A caller's took their place: a base model went on as its own user, and that was remembered."""
    model = tiny_model(config=CONFIG)
    model.tokenizer.chat_template = None
    session = BeaconMemory(model, MemoryStore()).session("ada")
    session.add("Hi")
    prompt = session.prompt_for(QUESTION)
    assert prompt.stops() == prompt.stops(None) == ("\nUser:",)
    assert prompt.stops("END") == prompt.stops(["END"]) == prompt.stops(["END", "\nUser:"]) == ("END", "\nUser:")
    assert Prompt.of((), [("text", [1])]).stops("END") == ("END",)
    with pytest.raises(ConfigError, match="stop is a text"):
        prompt.stops(5)


def test_sessions_and_frameworks_ask_the_model_in_one_place_alone():
    root = Path(__file__).parents[2]
    places = [root / "beacon_memory" / room for room in ("sessions", "serving", "cli")] + [root / "integrations"]
    asking = {
        str(file.relative_to(root))
        for place in places
        for file in place.rglob("*.py")
        if re.search(r"model\.(stream|answers|generate)\(", file.read_text())
    }
    assert asking == {"beacon_memory/sessions/turn.py"}
