"""Whatever list a caller sends, a session is read once, and answers are those of reading the whole talk anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_beacon import BeaconChatMessageHistory, ChatBeacon
from langchain_beacon.messages import to_plain
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory

from beacon_memory import BeaconConfig
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import scripted_engine, tiny_model

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
        elif kind == "edit" and spoken[1:]:  # behind one exchange it may be a new window with the same greeting
            talk = [*talk[: spoken[1:][at % len(spoken[1:])]], asked]
        else:
            talk = [*talk, asked]
        sent = [asked] if kind == "delta" or not spoken else talk
        front = [SystemMessage(system)] if system else []
        said = llm.invoke([*front, *(sent if len(talk) > 1 else talk)], session_id="s")
        assert said.text == raw_answer(exact, talk, system)
        talk = [*talk, AIMessage(said.text)] if said.text.strip() else talk
        assert words_of(llm.engine.session("s").messages()) == words_of(to_plain(talk)[1])


# Chains that a RunnableWithMessageHistory wraps: what a session remembers must not depend on how they end.

PROMPT = ChatPromptTemplate.from_messages(
    [("system", "Be brief."), MessagesPlaceholder("history"), ("human", "{question}")]
)
PASTED = ChatPromptTemplate.from_messages(
    [MessagesPlaceholder("history"), ("human", "Context: a page of the handbook.\n\nQuestion: {question}")]
)
WORDS = ("Fact 1.", "Yes", "Yes", "No")
OURS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def wrapped(chain: Runnable, engine: BeaconEngine, *, kept: bool) -> RunnableWithMessageHistory:
    """The chain with its history, one object for each run or, where `kept`, for each session."""
    made: dict[str, BeaconChatMessageHistory] = {}

    def history(session: str) -> BeaconChatMessageHistory:
        found = made.get(session) or BeaconChatMessageHistory(session, engine=engine)
        if kept:
            made[session] = found
        return found

    return RunnableWithMessageHistory(chain, history, input_messages_key="question", history_messages_key="history")


@pytest.fixture(scope="module")
def clerk() -> BeaconEngine:
    return scripted_engine(lambda seen: "Noted." if "Fact" in seen.rsplit("user", 1)[-1] else "So it is.")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*deprecated")
@pytest.mark.parametrize("pasted", [False, True])
@settings(OURS, max_examples=10)
@given(
    turns=st.lists(
        st.tuples(st.sampled_from(WORDS), st.sampled_from(["message", "text", "other model", "model alone", "read"])),
        min_size=1,
        max_size=6,
    ),
    kept=st.booleans(),
)
def test_a_history_remembers_each_turn_once_however_its_chain_ends(clerk, pasted, turns, kept):
    """A parser that gives text drops the answer's id: every question and answer was remembered twice, then."""
    engine = clerk.with_store("memory://")
    llm = ChatBeacon(engine=engine)
    prompt = PASTED if pasted else PROMPT
    ends = {
        "message": prompt | llm,
        "text": prompt | llm | StrOutputParser(),
        "other model": prompt | RunnableLambda(lambda _: "Noted."),
    }
    chains = {name: wrapped(chain, engine, kept=kept) for name, chain in ends.items()}
    config, expected = {"configurable": {"session_id": "ada"}}, list[str]()
    for words, how in turns:
        if how == "read":
            assert len(chains["text"].get_session_history("ada").messages) == len(expected)
            continue
        said = llm.invoke(words, config) if how == "model alone" else chains[how].invoke({"question": words}, config)
        beyond = pasted and how in ("message", "text")
        asked = f"Context: a page of the handbook.\n\nQuestion: {words}" if beyond else words
        expected += [asked, said if isinstance(said, str) else said.text]
        assert [message["content"] for message in engine.session("ada").messages()] == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*deprecated")
async def test_what_a_chain_makes_of_an_answer_is_remembered_and_the_question_once(clerk):
    engine = clerk.with_store("memory://")
    shout = PROMPT | ChatBeacon(engine=engine) | StrOutputParser() | str.upper
    chain, config = wrapped(shout, engine, kept=False), {"configurable": {"session_id": "ada"}}
    assert await chain.ainvoke({"question": "Fact 1."}, config) == "NOTED."
    said = [message["content"] for message in engine.session("ada").messages()]
    assert said == ["Fact 1.", "Noted.", "NOTED."]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*deprecated")
@pytest.mark.parametrize("parser", [StrOutputParser(), RunnableLambda(lambda message: message)])
def test_a_history_around_a_model_that_takes_messages(clerk, parser):
    engine = clerk.with_store("memory://")
    chain = RunnableWithMessageHistory(
        ChatBeacon(engine=engine) | parser, lambda session: BeaconChatMessageHistory(session, engine=engine)
    )
    for _ in range(3):
        chain.invoke([HumanMessage("Fact 1.")], {"configurable": {"session_id": "ada"}})
    said = [message["content"] for message in engine.session("ada").messages()]
    assert said == ["Fact 1.", "Noted."] * 3


def test_what_is_added_by_hand_is_never_taken_for_a_models_turn(clerk):
    """Equal words do not make it one: another question may have the same answer."""
    engine = clerk.with_store("memory://")
    history = BeaconChatMessageHistory("ada", engine=engine)
    assert history.messages == []
    ChatBeacon(engine=engine).invoke("Fact 1.", session_id="ada")
    for n in (2, 3):
        history.add_messages([HumanMessage(f"Fact {n}."), AIMessage("Noted.")])
    said = [message["content"] for message in engine.session("ada").messages()]
    assert said == ["Fact 1.", "Noted.", "Fact 2.", "Noted.", "Fact 3.", "Noted."]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*deprecated")
@pytest.mark.parametrize("parsed", [False, True])
def test_a_question_that_a_chain_puts_in_other_words(clerk, parsed):
    engine = clerk.with_store("memory://")
    anew = RunnableLambda(lambda given: {**given, "question": given["question"].upper()})
    chain = anew | PROMPT | ChatBeacon(engine=engine)
    wrapped(chain | StrOutputParser() if parsed else chain, engine, kept=False).invoke(
        {"question": "Well?"}, {"configurable": {"session_id": "ada"}}
    )
    said = [message["content"] for message in engine.session("ada").messages()]
    assert said == ["WELL?", "So it is.", *["Well?", "So it is."] * parsed]
