"""ChatBeacon and BeaconLLM as LangChain's users use them: sessions by any name, batches, streams, async, bad input."""

from __future__ import annotations

import asyncio
import gc
import glob
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from langchain_beacon import BeaconChatModel, BeaconLLM, ChatBeacon
from langchain_core.caches import InMemoryCache
from langchain_core.documents import Document
from langchain_core.exceptions import (
    ContextOverflowError,
    ModelAPIError,
    ModelConnectionError,
    ModelInvalidRequestError,
    ModelNotFoundError,
)
from langchain_core.globals import set_llm_cache
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from remembering import HERE, cfg, remembers, told

from beacon_memory import BeaconConfig
from beacon_memory.errors import ConfigError, InputError, ModelMismatch, StoreUnavailable
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import RedisServer, scripted_engine, sensible, tiny_checkpoint, tiny_model


@pytest.fixture
def llm(shared: BeaconEngine, by: Any) -> ChatBeacon:
    """A model with no session in its store yet, in this process or a server's."""
    return ChatBeacon(**by(shared.with_store("memory://")), max_tokens=60)


@pytest.fixture
def here(shared: BeaconEngine) -> ChatBeacon:
    """One of this process."""
    return ChatBeacon(engine=shared.with_store("memory://"), max_tokens=60)


def test_the_alias_is_the_class():
    assert BeaconChatModel is ChatBeacon


@pytest.mark.parametrize("key", ["session_id", "thread_id"])
def test_a_session_is_named_by_config_everywhere(llm, key):
    llm, config = llm.model_copy(update={"session_from_thread": key == "thread_id"}), cfg(**{key: "ada"})
    llm.invoke("Rex1 is here.", config)
    list(llm.stream("Rex2 is here.", config))
    llm.batch(["Rex3 is here."], config)
    chain = ChatPromptTemplate.from_messages([("human", "{it}")]) | llm | StrOutputParser()
    assert chain.invoke({"it": "Rex4 is here."}, config) == "I know Rex1, Rex2, Rex3, Rex4"
    inner = RunnableLambda(lambda text: llm.invoke(text).text)  # no config in hand: it is found
    assert inner.invoke("Who?", config).endswith("Rex4")
    assert len(told(llm, "ada")) == 10
    assert llm.invoke("Who?").text == "I know nobody"


async def test_a_session_is_named_by_config_in_async_too(llm):
    config = cfg(session_id="ada")
    await llm.ainvoke("Rex1 is here.", config)
    async for _ in llm.astream("Rex2 is here.", config):
        pass
    await llm.abatch(["Rex3 is here."], config)
    events = [event async for event in llm.astream_events("Rex4 is here.", config, version="v2")]
    assert events[-1]["data"]["output"].text == "I know Rex1, Rex2, Rex3, Rex4"
    assert len(told(llm, "ada")) == 8


def test_the_nearest_name_wins(llm):
    named = ChatBeacon(engine=llm.engine, session_id="built", max_tokens=60)
    named.invoke("Rex1 is here.")
    assert named.invoke("Who?").text == "I know Rex1"
    assert named.invoke("Who?", session_id=None).text == "I know nobody"
    assert named.invoke("Who?", cfg(session_id="other")).text == "I know nobody"
    assert named.bind(session_id="third").invoke("Who?", cfg(session_id="other")).text == "I know nobody"
    assert named.invoke("Who?", cfg(thread_id="other")).text == "I know Rex1"
    assert sorted(named.engine.sessions()) == ["built", "other", "third"]


