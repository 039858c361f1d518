"""BeaconLLM as LlamaIndex's users use it."""

from __future__ import annotations

import re

import pytest
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.llms.beacon import BeaconLLM

from beacon_memory.engine import BeaconEngine
from beacon_memory.testing import scripted_engine


def remembers(seen: str) -> str:
    """Says which names it has seen."""
    return "I know " + ", ".join(sorted(set(re.findall(r"Rex\d+", seen))) or ["nobody"])


@pytest.fixture(scope="module")
def shared() -> BeaconEngine:
    return scripted_engine(remembers)


@pytest.fixture
def llm(shared: BeaconEngine) -> BeaconLLM:
    """A model with no session in its store yet."""
    return BeaconLLM(engine=shared.with_store("memory://"), max_new_tokens=60)


def test_it_is_what_llama_index_asks_for():
    names = [b.__name__ for b in BeaconLLM.__mro__]
    assert BaseLLM.__name__ in names
    assert FunctionCallingLLM.__name__ in names
    assert BeaconLLM.class_name() == "BeaconLLM"


async def test_all_eight_calls_say_the_same(llm):
    asked = [ChatMessage("Rex1 is here.")]
    said = "I know Rex1"
    assert llm.chat(asked).message.content == said
    assert (await llm.achat(asked)).message.content == said
    assert llm.complete("Rex1 is here.").text == said
    assert (await llm.acomplete("Rex1 is here.")).text == said
    for responses in (
        list(llm.stream_chat(asked)),
        [r async for r in await llm.astream_chat(asked)],
        list(llm.stream_complete("Rex1 is here.")),
        [r async for r in await llm.astream_complete("Rex1 is here.")],
    ):
        assert "".join(r.delta for r in responses) == said
        assert len(responses) > 2
        assert responses[-1].raw["usage"]["completion_tokens"] > 0
