"""Looking again in LangChain: what was read a second time is in the metadata, in citations, in batches."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_beacon import BeaconLLM, BeaconMemoryMiddleware, ChatBeacon
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from beacon_memory import BeaconConfig
from beacon_memory.errors import ConfigError
from beacon_memory.models.finder import Finder
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import scripted_engine, tiny_checkpoint

LEASE = "The lease ends in May. The rent is due on the first. The door is green. " * 8
CONFIG = BeaconConfig(window=64, keep_last=64, anchors="last")  # no question here is longer than what is kept raw
ADA = {"configurable": {"session_id": "ada"}}


@pytest.fixture(scope="module")
def engine() -> BeaconEngine:
    """An engine whose model says how often it has seen that the lease ends, and whose finder always finds."""
    engine = scripted_engine(lambda seen: f"Seen {seen.count('lease ends')} times.", config=CONFIG)
    engine.memory.model.finder = Finder(((1, 0), (0, 1)), (2.0, 1.0), 0.0)
    return engine


@pytest.fixture
def llm(engine: BeaconEngine, by: Any) -> ChatBeacon:
    llm = ChatBeacon(**by(engine.with_store("memory://")), recall_tokens=64, max_tokens=24)
    llm.opened.session("ada").add_text(LEASE, name="lease.txt")
    llm.opened.session("ada").add({"role": "user", "content": "I live in Lyon, near the river. " * 9, "id": "home"})
    return llm


def sources(message: Any) -> list[dict[str, Any]]:
    return list(message.response_metadata["beacon"]["sources"])


def check(found: list[dict[str, Any]], tokens: int = 64) -> None:
    assert found
    assert sum(source["end"] - source["start"] for source in found) <= tokens
    for source in found:
        if source.get("document"):
            assert (source["document"], source["text"] in LEASE) == ("lease.txt", True)
        else:
            assert source["role"] in ("user", "assistant")
            assert source["message"] >= 1


async def test_an_answer_names_its_sources_however_it_is_asked_for(llm):
    question = "When does the lease end?"
    told = [llm.invoke(question, ADA), await llm.ainvoke(question, ADA)]
    for chunks in ([*llm.stream(question, ADA)], [chunk async for chunk in llm.astream(question, ADA)]):
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole += chunk
        told.append(whole)
    told += llm.batch([question, "And where?"], ADA)
    for message in told:
        check(sources(message))
    assert sources(llm.invoke(question, ADA, recall_tokens=0)) == []
    assert sources(llm.invoke(question)) == []  # no session: nothing was read
    more = llm.invoke(question, ADA, recall_tokens=256)
    check(sources(more), 256)
    assert len(sources(more)) > len(sources(told[0]))


def test_a_call_says_how_much_and_the_answer_sees_it(llm):
    plain = int(llm.invoke("When?", ADA, recall_tokens=0).text.split()[1])
    message = llm.invoke("When?", ADA)
    again = sum(source["text"].count("lease ends") for source in sources(message))
    # the turn before was remembered, and says nothing of leases but "Seen"
    assert int(message.text.split()[1]) == plain + again


def test_sources_are_citations_of_the_standard(llm):
    message = llm.invoke("When does the lease end?", ADA)
    assert isinstance(message.content, str)
    blocks = message.content_blocks
    assert [block["type"] for block in blocks] == ["text"]
    assert blocks[0]["text"] == message.text
    cited = blocks[0]["annotations"]
    assert [one["cited_text"] for one in cited] == [source["text"] for source in sources(message)]
    assert {one["type"] for one in cited} == {"citation"}
    assert {one["title"] for one in cited} <= {"lease.txt", "user home"}
    assert [one["extras"]["score"] for one in cited] == [source["score"] for source in sources(message)]
    again = AIMessage.model_validate_json(message.model_dump_json())  # as a checkpoint keeps it
    assert [one["cited_text"] for one in again.content_blocks[0]["annotations"]] == [one["cited_text"] for one in cited]
    plain = llm.invoke("When?", ADA, recall_tokens=0)
    assert plain.content_blocks == [{"type": "text", "text": plain.text}]
    assert "annotations" not in message.model_copy(update={"response_metadata": {}}).content_blocks[0]


def test_the_standards_own_output_has_them_too_and_can_be_sent_back(llm):
    standard = llm.model_copy(update={"output_version": "v1"})
    message = standard.invoke("When does the lease end?", ADA)
    assert isinstance(message.content, list)
    assert message.content[0]["annotations"][0]["type"] == "citation"
    check(sources(message))
    streamed: AIMessageChunk | None = None
    for chunk in standard.stream("When does the lease end?", ADA):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None
    cited = [one for block in streamed.content_blocks for one in block.get("annotations", ())]
    assert [one["cited_text"] for one in cited] == [source["text"] for source in sources(streamed)]
    before = len(llm.opened.session("eve").messages()) if "eve" in llm.opened.sessions() else 0
    eve = {"configurable": {"session_id": "eve"}}
    first = standard.invoke([HumanMessage("Hello there.")], eve)
    standard.invoke([HumanMessage("Hello there."), first, HumanMessage("And you?")], eve)
    assert len(llm.opened.session("eve").messages()) == before + 4


def test_texts_in_a_batch_are_asked_behind_documents(engine, by):
    llm = BeaconLLM(**by(engine.with_store("memory://")), recall_tokens=64, max_tokens=16)
    reading = llm.with_context(LEASE, context_id="house")
    result = reading.generate(["The lease ends", "The door is"])
    for (generation,) in result.generations:
        found = generation.generation_info["beacon"]["sources"]
        assert found
        assert all(source["text"] in LEASE and source["session"] == "context:house" for source in found)
        assert sum(source["end"] - source["start"] for source in found) <= 64
    last = None
    for chunk in reading._stream("The lease ends"):
        last = chunk
    assert last is not None
    assert last.generation_info["beacon"]["sources"]
    (alone,) = llm.generate(["The lease ends"]).generations[0]
    assert "beacon" not in alone.generation_info
    (off,) = reading.generate(["The lease ends"], recall_tokens=0).generations[0]
    assert "beacon" not in off.generation_info
    talked = reading.generate(["When does it end?"], session_id="ada").generations[0][0]
    assert talked.generation_info["beacon"]["sources"]


@tool
def clock() -> str:
    """What time it is."""
    return "It is seven o'clock."


def test_after_a_tools_result_it_is_the_users_question_that_is_looked_for(engine, by):
    """What was found stands in front of the question, not between a call and its result."""
    seen: list[str] = []

    def script(text: str) -> str:
        seen.append(text)
        last = text.split("<|im_start|>")[-2]
        if "seven" in last:
            return "At seven."
        return '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>' if "time" in last else "Yes."

    own = scripted_engine(script, config=CONFIG)
    own.memory.model.finder = engine.memory.model.finder
    llm = ChatBeacon(**by(own), recall_tokens=64, max_tokens=160)
    agent = create_agent(
        llm,
        [clock],
        middleware=[BeaconMemoryMiddleware(trigger=("messages", 2), keep=("messages", 4))],
        checkpointer=InMemorySaver(),
    )
    thread = {"configurable": {"thread_id": "t"}}
    for n in range(4):
        agent.invoke({"messages": [("human", f"Number {n}: the lease ends in May, and the rent is due. " * 5)]}, thread)
    messages = agent.invoke({"messages": [("human", "What time is it?")]}, thread)["messages"]
    assert isinstance(messages[-2], ToolMessage)
    assert messages[-1].text == "At seven."
    for message in (messages[-1], messages[-3]):
        assert isinstance(message, AIMessage)
        assert sources(message)
    front, question, behind = seen[-1].rpartition("<|im_start|>user\nWhat time is it?")
    assert question
    assert sources(messages[-1])[0]["text"][:20] in front
    assert behind.index("<tool_call>") < behind.index("seven")
    assert "lease" not in behind


def test_what_is_no_number_of_tokens_is_refused(llm, engine):
    with pytest.raises(ValueError, match="recall_tokens"):
        ChatBeacon(engine=engine, recall_tokens=-1)
    with pytest.raises(ConfigError, match="recall_tokens"):
        llm.invoke("When?", ADA, recall_tokens=-1)


def test_words_find_for_a_model_without_an_adapter(tmp_path):
    checkpoint = str(tiny_checkpoint(tmp_path / "model", max_position_embeddings=4096))
    llm = ChatBeacon(model=checkpoint, config=CONFIG, adapter=None, finder="words", store="memory://", max_tokens=2)
    llm.opened.session("ada").add_text(LEASE + "Olga plays the violin. " + LEASE, name="lease.txt")
    found = sources(llm.invoke("Who plays the violin?", ADA))
    assert "Olga plays the violin." in found[0]["text"]
    assert llm.invoke("Napoleon?", ADA).response_metadata["beacon"].get("sources", []) == []
    with pytest.raises(ValueError, match="finder is one of"):
        ChatBeacon(model=checkpoint, finder="bm25")
    with pytest.raises(ValueError, match="the server has its own finder"):
        ChatBeacon(base_url="http://127.0.0.1:9", finder="words")
