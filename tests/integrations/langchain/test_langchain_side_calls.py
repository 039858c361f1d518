"""A model that is called within a tool or a node neither reads nor writes the user's talk."""

from __future__ import annotations

import json
import operator
import warnings
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import LLMToolSelectorMiddleware, SummarizationMiddleware
from langchain_beacon import BeaconMemoryMiddleware, ChatBeacon
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Send
from pydantic import BaseModel
from remembering import cfg, told

from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import scripted_engine, sensible

PAGE = "Sum up this page: the harbour was built of stone."


class Grade(BaseModel):
    grade: int


def researcher(seen: str) -> str:
    """Calls its tool when the user speaks, and answers what the tool gave."""
    role, _, words = seen.split("<|im_start|>")[-2].partition("\n")
    if "Answer with JSON of this schema" in seen:
        return sensible(seen)
    if "</tools>" in seen and role == "user":
        call = {"name": "research", "arguments": {"q": words.partition("<|im_end|>")[0][:8]}}
        return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
    return "PAGE" if "harbour" in words else "Found." if role == "tool" else "Noted."


class Heard:
    """An engine, and everything that its model was asked."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.engine: BeaconEngine = scripted_engine(self._said)

    def _said(self, seen: str) -> str:
        self.seen.append(seen)
        return researcher(seen)

    @property
    def side(self) -> list[str]:
        return [seen for seen in self.seen if "harbour" in seen]


@pytest.fixture(scope="module")
def heard() -> Heard:
    return Heard()


def sub_agent(llm: ChatBeacon, thread: str | None) -> Any:
    middleware = BeaconMemoryMiddleware(trigger=("messages", 1), keep=("messages", 1))
    agent = create_agent(llm, [], middleware=[middleware], checkpointer=InMemorySaver() if thread else None)
    messages = [HumanMessage("Hi"), HumanMessage(PAGE)]
    return agent.invoke({"messages": messages}, cfg(thread_id=thread) if thread else None)


SIDE: dict[str, Callable[[ChatBeacon], Any]] = {
    "invoke": lambda llm: llm.invoke(PAGE),
    "messages with ids": lambda llm: llm.invoke([SystemMessage("Sum up."), HumanMessage(PAGE, id="m1")]),
    "stream": lambda llm: list(llm.stream(PAGE)),
    "batch": lambda llm: llm.batch([PAGE, PAGE]),
    "chain": lambda llm: (ChatPromptTemplate.from_messages([("human", "{it}")]) | llm | StrOutputParser()).invoke(
        {"it": PAGE}
    ),
    "structured": lambda llm: llm.with_structured_output(Grade).invoke(f"{PAGE} Give it 7."),
    "generate": lambda llm: llm.generate([[HumanMessage(PAGE)]]),
    "agent": lambda llm: sub_agent(llm, None),
    "agent in a thread": lambda llm: sub_agent(llm, "its own"),
}


@pytest.mark.filterwarnings("ignore:a graph's messages")  # a side call of messages with ids is told, too
@settings(
    deadline=None,
    max_examples=6,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(calls=st.lists(st.lists(st.sampled_from(sorted(SIDE)), max_size=2), min_size=2, max_size=4))
def test_a_call_within_a_tool_is_no_part_of_the_talk(heard, calls):
    heard.seen.clear()
    llm = ChatBeacon(engine=heard.engine.with_store("memory://"), max_tokens=160)
    coming = iter(calls)

    @tool
    def research(q: str) -> str:
        """Look something up."""
        for kind in next(coming):
            SIDE[kind](llm)
        return "nothing"

    middleware = BeaconMemoryMiddleware(trigger=("messages", 3), keep=("messages", 2))
    agent = create_agent(llm, [research], middleware=[middleware], checkpointer=InMemorySaver(), system_prompt="AGENT")
    for n in range(len(calls)):
        state = agent.invoke({"messages": [("human", f"fact {n}")]}, cfg(thread_id="t1"))
    assert next(coming, None) is None  # all were made
    assert len(heard.side) >= sum(map(len, calls))
    talk = [m.text for m in state["messages"] if m.type == "human"]
    assert talk == [f"fact {n}" for n in range(len(calls))]
    assert not [seen for seen in heard.side if "fact" in seen or "AGENT" in seen]  # nor do they see it
    assert not [words for words in told(llm, "t1") if "harbour" in words or "PAGE" in words]
    assert [words for words in told(llm, "t1") if words.startswith("fact")] == talk  # each once
    asked_in_thread = any("agent in a thread" in kinds for kinds in calls)
    assert llm.engine.memory.sessions() == (["its own"] if asked_in_thread else []) + ["t1"]


def test_a_graph_whose_thread_names_no_session_is_told(heard):
    """It is answered from what it sends; that nothing is remembered is no secret."""
    llm = ChatBeacon(engine=heard.engine.with_store("memory://"))
    agent = create_agent(llm, [], checkpointer=InMemorySaver(), system_prompt="AGENT")
    with pytest.warns(UserWarning, match="BeaconMemoryMiddleware"):
        agent.invoke({"messages": [("human", "fact 1")]}, cfg(thread_id="t1"))
    assert llm.engine.memory.sessions() == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm.invoke([HumanMessage("fact 1", id="1")])  # no thread
        llm.invoke([HumanMessage("fact 1", id="1")], cfg(thread_id="t1"), session_id=None)
        llm.invoke("fact 1", cfg(thread_id="t1"))


class State(TypedDict):
    messages: Annotated[list, add_messages]
    pages: list[str]
    sums: Annotated[list, operator.add]


@pytest.mark.parametrize("width", [1, 12])
async def test_a_node_that_names_the_session_is_the_talk_and_a_map_step_is_not(heard, width):
    heard.seen.clear()
    llm = ChatBeacon(engine=heard.engine.with_store("memory://"), max_tokens=160)

    async def sum_up(state: dict[str, Any]) -> dict[str, Any]:
        return {"sums": [(await llm.ainvoke(state["page"])).text]}

    async def answer(state: State) -> dict[str, Any]:
        return {"messages": [await llm.ainvoke(state["messages"], session_id="ada")]}

    builder = StateGraph(State).add_node("sum_up", sum_up).add_node("answer", answer)
    builder.add_conditional_edges(
        START, lambda state: [Send("sum_up", {"page": p}) for p in state["pages"]], ["sum_up"]
    )
    graph = builder.add_edge("sum_up", "answer").add_edge("answer", END).compile(checkpointer=InMemorySaver())
    for n in range(2):
        asked = {"messages": [HumanMessage(f"fact {n}")], "pages": [f"{PAGE} {k}" for k in range(width)]}
        await graph.ainvoke(asked, cfg(thread_id="t1"))
    assert told(llm, "ada") == ["fact 0", "Noted.", "fact 1", "Noted."]
    assert llm.engine.memory.sessions() == ["ada"]
    assert len(heard.side) == 2 * width
    assert not [seen for seen in heard.side if "fact" in seen]


def test_what_other_middleware_asks_the_model_is_no_part_of_the_talk(heard):
    heard.seen.clear()
    llm = ChatBeacon(engine=heard.engine.with_store("memory://"), max_tokens=160)

    @tool
    def research(q: str) -> str:
        """Look something up."""
        return "nothing"

    others = [SummarizationMiddleware(model=llm, trigger=("messages", 12), keep=("messages", 8))]
    others += [LLMToolSelectorMiddleware(model=llm, max_tools=1)]
    memory = BeaconMemoryMiddleware(trigger=("messages", 4), keep=("messages", 2))
    agent = create_agent(llm, [research], middleware=[*others, memory], checkpointer=InMemorySaver())
    for n in range(6):
        agent.invoke({"messages": [("human", f"fact {n}")]}, cfg(thread_id="t1"))
    words = told(llm, "t1")
    assert not [w for w in words if "Context Extraction" in w or w.startswith('{"')]
    assert llm.engine.memory.sessions() == ["t1"]
