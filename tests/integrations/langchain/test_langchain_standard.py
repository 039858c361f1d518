"""LangChain's standard suites, nothing overridden, on a model whose judgement is a script."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_beacon import ChatBeacon
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import beacon_server, scripted_engine, sensible

LONG = "My dog is called Rex, and he likes the sea. " * 12


@pytest.fixture(scope="module")
def engine() -> BeaconEngine:
    return scripted_engine(sensible)


@pytest.fixture(scope="module")
def url(engine: BeaconEngine) -> Iterator[str]:
    with beacon_server(engine.with_store("memory://")) as url:
        yield url


class _Scripted:
    @pytest.fixture(autouse=True)
    def _shared(self, engine: BeaconEngine) -> None:
        type(self).engine = engine

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatBeacon

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": self.engine, "max_tokens": 200}


class TestUnit(_Scripted, ChatModelUnitTests):
    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"BEACON_MODEL": "some/model", "BEACON_REDIS_URL": "redis://localhost:1"}, {}, {"model": "some/model"}

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": self.engine}


class TestIntegration(_Scripted, ChatModelIntegrationTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": self.engine, "max_tokens": 200}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supported_usage_metadata_details(self) -> dict[Any, Any]:
        both = ["cache_read_input", "cache_creation_input"]
        return {"invoke": both, "stream": both}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        model = ChatBeacon(**self.chat_model_params, session_id=f"read-{stream}")
        model.invoke(LONG)
        said = _said(model, "What is my dog called?", stream=stream)
        assert said.usage_metadata["input_token_details"]["cache_read"] > 0
        return said

    def invoke_with_cache_creation_input(self, *, stream: bool = False) -> AIMessage:
        # No session has folded this before: what one has, another one reads.
        words = f"{stream} {LONG}"
        said = _said(ChatBeacon(**self.chat_model_params, session_id=f"creation-{stream}"), words, stream=stream)
        assert said.usage_metadata["input_token_details"]["cache_creation"] > 0
        return said


class TestIntegrationOfAServer(TestIntegration):
    @pytest.fixture(autouse=True)
    def _served(self, url: str) -> None:
        type(self).url = url

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": self.url, "max_tokens": 200}

    def invoke_with_cache_creation_input(self, *, stream: bool = False) -> AIMessage:
        words = f"a server, {stream} {LONG}"
        said = _said(ChatBeacon(**self.chat_model_params, session_id=f"creation-{stream}"), words, stream=stream)
        assert said.usage_metadata["input_token_details"]["cache_creation"] > 0
        return said


def _said(model: ChatBeacon, words: str, *, stream: bool) -> AIMessage:
    if not stream:
        return model.invoke(words)
    whole = None
    for chunk in model.stream(words):
        whole = chunk if whole is None else whole + chunk
    return whole
