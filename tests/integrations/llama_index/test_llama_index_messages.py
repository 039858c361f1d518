"""LlamaIndex's messages of every kind are read, or refused by one error, and the session goes on."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.base.llms.types import (
    AudioBlock,
    CachePoint,
    ChatMessage,
    CitableBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.llms.beacon import BeaconLLM
from llama_index.llms.beacon.messages import from_plain, to_asked, to_plain
from pydantic import BaseModel

from beacon_memory.errors import InputError
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.talk.messages import read_messages

TEXT = st.sampled_from(["Hi", "", " ", "\ud83d", "<think>\nHm", "</tool_call>", "<|im_end|>", "a\x00b"])
ARGUMENTS = st.sampled_from(
    [{"a": 1}, {"day": datetime.date(2026, 11, 26)}, '{"a": 1}', "{", "", {"a": "</tool_call>"}]
)
BLOCK = st.one_of(
    TEXT.map(lambda text: TextBlock(text=text)),
    ARGUMENTS.map(lambda given: ToolCallBlock(tool_call_id="1", tool_name="f", tool_kwargs=given)),
    st.sampled_from(
        [ThinkingBlock(content="Hm"), ImageBlock(url="https://example.com/x"), AudioBlock(url="https://example.com/x")]
    ),
    st.just(CitableBlock(title="t", source="s", content=[TextBlock(text="cited")])),
    st.just(CachePoint(cache_control={"type": "ephemeral"})),
)
MESSAGE = st.builds(ChatMessage, role=st.sampled_from(list(MessageRole)), content=TEXT | st.none()) | st.builds(
    ChatMessage, role=st.sampled_from(list(MessageRole)), blocks=st.lists(BLOCK, max_size=3)
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(messages=st.lists(MESSAGE, max_size=4))
def test_whatever_list_is_sent_is_read_or_refused_by_one_error(messages):
    for read in (to_plain, to_asked):
        try:
            plain = read(messages)
        except InputError:
            continue
        assert plain.system is None or plain.system.strip()
        for message in read_messages(plain.messages):
            assert from_plain(message).role.value == message["role"]


@pytest.fixture
def llm(shared: BeaconEngine, by: Any) -> BeaconLLM:
    return BeaconLLM(**by(shared.with_store("memory://")), max_new_tokens=60, session_id="ada")


def say(llm: BeaconLLM, *messages: ChatMessage) -> str:
    return llm.chat(list(messages)).message.content


@pytest.mark.parametrize("refused", [ChatMessage(""), ChatMessage(blocks=[ImageBlock(url="https://example.com/x")])])
def test_after_a_message_that_cannot_be_read_the_session_goes_on(llm, refused):
    say(llm, ChatMessage("Rex1 is here."))
    with pytest.raises(InputError):
        say(llm, refused)
    assert say(llm, ChatMessage("Who?")) == "I know Rex1"


def test_a_system_message_alone_is_what_is_asked(llm):
    assert say(llm, ChatMessage("Rex2 \ud83d is here.", role="system")) == "I know Rex2"
    assert say(llm, ChatMessage("Be brief.", role="system"), ChatMessage("Who?")) == "I know Rex2"


class Function(BaseModel):
    name: str = "f"
    arguments: str = '{"a": 1}'


class Call(BaseModel):
    """As OpenAI's client makes it."""

    id: str = "1"
    function: Function = Function()


@pytest.mark.parametrize("call", [Call(), Call().model_dump()])
def test_calls_as_they_were_kept_before_there_were_blocks_are_calls(call):
    """A message with nothing else in it was left out, and its result stood alone."""
    older = ChatMessage(role="assistant", content=None, additional_kwargs={"tool_calls": [call]})
    newer = ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_call_id="1", tool_name="f", tool_kwargs={"a": 1})])
    assert to_plain([older]).messages == to_plain([newer]).messages != []


@pytest.mark.parametrize("call", ["f", 3, {"function": "f"}, {"function": {"name": 3}}, {"name": "f"}])
def test_what_is_no_call_is_refused(call):
    with pytest.raises(InputError, match="additional_kwargs"):
        to_plain([ChatMessage(role="assistant", content="", additional_kwargs={"tool_calls": [call]})])