def test_in_a_graph_the_thread_is_the_session_where_that_is_asked_for_and_regenerating_forks(llm):
    llm = llm.model_copy(update={"session_from_thread": True})

    def call(state: MessagesState) -> dict:
        return {"messages": [llm.invoke(state["messages"])]}

    graph = (
        StateGraph(MessagesState).add_node("call", call).add_edge(START, "call").compile(checkpointer=InMemorySaver())
    )
    config = cfg(thread_id="t1")
    for n in range(3):
        state = graph.invoke({"messages": [("human", f"Rex{n} is here.")]}, config)
    talk = [m.text for m in state["messages"]]
    assert told(llm, "t1") == talk
    history = graph.get_state_history(config)
    past = next(s for s in history if s.next == ("call",) and len(s.values["messages"]) == 3)
    graph.invoke(None, past.config)
    assert told(llm, "t1") == talk[:4]


def test_what_is_remembered_is_reported(llm):
    config = cfg(session_id="ada")
    first = llm.invoke("Rex1 likes the sea and the sand. " * 12, config)
    second = llm.invoke("Who?", config)
    usage = second.usage_metadata
    assert first.usage_metadata["input_token_details"]["cache_creation"] > 0
    assert usage["input_token_details"]["cache_read"] > 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    physical = second.response_metadata["beacon"]
    assert physical["session_id"] == "ada"
    assert physical["beacon_tokens"] + physical["raw_tokens"] < usage["input_tokens"]
    streamed = None
    for chunk in llm.stream("Who?", config):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.response_metadata["beacon"]["beacon_tokens"] > 0
    assert streamed.usage_metadata["input_token_details"]["cache_read"] >= usage["input_token_details"]["cache_read"]


def test_copies_and_configured_models_share_the_weights(tmp_path):
    name = str(tiny_checkpoint(tmp_path))
    llm = ChatBeacon(model=name, max_tokens=4).configurable_fields(temperature=ConfigurableField("heat"))
    llm.invoke("Hi", {"configurable": {"heat": 0.5}})
    one = llm.default
    loaded = one.engine.memory.model
    for other in (one.model_copy(), one.bind(stop=["x"]).bound, ChatBeacon(model=name), BeaconLLM(model=name)):
        assert other.engine.memory.model is loaded


def test_making_a_model_loads_nothing():
    assert ChatBeacon(model="not/there").profile["tool_calling"]


def test_the_profile_tells_the_effective_window(tmp_path):
    llm = ChatBeacon(model=str(tiny_checkpoint(tmp_path, max_position_embeddings=4096)), max_tokens=4)
    effective = llm.profile["max_input_tokens"]
    assert effective > 4096
    long = llm.invoke("a" * (effective - 100))  # a letter is a token
    assert long.usage_metadata["input_tokens"] > 4096
    assert long.response_metadata["beacon"]["beacon_tokens"] > 0


def test_langchains_cache_cannot_give_a_stale_answer(llm):
    set_llm_cache(InMemoryCache())
    try:
        for n in range(2):
            said = llm.invoke("Who?", cfg(session_id="ada"))
            llm.invoke(f"Rex{n} is here.", cfg(session_id="ada"))
        assert said.text == "I know Rex0"
        assert len(told(llm, "ada")) == 8
        assert llm.invoke("Who?").text == llm.invoke("Who?").text  # without a session it may
    finally:
        set_llm_cache(None)


def test_a_document_stands_in_front_of_a_chain(llm):
    handbook = [Document("Rex7 guards the door. " * 20, metadata={"source": "handbook"}), "And Rex8 sleeps."]
    reader = llm.with_context(handbook, context_id="handbook")
    chain = ChatPromptTemplate.from_messages([("human", "{q}")]) | reader
    said = chain.invoke({"q": "Who?"})
    assert said.text == "I know Rex7, Rex8"
    assert said.usage_metadata["input_token_details"]["cache_read"] > 100
    assert llm.bind(context_id="handbook").invoke("Who?").text == said.text
    text = PromptTemplate.from_template("{q}") | BeaconLLM(engine=llm.engine).with_context(handbook)
    assert text.invoke({"q": "Who?"}) == said.text
    with pytest.raises(ModelInvalidRequestError, match="no context"):
        llm.invoke("Who?", context_id="another")
    llm.invoke("Rex9 is here.", cfg(session_id="ada"), context_id="handbook")
    assert "guards the door" not in str(told(llm, "ada"))


