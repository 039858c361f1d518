"""LangChain's ChatOpenAI against the server, by chat completions and by responses: its standard suite, and memory.

Nothing of the suite is overridden. The model is tiny and random; what it wants to say is a script, all else is real.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from conftest import wise
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from beacon_memory.testing import beacon_server, scripted_engine

LONG = "My dog is called Rex, and he likes the sea. " * 12


def keyed(seen: str) -> str:
    """A script with judgement that also answers in JSON of the keys it was asked for in words."""
    keys = re.search(r"JSON with '(\w+)' and '(\w+)' keys", seen)
    if keys and "Answer with JSON" in seen:
        return json.dumps(dict.fromkeys(keys.groups(), "Meow."))
    return wise(seen)


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with beacon_server(scripted_engine(keyed)) as url:
        yield f"{url}/v1"


# ChatOpenAI's own: of a schema of one test, and of OpenAI's client, which it gives a parsed answer to write.
@pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema")
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
class _Standard(ChatModelIntegrationTests):
    responses = False

    @pytest.fixture(autouse=True)
    def _served(self, base: str) -> None:
        type(self).base = base

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # Each test has an event loop of its own: no connection outlives a response.
        fleeting = httpx.Limits(max_keepalive_connections=0)
        return {
            "model": "scripted",
            "base_url": self.base,
            "api_key": "none",
            "use_responses_api": self.responses,
            "stream_usage": True,
            "http_async_client": httpx.AsyncClient(limits=fleeting),
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supported_usage_metadata_details(self) -> dict[Any, Any]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def going_on(self) -> dict[str, Any]:
        """How a second call goes on from a first one, which tells it something."""
        session = {"user": f"s-{uuid.uuid4()}"}
        ChatOpenAI(**self.chat_model_params).invoke(LONG, **session)
        return session

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        how, model = self.going_on(), ChatOpenAI(**self.chat_model_params)
        asked = "What is my dog called?"
        if not stream:
            return model.invoke(asked, **how)
        chunks: list[BaseMessageChunk] = list(model.stream(asked, **how))
        return sum(chunks[1:], chunks[0])  # type: ignore[return-value, type-var]


class TestChatCompletions(_Standard):
    """The suite by `/v1/chat/completions`."""


class TestResponses(_Standard):
    """The suite by `/v1/responses`."""

    responses = True

    def going_on(self) -> dict[str, Any]:
        told = ChatOpenAI(**self.chat_model_params).invoke(LONG)
        return {"previous_response_id": told.response_metadata["id"]}


@pytest.mark.parametrize("stream", [False, True])
def test_a_talk_goes_on_by_what_is_new_alone(base: str, stream: bool) -> None:
    """`use_previous_response_id` sends what stands behind the newest answer; the system prompt goes with the memory."""
    seen: list[str] = []

    def hears(text: str) -> str:
        seen.append(text)
        return keyed(text)

    with beacon_server(scripted_engine(hears)) as url:
        model = ChatOpenAI(
            model="scripted",
            base_url=f"{url}/v1",
            api_key="none",  # type: ignore[arg-type]
            use_responses_api=True,
            use_previous_response_id=True,
            streaming=stream,
        )
        talk: list[Any] = [SystemMessage("You are a vet."), HumanMessage("My dog is called Rex.")]
        for question in ("What is my dog called?", "And again?", None):
            talk.append(model.invoke(talk))
            talk += [HumanMessage(question)] if question else []
        assert [message.text for message in talk if isinstance(message, AIMessage)] == ["Rex!"] * 3
        assert all(text.count("You are a vet.") == text.count("called Rex.") == 1 for text in seen)
        session = talk[-1].response_metadata["id"]
        told = httpx.get(f"{url}/v1/sessions/{session}/messages").json()["data"]
        assert [m["content"] for m in told] == [
            "My dog is called Rex.",
            "Rex!",
            "What is my dog called?",
            "Rex!",
            "And again?",
            "Rex!",
        ]


def test_an_agents_calls_and_results_go_on_too(base: str) -> None:
    tool = {"name": "weather", "description": "of a place", "parameters": {"type": "object", "properties": {}}}
    model = ChatOpenAI(
        model="scripted",
        base_url=base,
        api_key="none",  # type: ignore[arg-type]
        use_responses_api=True,
        use_previous_response_id=True,
    ).bind_tools([tool])
    talk: list[Any] = [HumanMessage("What is the weather?")]
    talk.append(model.invoke(talk))
    (call,) = talk[-1].tool_calls
    talk.append(ToolMessage("7 degrees", tool_call_id=call["id"]))
    assert model.invoke(talk).text == "It was 7."
