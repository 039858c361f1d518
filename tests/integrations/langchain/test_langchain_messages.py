"""LangChain's messages of every kind are read, or refused by one error, and the thread goes on."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_beacon import ChatBeacon
from langchain_beacon.messages import from_plain, to_asked, to_plain
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_core.messages import (
    AIMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import InjectedToolArg, tool
from langgraph.prebuilt import ToolRuntime
from pydantic import BaseModel
from remembering import cfg

from beacon_memory.errors import InputError
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.talk.messages import read_messages
from beacon_memory.testing import scripted_engine

TEXT = st.sampled_from(["Hi", "", " ", "\ud83d", "<think>\nHm", "</tool_call>", "<|im_end|>", "a\x00b"])
BLOCK = st.one_of(
    TEXT,
    TEXT.map(lambda text: {"type": "text", "text": text}),
    st.sampled_from(
        [
            {"type": "image_url", "image_url": {"url": "x"}},
            {"type": "thinking", "thinking": "Hm"},
            {"type": "json", "json": {"a": 1}},
            {"cachePoint": {"type": "default"}},
            {"type": "text", "text": None},
            {"text": "bare"},
            {},
        ]
    ),
)
CONTENT = TEXT | st.lists(BLOCK, max_size=3)
ARGUMENTS = st.dictionaries(TEXT, st.sampled_from([1, None, "x", "</tool_call>", date(2026, 11, 26), Decimal("1.5")]))
CALLS = st.lists(ARGUMENTS.map(lambda args: {"name": "f", "args": args, "id": "1"}), max_size=2)
MESSAGE = st.one_of(
    CONTENT.map(lambda content: HumanMessage(content, id="h")),
    CONTENT.map(lambda content: SystemMessage(content)),
    CONTENT.map(lambda content: ToolMessage(content, tool_call_id="1")),
    TEXT.map(lambda text: FunctionMessage(content=text, name="f")),
    st.tuples(CONTENT, CALLS).map(lambda made: AIMessage(made[0], tool_calls=made[1])),
    st.tuples(st.sampled_from(["human", "Assistant", "developer", "robot"]), TEXT).map(
        lambda made: ChatMessage(role=made[0], content=made[1])
    ),
    st.just(RemoveMessage(id="h")),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(messages=st.lists(MESSAGE, max_size=4))
def test_whatever_list_is_sent_is_read_or_refused_by_one_error(messages):
    for read in (to_plain, to_asked):
        try:
            system, plain = read(messages)
        except InputError:
            continue
        assert system is None or system.strip()
        found = read_messages(plain)
        assert [from_plain(message).id for message in found] == [message.get("id") for message in found]


def remembered(llm: ChatBeacon) -> list[str]:
    return [m["content"] for m in llm.engine.session("ada").messages()]


@pytest.fixture
def llm(shared: BeaconEngine, by: Any) -> ChatBeacon:
    return ChatBeacon(**by(shared.with_store("memory://")), max_tokens=60)


@pytest.mark.parametrize(
    "refused",
    [
        HumanMessage(""),
        HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}]),
        HumanMessage([{"type": "video", "url": "x"}]),
        ChatMessage(role="robot", content="Hi"),
    ],
)
def test_after_a_message_that_cannot_be_read_the_thread_goes_on(llm, refused):
    config = cfg(session_id="ada")
    llm.invoke("Rex1 is here.", config)
    with pytest.raises(ModelInvalidRequestError):
        llm.invoke([refused], config)
    assert llm.invoke("Who?", config).text == "I know Rex1"


@pytest.mark.parametrize("odd", [HumanMessage("Rex2 \ud83d"), HumanMessage([{"type": "text", "text": "Rex2"}])])
def test_what_is_odd_and_can_be_read_is_remembered(llm, odd):
    config = cfg(session_id="ada")
    llm.invoke([SystemMessage("Be brief."), odd], config)
    assert llm.invoke([HumanMessage("Who?"), SystemMessage("Be kind.")], config).text == "I know Rex2"


def test_a_system_message_alone_is_what_is_asked(llm):
    assert llm.invoke([SystemMessage("Rex3 is here. Who?")], cfg(session_id="ada")).text == "I know Rex3"
    assert remembered(llm) == ["Rex3 is here. Who?", "I know Rex3"]


def test_a_thought_is_not_remembered_and_a_closing_mark_in_an_argument_is_the_arguments(by):
    engine = scripted_engine(
        lambda seen: (
            '<think>\nLet me see.\n</think>\n\n<tool_call>\n{"name": "write", "arguments": {"text": "</tool_call>"}}\n'
            "</tool_call>"
        )
    )
    llm = ChatBeacon(**by(engine), max_tokens=200, session_id="ada")
    tool = {
        "type": "function",
        "function": {"name": "write", "parameters": {"properties": {"text": {"type": "string"}}}},
    }
    said = llm.bind_tools([tool]).invoke("Write it.")
    assert [call["args"] for call in said.tool_calls] == [{"text": "</tool_call>"}]
    question, answer = remembered(llm)
    assert (question, "Let me see" in answer, answer.count("</tool_call>")) == ("Write it.", False, 2)


def test_a_thought_that_was_cut_off_is_no_answer(by):
    llm = ChatBeacon(**by(scripted_engine(lambda seen: "<think>\nThe user asks")), session_id="ada")
    llm.invoke("Where?")
    assert remembered(llm) == ["Where?"]
    llm.invoke("And now?")
    assert remembered(llm) == ["Where?", "And now?"]


class Tree(BaseModel):
    """A tree."""

    name: str
    branches: list[Tree] = []


def test_a_class_that_contains_itself_is_written_as_deep_as_it_goes(by):
    """LangChain's schema of it ends at the first level: below, anything was allowed."""
    written = '{"name": "a", "branches": [{"name": "b", "branches": [{"name": "c", "branches": []}]}]}'
    for method in ("json_schema", "function_calling"):
        call = f'<tool_call>\n{{"name": "Tree", "arguments": {written}}}\n</tool_call>'
        engine = scripted_engine(lambda seen, said=call if method == "function_calling" else written: said)
        llm = ChatBeacon(**by(engine), max_tokens=300).with_structured_output(Tree, method=method)
        assert llm.invoke("Draw.") == Tree.model_validate_json(written)


class Part(BaseModel):
    name: str
    parts: list[Part] = []


@tool
def whole(part: Part, runtime: ToolRuntime, of: Annotated[str, InjectedToolArg] = "house") -> str:
    """What a part is a part of."""
    return f"{part.name} of {of}, {runtime.tool_call_id}"


def test_what_is_injected_into_a_tool_is_nothing_that_a_model_says():
    """Tools with a runtime could not be bound: their schema is none that JSON can say."""
    seen: list[str] = []
    call = '<tool_call>\n{"name": "whole", "arguments": {"part": {"name": "door"}}}\n</tool_call>'
    engine = scripted_engine(lambda prompt: seen.append(prompt) or (call if prompt.count("door") == 1 else "Of it."))
    agent = create_agent(ChatBeacon(engine=engine, max_tokens=160), [whole])
    said = agent.invoke({"messages": [("human", "What is a door of?")]})["messages"]
    assert said[1].tool_calls[0]["args"] == {"part": {"name": "door"}}
    assert said[2].text.startswith("door of house, call-")
    assert said[3].text == "Of it."
    assert "runtime" not in seen[0]
    assert '"of"' not in seen[0]
