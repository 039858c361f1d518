"""Agents, graphs and legacy histories: old messages are folded, none is lost, none is read twice."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_beacon import BeaconChatMessageHistory, BeaconMemoryMiddleware, ChatBeacon
from langchain_beacon.messages import to_plain
from langchain_beacon.middleware import _kept
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from beacon_memory.errors import ConfigError, SessionExists, StoreUnavailable
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.stores.memory import MemoryStore
from beacon_memory.testing import scripted_engine


def clerk(seen: str) -> str:
    """Notes down what it is told by a tool, then says what was noted first."""
    last = seen.split("<|im_start|>")[-2]
    role, _, words = last.partition("\n")
    if role == "user" and "note" in words:
        fact = words.partition("note ")[2].partition("<|im_end|>")[0]
        return f"<tool_call>\n{json.dumps({'name': 'note', 'arguments': {'fact': fact}})}\n</tool_call>"
    return "First was fact 000." if "fact 000" in seen else "None."


@tool
def note(fact: str) -> str:
    """Write a fact down."""
    return f"noted {fact}"


@pytest.fixture(scope="module")
def shared() -> BeaconEngine:
    return scripted_engine(clerk)


@pytest.fixture
def llm(shared: BeaconEngine, by: Any) -> ChatBeacon:
    return ChatBeacon(**by(shared.with_store("memory://")), max_tokens=160)


def config(thread: str) -> dict:
    return {"configurable": {"thread_id": thread}}


def agent_of(llm: ChatBeacon, **how):
    middleware = BeaconMemoryMiddleware(**{"trigger": ("tokens", 600), "keep": ("messages", 6), **how})
    return create_agent(llm, [note], middleware=[middleware], checkpointer=InMemorySaver(), system_prompt="Be brief.")


def say(agent, words: str, thread: str = "t1") -> list:
    return agent.invoke({"messages": [("human", words)]}, config(thread))["messages"]


def test_an_agent_folds_old_messages_within_its_budget_and_loses_none(llm):
    agent = agent_of(llm, budget=150)
    for n in range(8):
        messages = say(agent, f"note fact {n:03}")
    assert len(messages) == 8 * 4  # nothing is taken from the graph
    physical = messages[-1].response_metadata["beacon"]
    assert physical["session_id"] == "t1"
    assert physical["beacon_tokens"] <= 150
    assert messages[-1].usage_metadata["input_token_details"]["cache_read"] > 0
    assert say(agent, "Which was first?")[-1].text == "First was fact 000."
    stored = [m["content"] for m in llm.engine.session("t1").messages()]
    assert len(stored) > 20
    assert stored == [m["content"] for m in to_plain(messages)[1]][: len(stored)]  # each once, in order


async def test_an_agent_works_in_async_too(llm):
    agent = agent_of(llm, trigger=("messages", 6), keep=("messages", 2))
    for n in range(4):
        result = await agent.ainvoke({"messages": [("human", f"note fact {n:03}")]}, config("t1"))
    assert result["messages"][-1].response_metadata["beacon"]["session_id"] == "t1"
    assert llm.engine.session("t1").messages()[0]["content"] == "note fact 000"


def test_below_the_trigger_there_is_no_session(llm):
    say(agent_of(llm), "note fact 000")
    assert llm.engine.sessions() == []


def test_going_back_in_time_is_another_branch(llm):
    agent = agent_of(llm, trigger=("messages", 4), keep=("messages", 2))
    for n in range(4):
        say(agent, f"note fact {n:03}")
    early = next(s for s in agent.get_state_history(config("t1")) if len(s.values["messages"]) == 8 and s.next == ())
    messages = agent.invoke({"messages": [("human", "note fact 999")]}, early.config)["messages"]
    assert len(messages) == 12
    stored = str(llm.engine.session("t1").messages())
    assert "fact 001" in stored
    assert "fact 003" not in stored


@pytest.mark.parametrize(
    ("trigger", "keep", "folds"),
    [
        (("messages", 4), ("messages", 2), True),
        (("messages", 400), ("messages", 2), False),
        (("tokens", 100), ("tokens", 60), True),
        (("tokens", 100_000), ("tokens", 60), False),
        (("fraction", 0.001), ("fraction", 0.0005), True),
        (("fraction", 1.0), ("fraction", 0.0005), False),
        ([("tokens", 100_000), ("messages", 4)], ("messages", 2), True),  # any of them does
        ([("tokens", 100_000), ("messages", 400)], ("messages", 2), False),
    ],
)
def test_triggers_and_keeps_are_those_of_summarization(llm, trigger, keep, folds):
    agent = agent_of(llm, trigger=trigger, keep=keep)
    for n in range(4):
        messages = say(agent, f"note fact {n:03}")
    assert len(messages) == 16
    assert llm.engine.sessions() == (["t1"] if folds else [])
    if folds:
        stored = [m["content"] for m in llm.engine.session("t1").messages()]
        assert stored == [m["content"] for m in to_plain(messages)[1]][: len(stored)]
        assert messages[len(stored)].type != "tool"  # its call is raw too


async def test_in_async_an_answer_is_made_again_and_time_travels(llm):
    agent = agent_of(llm, trigger=("messages", 4), keep=("messages", 2))
    for n in range(4):
        said = (await agent.ainvoke({"messages": [("human", f"note fact {n:03}")]}, config("t1")))["messages"]
    states = [state async for state in agent.aget_state_history(config("t1"))]
    again = next(s for s in states if s.next == ("model",) and s.values["messages"][-1].type == "tool")
    made = (await agent.ainvoke(None, again.config))["messages"]
    assert [m.text for m in made] == [m.text for m in said]
    early = next(s for s in states if len(s.values["messages"]) == 8 and s.next == ())
    branch = (await agent.ainvoke({"messages": [("human", "note fact 999")]}, early.config))["messages"]
    assert len(branch) == 12
    stored = str(llm.engine.session("t1").messages())
    assert "fact 001" in stored
    assert "fact 003" not in stored


async def test_a_threads_memory_is_copied_and_deleted_in_async_too(llm):
    middleware = BeaconMemoryMiddleware(engine=llm.engine, trigger=("messages", 2), keep=("messages", 1))
    agent = create_agent(llm, [note], middleware=[middleware], checkpointer=InMemorySaver())
    await agent.ainvoke({"messages": [("human", "note fact 000")]}, config("t1"))
    await middleware.acopy_thread("t1", "t2")
    with pytest.raises(SessionExists):
        await middleware.acopy_thread("t1", "t2")
    await llm.adelete_thread("t1")
    await middleware.adelete_thread("t1")
    assert llm.engine.sessions() == ["t2"]


def test_a_threads_memory_is_copied_and_deleted_by_the_savers_names(llm):
    middleware = BeaconMemoryMiddleware(engine=llm.engine, trigger=("messages", 2), keep=("messages", 1))
    agent = create_agent(llm, [note], middleware=[middleware], checkpointer=InMemorySaver())
    say(agent, "note fact 000")
    middleware.copy_thread("t1", "t2")
    assert llm.engine.sessions() == ["t1", "t2"]
    llm.delete_thread("t1")
    middleware.delete_thread("t1")
    assert llm.engine.sessions() == ["t2"]


def test_a_tools_answer_stays_with_its_call():
    call = AIMessage("", tool_calls=[{"name": "note", "args": {}, "id": "1"}])
    messages = [HumanMessage("a"), call, ToolMessage("b", tool_call_id="1"), ToolMessage("c", tool_call_id="1")]
    for keep, expected in ((("messages", 1), 3), (("messages", 4), 4), (("tokens", 0), 3)):
        assert _kept(messages, [5, 5, 5, 5], keep, window=100) == expected


class Gone(MemoryStore):
    def load(self, session: str):
        raise StoreUnavailable("the store is gone")


def test_a_store_that_fails_is_an_error_or_leaves_the_plain_messages(shared):
    llm = ChatBeacon(engine=shared.with_store("memory://"), max_tokens=160)
    now = {"trigger": ("messages", 1), "keep": ("messages", 1), "store": Gone()}
    assert say(agent_of(llm, **now, on_error="passthrough"), "note fact 000")[-1].text == "First was fact 000."
    with pytest.raises(StoreUnavailable):
        say(agent_of(llm, **now), "note fact 000")
    for bad in ({"trigger": ("words", 3)}, {"keep": ("fraction", 2)}, {"on_error": "ignore"}):
        with pytest.raises(ConfigError):
            BeaconMemoryMiddleware(**bad)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*deprecated")
def test_a_legacy_history_and_its_model_remember_each_message_once(llm):
    from langchain_core.runnables.history import RunnableWithMessageHistory

    prompt = ChatPromptTemplate.from_messages([MessagesPlaceholder("history"), ("human", "{q}")])
    chain = RunnableWithMessageHistory(
        prompt | llm,
        lambda session: BeaconChatMessageHistory(session, engine=llm.engine),
        input_messages_key="q",
        history_messages_key="history",
    )
    ada = {"configurable": {"session_id": "ada"}}
    for words in ("fact 000 is here", "Which?", "Which?"):
        said = chain.invoke({"q": words}, ada)
    assert said.text == "First was fact 000."
    history = BeaconChatMessageHistory("ada", engine=llm.engine)
    assert [m.text for m in history.messages if m.type == "human"] == ["fact 000 is here", "Which?", "Which?"]
    assert len(history.messages) == 6


async def test_a_history_gives_back_what_was_added(llm):
    history = BeaconChatMessageHistory("ada", engine=llm.engine)
    call = AIMessage("Wait.", tool_calls=[{"name": "note", "args": {"fact": "é"}, "id": "1", "type": "tool_call"}])
    talk = [HumanMessage("a"), call, ToolMessage("b", tool_call_id="1"), AIMessage("Done.")]
    await history.aadd_messages(talk)
    assert await history.aget_messages() == talk
    await history.aclear()
    history.clear()
    assert history.messages == []
    with pytest.raises(ConfigError, match="nowhere to be kept"):
        BeaconChatMessageHistory("ada", model="smollm2")