NUMBER = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
ADD = {"name": "add", "description": "Adds.", "parameters": NUMBER}


def test_tool_calls_are_recognised_when_they_come_back(by):
    llm = ChatBeacon(**by(scripted_engine(sensible)), max_tokens=200, session_id="ada")
    talk = [SystemMessage("You add."), HumanMessage("add 3")]
    call = llm.bind_tools([ADD]).invoke(talk)
    assert call.response_metadata["finish_reason"] == "tool_calls"
    talk += [call, ToolMessage("7", tool_call_id=call.tool_calls[0]["id"])]
    llm.bind_tools([ADD]).invoke(talk)
    roles = [m["role"] for m in llm.engine.session("ada").messages()]
    assert roles == ["user", "assistant", "tool", "assistant"]
    assert "You add." not in str(llm.engine.session("ada").messages())


def test_calls_stream_as_chunks_and_text_as_it_comes(by):
    llm = ChatBeacon(**by(scripted_engine(sensible)), max_tokens=200)
    chunks = list(llm.bind_tools([ADD]).stream("add 3"))
    assert "".join(chunk.text for chunk in chunks) == ""
    assert chunks[-1].tool_calls[0]["args"] == {"a": 3}
    pieces = [chunk.text for chunk in llm.bind_tools([ADD], tool_choice="none").stream("add 3")]
    assert len(pieces) > 3
    with pytest.raises(ValueError, match="not a bound tool"):
        llm.bind_tools([ADD], tool_choice="subtract")


def waited() -> Counter[str]:
    """Nanoseconds that each thread has been ready to run while the machine ran something else (Linux)."""
    found: Counter[str] = Counter()
    for stat in glob.glob("/proc/self/task/*/schedstat"):
        with suppress(OSError):  # a thread that has ended meanwhile
            found[stat] = int(Path(stat).read_text().split()[1])
    return found


async def test_twenty_conversations_at_once_and_the_loop_goes_on(here):
    """Every tick of the event loop comes within 50 ms, but for the time that a busy machine kept from our threads. No
    collection of all that was ever imported falls between: it stops every thread, whatever a model does. What our code
    does to the loop it does each time; a stray hiccup of the machine comes once: one of three rounds must be without.
    """

    async def longest_gap(round_: int) -> float:
        gaps, done = [], asyncio.Event()

        async def tick() -> None:
            last, before = time.perf_counter(), waited()
            while not done.is_set():
                await asyncio.sleep(0.001)
                now, since = time.perf_counter(), waited()
                gaps.append(now - last - (since - before).total() / 1e9)
                last, before = now, since

        async def talk(n: int) -> str:
            config = cfg(session_id=f"c{round_}-{n}")
            await here.ainvoke(f"Rex{n:02} is here.", config)
            return "".join([chunk.text async for chunk in here.astream("Who?", config)])

        ticking = asyncio.create_task(tick())
        said = await asyncio.gather(*(talk(n) for n in range(20)))
        done.set()
        await ticking
        assert said == [f"I know Rex{n:02}" for n in range(20)]
        assert len(gaps) > 20
        return max(gaps)

    here.engine.memory.sessions()  # loaded before the clock runs
    gc.collect()
    gc.freeze()
    try:
        longest = [await longest_gap(0)]
        while longest[-1] > 0.05 and len(longest) < 3:
            longest.append(await longest_gap(len(longest)))
    finally:
        gc.unfreeze()
    assert min(longest) <= 0.05


async def test_a_cancelled_call_stops_the_model_and_the_session_stays(by):
    engine = scripted_engine(lambda seen: "word " * 500)
    llm = ChatBeacon(**by(engine), max_tokens=2000, session_id="ada")
    engine.session("ada").add("Hello")
    begun = time.perf_counter()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(llm.ainvoke("More"), 0.3)
    await engine.run(lambda: None)
    assert time.perf_counter() - begun < 5
    assert told(llm, "ada") == ["Hello"]


