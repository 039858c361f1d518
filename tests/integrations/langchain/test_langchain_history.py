"""Whatever list a caller sends, a session is read once, and answers are those of reading the whole talk anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_beacon import ChatBeacon
from langchain_beacon.messages import to_plain
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from beacon_memory import BeaconConfig
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import tiny_model

# Every token is kept, in full precision: what is folded must answer as the same ids read raw, in the same order.
EXACT = BeaconConfig(ratio=1, window=16, keep_last=6, sink=2, anchors="last", slot_dtype="float32")
PLAIN = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def exact() -> BeaconEngine:
    model = tiny_model(config=EXACT)
    model.tokenizer.chat_template = PLAIN
    return BeaconEngine(model, "memory://")


def raw_answer(engine: BeaconEngine, talk: Sequence[BaseMessage], system: str | None) -> str:
    """The answer to a talk that is read whole, with no memory: a system prompt stands where it does for a session,
    behind what would be folded.
    """
    transcript, model = engine.memory.transcript, engine.memory.model
    ids = [i for message in to_plain(talk)[1] for i in transcript.turn(message)]
    folded, size = 0, EXACT.sink + EXACT.window
    while len(ids) - folded >= size + EXACT.keep_last:
        folded, size = folded + size, EXACT.window
    prompt = [*ids[:folded], *transcript.system(system), *ids[folded:], *transcript.header()]
    return model.generate([prompt], max_new_tokens=6)[0]


def words_of(messages: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(m["role"], m["content"].strip()) for m in messages]


KINDS = ("whole", "whole", "delta", "again", "edit", "trim", "tool", "tool alone")
STEP = st.tuples(
    st.sampled_from(KINDS),
    st.sampled_from(["Yes", "Yes", "My dog is Rex.", "Why not?"]),  # few words: the same things are said again
    st.sampled_from([None, "Be brief.", "You are a pirate who lives by the sea."]),
    st.integers(0, 9),
)


@pytest.mark.parametrize("history", ["auto", "full"])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, min_size=2, max_size=6))
def test_a_session_answers_as_the_whole_talk_does_and_remembers_it_once(exact, history, steps):
    """Whole lists and deltas, answers asked again, edits anywhere, trimmed lists, tools' calls and results, and a
    system prompt that changes; messages have ids, as a graph gives them.
    """
    llm = ChatBeacon(engine=exact.with_store("memory://"), max_tokens=6)
    talk: list[BaseMessage] = []
    for n, (kind, words, system, at) in enumerate(steps):
        asked = HumanMessage(words, id=f"m{n}")
        questions = [i for i, message in enumerate(talk) if message.type == "human"]
        append = kind in ("delta", "tool alone")
        if kind == "again" and questions:
            talk = talk[: questions[at % len(questions)] + 1]
        elif kind == "edit" and questions:
            place = questions[at % len(questions)]
            talk = [*talk[:place], asked if place else HumanMessage(words, id=talk[0].id)]
        elif kind == "tool alone" and talk:
            talk = [*talk, ToolMessage(words, tool_call_id="1", id=f"t{n}")]
        elif kind == "tool":
            call = AIMessage("", tool_calls=[{"name": "add", "args": {"a": at}, "id": f"c{n}"}], id=f"a{n}")
            talk = [*talk, asked, call, ToolMessage(words, tool_call_id=f"c{n}", id=f"t{n}")]
        else:
            talk = [*talk, asked]
        sent = talk[-1:] if append else talk
        if kind == "trim" and history == "auto" and len(questions) > 1:
            sent = talk[questions[-1] :]
        front = [SystemMessage(system)] if system else []
        how = "append" if append and (history == "full" or kind == "tool alone") else history
        said = llm.invoke([*front, *sent], session_id="s", history=how)
        assert said.text == raw_answer(exact, talk, system)
        if system is None:
            assert said.text == llm.invoke(talk).text
        talk = [*talk, said] if said.text.strip() else talk
        assert words_of(llm.engine.session("s").messages()) == words_of(to_plain(talk)[1])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.sampled_from(["whole", "delta", "again", "edit"]), STEP), min_size=2, max_size=6))
def test_messages_without_ids_are_known_by_their_words(exact, steps):
    llm = ChatBeacon(engine=exact.with_store("memory://"), max_tokens=6)
    talk: list[BaseMessage] = []
    for kind, (_, words, system, at) in steps:
        asked = HumanMessage(words)
        spoken = [i for i, message in enumerate(talk) if message.type == "human" and i]  # after an answer
        if kind == "again" and spoken:
            talk = talk[: spoken[at % len(spoken)] + 1]
        elif kind == "edit" and spoken:
            talk = [*talk[: spoken[at % len(spoken)]], asked]
        else:
            talk = [*talk, asked]
        sent = [asked] if kind == "delta" or not spoken else talk
        front = [SystemMessage(system)] if system else []
        said = llm.invoke([*front, *(sent if len(talk) > 1 else talk)], session_id="s")
        assert said.text == raw_answer(exact, talk, system)
        talk = [*talk, AIMessage(said.text)] if said.text.strip() else talk
        assert words_of(llm.engine.session("s").messages()) == words_of(to_plain(talk)[1])
