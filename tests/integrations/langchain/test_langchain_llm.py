"""BeaconLLM: batches, streams, async; sessions by any name, the same ones as the chat model's."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_beacon import BeaconLLM, ChatBeacon
from langchain_core.caches import InMemoryCache
from langchain_core.exceptions import ModelConnectionError, ModelInvalidRequestError
from langchain_core.globals import set_llm_cache
from langchain_core.prompts import PromptTemplate
from pydantic import ValidationError
from remembering import HERE, cfg, remembers, told

from beacon_memory.errors import StoreUnavailable
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.stores.memory import MemoryStore
from beacon_memory.testing import scripted_engine


@pytest.fixture
def llm(shared: BeaconEngine, by: Any) -> BeaconLLM:
    """A model with no session in its store yet, in this process or a server's."""
    return BeaconLLM(**by(shared.with_store("memory://")), max_tokens=60)


async def test_the_text_model_batches_streams_and_counts(shared, by):
    llm = BeaconLLM(**by(shared.with_store("memory://")), max_tokens=40)
    result = llm.generate(["Rex1", "Rex2 " * 30])
    assert [g[0].text for g in result.generations] == ["I know Rex1", "I know Rex2"]
    usage = result.llm_output["token_usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert "".join(llm.stream("Rex1")) == await llm.ainvoke("Rex1") == "I know Rex1"
    words, letters = ["I ", "know ", ""], [*"I know ", ""]  # transformers before 5.24, and from it on
    assert [piece async for piece in llm.astream("Rex1", stop=["Rex"])] in (words, letters)
    assert llm.get_num_tokens("Rex1") == len(shared.memory.model.encode("Rex1"))
    assert (await llm.agenerate(["Rex1"])).generations[0][0].generation_info == {"finish_reason": "stop"}


def test_a_session_is_named_by_call_config_or_constructor(llm):
    llm.invoke("Rex1 is here.", session_id="ada")
    list(llm.stream("Rex2 is here.", cfg(session_id="ada")))
    chain = PromptTemplate.from_template("{it} is here.") | llm
    chain.invoke({"it": "Rex3"}, cfg(session_id="ada"))
    built = BeaconLLM(engine=llm.engine, session_id="ada", max_tokens=60)
    assert built.invoke("Who?") == "I know Rex1, Rex2, Rex3"
    assert built.invoke("Who?", session_id=None) == llm.invoke("Who?") == "I know nobody"
    assert llm.invoke("Who?", cfg(thread_id="ada")) == "I know nobody"  # a prompt within a graph is seldom the talk
    threads = BeaconLLM(engine=llm.engine, session_from_thread=True, max_tokens=60)
    assert threads.invoke("Who?", cfg(thread_id="ada")).endswith("Rex3")


async def test_a_session_is_named_in_async_too(llm):
    await llm.ainvoke("Rex1 is here.", session_id="ada")
    pieces = [piece async for piece in llm.astream("Rex2 is here.", cfg(session_id="ada"))]
    assert "".join(pieces) == "I know Rex1, Rex2"
    assert await llm.abatch(["Rex3 is here.", "Who?"], cfg(session_id="ada")) == [
        "I know Rex1, Rex2, Rex3",
        "I know Rex1, Rex2, Rex3",
    ]
    assert len(told(llm, "ada")) == 8


def test_a_chat_model_of_the_same_session_has_read_the_same(llm):
    chat = ChatBeacon(engine=llm.engine, max_tokens=60)
    llm.invoke("Rex1 is here.", session_id="ada")
    assert chat.invoke("Rex2 is here.", session_id="ada").text == "I know Rex1, Rex2"
    assert llm.invoke("Who?", session_id="ada") == "I know Rex1, Rex2"
    info = llm.generate(["Who?"], session_id="ada").generations[0][0].generation_info
    assert info["finish_reason"] == "stop"
    assert info["beacon"]["session_id"] == "ada"


@pytest.mark.parametrize("place", [0, 1, 4])
@pytest.mark.parametrize("bad", ["", "\ud800", 5])
@pytest.mark.parametrize("most", [None, 2])
async def test_a_prompt_that_fails_takes_no_other_one_of_its_batch_with_it(llm, bad, place, most):
    prompts = ["Rex1", "Rex2", "Rex3", "Rex4"]
    prompts.insert(place, bad)
    config = {"max_concurrency": most} if most else None
    wanted = [f"I know {prompt}" for prompt in prompts if prompt != bad]
    for said in (
        llm.batch(prompts, config, return_exceptions=True),
        await llm.abatch(prompts, config, return_exceptions=True),
    ):
        failed = said.pop(place)
        assert isinstance(failed, BaseException) or bad == "\ud800"  # which is read as a mark
        assert said == wanted
    assert llm.batch([], return_exceptions=True) == []


def test_a_batch_in_sessions_is_said_in_order(llm):
    assert llm.batch(["Rex1", "Rex2", "Rex3"], session_id="ada")[-1] == "I know Rex1, Rex2, Rex3"
    others = llm.batch(["Rex4", "Rex5", "Who?"], [cfg(session_id="bob"), cfg(session_id="eve"), {}])
    assert others == ["I know Rex4", "I know Rex5", "I know nobody"]
    failed, fine = llm.batch(["  ", "Who?"], session_id="bob", return_exceptions=True)
    assert isinstance(failed, ModelInvalidRequestError)
    assert fine == "I know Rex4"
    with pytest.raises(ModelInvalidRequestError):
        llm.batch(["  ", "Who?"], session_id="bob")


async def test_langchains_cache_cannot_give_a_stale_answer(llm):
    set_llm_cache(InMemoryCache())
    try:
        for n in range(2):
            said = llm.invoke("Who?", session_id="ada")
            assert said == await llm.ainvoke("Who?", session_id="ada")
            llm.invoke(f"Rex{n} is here.", session_id="ada")
        assert said == "I know Rex0"
        assert len(told(llm, "ada")) == 12
        assert llm.invoke("Who?") == llm.invoke("Who?")  # without a session it may
    finally:
        set_llm_cache(None)


class Gone(MemoryStore):
    def load(self, session: str):
        raise StoreUnavailable("the store is gone")


@HERE  # a server is at the end of a short answer before its first piece is read
def test_what_cannot_be_read_is_refused_and_the_session_stays(llm, shared, by):
    llm.invoke("Rex1 is here.", session_id="ada")
    before = told(llm, "ada")
    with pytest.raises(ModelInvalidRequestError, match="temperature"):
        llm.invoke("Who?", session_id="ada", temperature=-1)
    stream = llm.stream("Who?", session_id="ada")
    next(stream)
    stream.close()
    assert told(llm, "ada") == before
    with pytest.raises(ModelConnectionError):
        BeaconLLM(**by(shared.with_store(Gone())), max_retries=0).invoke("Who?", session_id="ada")
    with pytest.raises(ModelInvalidRequestError, match="nowhere to be kept"):
        BeaconLLM(engine=scripted_engine(remembers, None)).invoke("Who?", session_id="ada")


@pytest.mark.parametrize("made", [BeaconLLM, ChatBeacon])
def test_an_argument_that_nobody_reads_is_refused(llm, made):
    with pytest.raises(ValidationError, match="sesion_id"):
        made(engine=llm.engine, sesion_id="ada")
    model = made(engine=llm.engine, max_tokens=8)
    for asked in (
        lambda: model.invoke("Who?", sesion_id="ada"),
        lambda: list(model.stream("Who?", sesion_id="ada")),
        lambda: model.bind(sesion_id="ada").invoke("Who?"),
        lambda: model.batch(["Who?"], sesion_id="ada"),
    ):
        with pytest.raises(ModelInvalidRequestError, match="unknown argument sesion_id"):
            asked()
    assert model.engine.sessions() == []