@HERE  # a server is at the end of a short answer before its first piece is read
def test_a_stream_that_is_left_early_leaves_the_session(llm):
    llm.engine.session("ada").add("Hello")
    stream = llm.stream("More", cfg(session_id="ada"))
    next(stream)
    stream.close()
    assert told(llm, "ada") == ["Hello"]


# Bad input


def test_a_session_needs_a_store_but_a_thread_does_not():
    llm = ChatBeacon(engine=scripted_engine(remembers, None), max_tokens=60)
    with pytest.raises(ModelInvalidRequestError, match="nowhere to be kept"):
        llm.invoke("Hi", session_id="ada")
    assert llm.invoke("Hi", cfg(thread_id="t1")).text == "I know nobody"


def test_two_models_cannot_share_a_session(here, by):
    here.invoke("Hi", session_id="ada")
    other = BeaconEngine(tiny_model(seed=1, config=BeaconConfig(window=64, keep_last=16)), here.engine.memory.store)
    with pytest.raises(ModelInvalidRequestError) as caught:
        ChatBeacon(**by(other)).invoke("Hi", session_id="ada")
    assert isinstance(caught.value, ModelMismatch)
    assert told(here, "ada") == ["Hi", "I know nobody"]


@pytest.mark.parametrize("streaming", [False, True])
def test_what_cannot_be_read_is_refused_and_the_session_stays(llm, streaming):
    llm.invoke("Hi", session_id="ada")
    before = told(llm, "ada")

    def ask(words, **how):
        return list(llm.stream(words, **how)) if streaming else llm.invoke(words, **how)

    image = HumanMessage([{"type": "text", "text": "See:"}, {"type": "image", "url": "http://x/y.png"}])
    with pytest.raises(ValueError, match="'image' cannot be read"):
        ask([image], session_id="ada")
    with pytest.raises(ContextOverflowError):
        ask([SystemMessage("long " * 9000), HumanMessage("Hi")], session_id="ada")
    bad = {"type": "function", "function": {"name": "add", "parameters": {"type": "banana"}}}
    with pytest.raises(InputError, match="'add'"):
        ask("Hi", tools=[bad], session_id="ada")
    with pytest.raises(ConfigError, match="temperature"):
        ask("Hi", temperature=-1, session_id="ada")
    with pytest.raises(ModelNotFoundError):
        ask("Hi", model="gpt-6", session_id="ada")
    assert told(llm, "ada") == before


@HERE  # a server is at the end of a short answer before its first piece is read
def test_redis_gone_in_the_middle_of_a_stream_leaves_the_session_where_it_was(shared, by):
    with RedisServer("valkey", appendonly="yes", appendfsync="always") as server:
        llm = ChatBeacon(**by(shared.with_store(server.url)), max_tokens=60)
        llm.invoke("Rex1 is here.", session_id="ada")
        before = told(llm, "ada")
        stream = llm.stream("Who?", session_id="ada")
        next(stream)
        server.kill()
        with pytest.raises(ModelConnectionError) as caught:
            list(stream)
        assert isinstance(caught.value, StoreUnavailable)
        server.start()
        assert told(llm, "ada") == before
        assert llm.invoke("Who?", session_id="ada").text == "I know Rex1"


@HERE  # a server is at the end of a short answer before its first piece is read
def test_a_faster_writer_on_a_branch_is_a_retryable_error(llm):
    llm.invoke("One", session_id="ada")
    stream = llm.stream("Edited", session_id="ada", history="full")
    next(stream)
    llm.invoke("Faster", session_id="ada")
    with pytest.raises(ModelAPIError, match="load it again"):
        list(stream)


def test_importing_the_package_imports_no_torch():
    check = "import sys, langchain_beacon; assert not {'torch', 'langchain', 'langchain_core'} & set(sys.modules)"
    path = ["integrations/langchain", "."]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path}; {check}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
