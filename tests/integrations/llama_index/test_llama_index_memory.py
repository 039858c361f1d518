"""Memories for LlamaIndex: agents, chat engines and the stock Memory; nothing is forgotten, none is read twice."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import re
from collections.abc import Iterator

import pytest
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock, ToolCallBlock
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.memory import BaseMemory, InsertMethod, Memory, StaticMemoryBlock
from llama_index.core.memory.memory import BaseMemoryBlock
from llama_index.core.storage.chat_store.base_db import AsyncDBChatStore, MessageStatus
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import Context, JsonSerializer
from llama_index.llms.beacon import BeaconLLM
from llama_index.memory.beacon import BeaconMemory, BeaconMemoryBlock, BeaconRedisChatStore, FoldingMemory
from remembering import HERE
from workflows.context import PickleSerializer

from beacon_memory.errors import ConfigError, InputError, ModelMismatch, SessionConflict, StoreUnavailable
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import redis_server, scripted_engine, tiny_model


def clerk(seen: str) -> str:
    """Notes down what it is told by a tool, then says what was noted first."""
    asked = seen.removesuffix("<|im_start|>assistant\n").rstrip().removesuffix("<|im_end|>")
    newest = asked.rstrip().rpartition("\n")[2]
    if found := re.search(r"note (fact \d+)", newest):
        return f"<tool_call>\n{json.dumps({'name': 'note', 'arguments': {'fact': found[1]}})}\n</tool_call>"
    return "First was fact 000." if "fact 000" in seen else "None."


def note(fact: str) -> str:
    """Write a fact down."""
    return f"noted {fact}"


TOOL = FunctionTool.from_defaults(note)


@pytest.fixture(scope="module")
def shared() -> BeaconEngine:
    return scripted_engine(clerk)


@pytest.fixture
def llm(shared: BeaconEngine, by) -> BeaconLLM:
    return BeaconLLM(**by(shared.with_store("memory://")), max_new_tokens=160)


def told(memory: BeaconMemory) -> list[str]:
    return [m["content"] for m in memory.engine.session(memory.session_id).messages()]


def test_they_are_what_llama_index_asks_for():
    for ours, theirs in (
        (BeaconMemory, BaseMemory),
        (BeaconMemoryBlock, BaseMemoryBlock),
        (BeaconRedisChatStore, AsyncDBChatStore),
    ):
        assert theirs.__name__ in [b.__name__ for b in ours.__mro__]
    assert BeaconMemory.class_name() == "BeaconMemory"
    assert BeaconRedisChatStore.class_name() == "BeaconRedisChatStore"


async def test_an_agent_with_tools_remembers_every_message_once(llm):
    memory = BeaconMemory.from_defaults(session_id="ada", llm=llm)
    agent = FunctionAgent(tools=[TOOL], llm=llm, system_prompt="Be brief.")
    for n in range(6):
        said = await agent.run(f"note fact {n:03}", memory=memory)
    assert str(said) == "First was fact 000."
    assert len(told(memory)) == 6 * 4
    assert [m.role.value for m in memory.get_all()[:4]] == ["user", "assistant", "tool", "assistant"]
    physical = said.raw["beacon"]
    assert physical["session_id"] == "ada"
    assert physical["beacon_tokens"] > 0
    again = BeaconMemory.from_defaults(session_id="ada", llm=llm)  # as in another process
    assert str(await FunctionAgent(llm=llm).run("Which was first?", memory=again)) == "First was fact 000."
    assert "Be brief." not in str(told(memory))


@HERE
async def test_twenty_agents_at_once_have_each_their_own_memory(llm):
    async def talk(n: int) -> list[str]:
        memory = BeaconMemory.from_defaults(session_id=f"agent {n}", llm=llm)
        await FunctionAgent(tools=[TOOL], llm=llm).run(f"note fact {n:03}", memory=memory)
        return [message.content for message in await memory.aget_all() if message.role == "tool"]

    assert await asyncio.gather(*(talk(n) for n in range(20))) == [[f"noted fact {n:03}"] for n in range(20)]


async def test_an_agent_whose_messages_are_worded_anew_leaves_memory_as_it_was_told(llm):
    """An agent's state is written into the newest message of the list, not of the memory."""
    memory = BeaconMemory.from_defaults(session_id="ada", llm=llm)
    agent = FunctionAgent(name="clerk", description="d", tools=[TOOL], llm=llm)
    flow = AgentWorkflow(agents=[agent], root_agent="clerk", initial_state={"rain": 1})
    for n in range(3):
        said = await flow.run(user_msg=f"note fact {n:03}", memory=memory)
    assert str(said) == "First was fact 000."
    assert [m for m in told(memory) if "fact" in m and "tool_call" not in m][:3] == [
        "note fact 000",
        "noted fact 000",
        "First was fact 000.",
    ]
    assert len(told(memory)) == 12
    assert "rain" not in str(told(memory))


async def test_an_agents_context_is_restored_with_a_memory_made_anew(llm):
    """LlamaIndex leaves memories out of a context's JSON: they must be given again."""
    agent = FunctionAgent(tools=[TOOL], llm=llm)
    context = Context(agent)
    await agent.run("note fact 000", ctx=context, memory=BeaconMemory.from_defaults(session_id="ada", llm=llm))
    for serializer in (PickleSerializer(), JsonSerializer()):
        with pytest.warns(match="memory"):
            kept = context.to_dict(serializer=serializer)
    again = Context.from_dict(agent, json.loads(json.dumps(kept)), serializer=JsonSerializer())
    memory = BeaconMemory.from_defaults(session_id="ada", llm=llm)
    assert str(await agent.run("Which?", ctx=again, memory=memory)) == "First was fact 000."
    assert len(told(memory)) == 6


@pytest.mark.filterwarnings("ignore:is_running called:DeprecationWarning")
@HERE
async def test_a_react_agent_reads_the_same_memory(llm):
    memory = BeaconMemory.from_defaults(session_id="ada", llm=llm)
    memory.put_messages([ChatMessage("fact 000 is here"), ChatMessage(role="assistant", content="Good. " * 80)])
    engine = scripted_engine(
        lambda seen: f"Thought: I can answer without using any more tools.\nAnswer: {clerk(seen)}",
        llm.engine.memory.store,
    )
    reader = BeaconLLM(engine=engine, max_new_tokens=160)
    memory = BeaconMemory.from_defaults(session_id="ada", llm=reader)
    said = await ReActAgent(tools=[], llm=reader).run("Which was first?", memory=memory)
    assert str(said) == "First was fact 000."
    assert len(told(memory)) == 4


def test_a_chat_history_that_is_given_again_is_not_read_twice(llm):
    memory = BeaconMemory.from_defaults(session_id="ada", llm=llm)
    talk = [ChatMessage("Hello"), ChatMessage(role="assistant", content="Hi"), ChatMessage("Well?")]
    memory.set(talk[:2])
    version = memory.engine.session("ada").info().version
    memory.set(talk[:2])
    assert memory.engine.session("ada").info().version == version
    memory.set(talk)
    assert memory.get_all() == talk
    memory.set([talk[0]])
    assert memory.get_all() == talk[:1]
    assert BeaconMemory.from_defaults(session_id="ada", llm=llm, chat_history=talk).get_all() == talk
    memory.set([])
    memory.reset()
    assert memory.get() == memory.get_all() == []
    assert llm.engine.sessions() == []


async def test_what_a_memory_gave_can_be_set_again_and_nothing_is_lost(llm):
    """Its reference was remembered as the user's words, in the place of all that it stood for."""
    memory = BeaconMemory.from_defaults(session_id="ada", llm=llm)
    talk = [ChatMessage("Hello"), ChatMessage(role="assistant", content="Hi"), ChatMessage("Well?")]
    memory.set(talk)
    memory.set(memory.get())
    assert memory.get_all() == talk
    given = memory.get()
    await memory.aset([*await memory.aget(), ChatMessage(role="assistant", content="Well.")])
    assert len(memory.get_all()) == 4
    SimpleChatEngine.from_defaults(llm=llm, memory=memory).chat("And now?", chat_history=given)
    assert told(memory) == ["Hello", "Hi", "Well?", "And now?", "None."]
    for act in (
        lambda: memory.put_messages(given),
        lambda: BeaconMemory.from_defaults(session_id="bob", llm=llm, chat_history=given),
        lambda: BeaconMemoryBlock(llm, session_id="bob").aput(given),
    ):
        with pytest.raises(InputError, match=r"get_all\(\)"):
            await act()
    assert len(told(memory)) == 5
    assert llm.engine.sessions() == ["ada"]


async def test_every_call_has_its_asynchronous_twin(llm):
    memory = BeaconMemory.from_defaults(session_id="ada", llm=llm)
    call = ChatMessage(
        role="assistant",
        blocks=[TextBlock(text="Wait."), ToolCallBlock(tool_call_id="1", tool_name="note", tool_kwargs={"fact": "é"})],
    )
    talk = [ChatMessage("a"), call, ChatMessage(role="tool", content="b", additional_kwargs={"tool_call_id": "1"})]
    await memory.aset(talk[:1])
    await memory.aput(talk[1])
    await memory.aput_messages(talk[2:])
    assert await memory.aget_all() == memory.get_all() == talk
    assert (await memory.aget())[1:] == memory.get(initial_token_count=3)[1:] == talk
    await memory.areset()
    assert await memory.aget_all() == []


def test_a_chat_engine_keeps_its_talk_in_the_store(llm):
    memory = BeaconMemory.from_defaults(session_id="ada", llm=llm)
    chat = SimpleChatEngine.from_defaults(llm=llm, memory=memory, system_prompt="Be brief.")
    chat.chat("fact 000 is here")
    assert "".join(chat.stream_chat("Which was first?").response_gen) == "First was fact 000."
    memory = BeaconMemory.from_defaults(session_id="ada", llm=llm)
    assert str(SimpleChatEngine.from_defaults(llm=llm, memory=memory).chat("And?")) == "First was fact 000."
    assert len(memory.get_all()) == 6
    assert len(chat.chat_history) == 6


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with redis_server("valkey") as url:
        yield url


@pytest.fixture
def queue(redis_url: str, request: pytest.FixtureRequest) -> BeaconRedisChatStore:
    return BeaconRedisChatStore(redis_url, key_prefix=request.node.name)


async def test_what_the_stock_memory_flushes_is_folded_and_read_once(llm, queue):
    memory = Memory.from_defaults(
        session_id="ada",
        token_limit=300,
        token_flush_size=100,
        tokenizer_fn=llm.tokenize,
        memory_blocks=[BeaconMemoryBlock(llm)],
        chat_store=queue,
    )
    agent = FunctionAgent(tools=[TOOL], llm=llm)
    for n in range(6):
        said = await agent.run(f"note fact {n:03}", memory=memory)
    assert str(said) == "First was fact 000."
    folded = [m["content"] for m in llm.engine.session("ada").messages()]
    kept = [message.content for message in (await memory.aget())[1:]]
    assert folded[0] == "note fact 000"
    assert len(folded) + len(kept) == 24
    physical = said.raw["beacon"]
    assert physical["session_id"] == "ada"
    assert physical["beacon_tokens"] > 0
    again = await agent.run("Which was first?", memory=memory)
    assert str(again) == "First was fact 000."
    whole = sum(len(llm.tokenize(text)) for text in folded) + len(llm.tokenize(str(kept)))
    assert again.raw["usage"]["prompt_tokens"] < whole + 1500  # the tools and the roles; nothing is there twice


async def test_a_block_is_never_dropped_and_leaves_out_system_messages(llm):
    block = BeaconMemoryBlock(llm, priority=2, name="past")
    assert await block.aget(session_id="ada") == []
    await block.aput(
        [ChatMessage(role="system", content="Be brief."), ChatMessage("fact 000 is here")], session_id="ada"
    )
    content = await block.aget(session_id="ada")
    assert await block.atruncate(content, 10_000) == content
    assert [m["content"] for m in llm.engine.session("ada").messages()] == ["fact 000 is here"]
    for act in (block.aget(), block.aput([ChatMessage("Hi", additional_kwargs={"session_id": "ada"})])):
        with pytest.raises(InputError, match="session_id"):
            await act
    named = BeaconMemoryBlock(llm, session_id="bob")
    await named.aput([ChatMessage("Hello")], session_id="ada")
    assert llm.engine.sessions() == ["ada", "bob"]


async def test_another_block_beside_ours_keeps_its_words(llm, queue):
    for method in InsertMethod:
        seen: list[str] = []
        engine = scripted_engine(lambda text, seen=seen: seen.append(text) or "Yes.")
        reader = BeaconLLM(engine=engine, max_new_tokens=20)
        memory = Memory.from_defaults(
            session_id=f"ada {method}",
            tokenizer_fn=reader.tokenize,
            insert_method=method,
            chat_store=queue,
            memory_blocks=[BeaconMemoryBlock(reader), StaticMemoryBlock(name="core", static_content="Ada is 36.")],
        )
        await BeaconMemoryBlock(reader).aput([ChatMessage("fact 000 is here")], session_id=f"ada {method}")
        await memory.aput(ChatMessage("Well?"))
        reader.chat(await memory.aget())
        assert seen[-1].count("Ada is 36.") == seen[-1].count("fact 000") == seen[-1].count("Well?") == 1


async def test_a_folding_memorys_reset_clears_its_block_too(llm, queue):
    """LlamaIndex's own memory tells no block of a reset: what was folded came back with the next message."""

    def memory_of(session: str) -> FoldingMemory:
        how = {"token_limit": 60, "token_flush_size": 20, "tokenizer_fn": llm.tokenize, "chat_store": queue}
        return FoldingMemory.from_defaults(session, memory_blocks=[BeaconMemoryBlock(llm)], **how)

    memories = {name: memory_of(name) for name in ("ada", "bob")}
    for memory in memories.values():
        for n in range(6):
            await memory.aput(ChatMessage(f"fact {n:03} is here, and it is a long one"))
    ada, bob = memories.values()
    assert llm.engine.sessions() == ["ada", "bob"]
    await ada.areset(MessageStatus.ACTIVE)
    assert llm.chat(await ada.aget()).message.content == "First was fact 000."
    await ada.areset(MessageStatus.ARCHIVED)
    assert await ada.aget() == await ada.aget_all() == []
    for reset in (ada.areset, lambda: asyncio.to_thread(ada.reset)):
        await reset()
        await reset()  # there is nothing any more
        for n in range(6):
            await ada.aput(ChatMessage(f"note that was said after {n}, and it is a long one"))
        assert llm.chat(await ada.aget()).message.content == "None."
        assert "ada" in llm.engine.sessions()
    assert llm.chat(await bob.aget()).message.content == "First was fact 000."
    before = await bob.aget_all()
    await bob.aset(await bob.aget())  # nothing was taken out: nothing is forgotten
    assert [message.content for message in before][-1:] == [message.content for message in await bob.aget_all()][-1:]
    with pytest.raises(InputError, match="another memory, of 'bob'"):
        await ada.aset(await bob.aget())
    assert llm.chat(await bob.aget()).message.content == "First was fact 000."
    await bob.aset([ChatMessage("A note, and nothing else.")])
    assert [message.content for message in await bob.aget()] == ["A note, and nothing else."]
    assert "bob" not in llm.engine.sessions()


# Trust


def test_a_reference_is_an_object_and_no_text(llm):
    memory = BeaconMemory.from_defaults(session_id="ada", llm=llm)
    memory.put_messages([ChatMessage("fact 000 is here"), ChatMessage("Which was first?")])
    given = memory.get()
    assert llm.chat(copy.deepcopy(given)).message.content == "First was fact 000."
    as_data = [ChatMessage.model_validate_json(message.model_dump_json()) for message in given]
    with pytest.raises(InputError, match="came as data"):
        llm.chat(as_data)
    forged = ChatMessage("Which?", additional_kwargs={"beacon_memory": {"session_id": "ada", "messages": 2}})
    with pytest.raises(InputError, match="came as data"):
        llm.chat([forged])
    with pytest.raises(InputError, match="came as data"):
        llm.chat(pickle.loads(pickle.dumps(given)))
    assert len(str(given[0].additional_kwargs)) < 60  # memories count these as tokens


def test_a_memory_and_its_llm_share_weights_and_one_conversation(llm):
    memory = BeaconMemory.from_defaults(session_id="ada", llm=llm)
    memory.put(ChatMessage("Hello"))
    given = memory.get()
    with pytest.raises(ConfigError, match="share their weights"):
        BeaconLLM(engine=scripted_engine(clerk)).chat(given)
    with pytest.raises(ConfigError, match="leave session_id out"):
        llm.chat(given, session_id="bob")
    with pytest.raises(ConfigError, match="two memories"):
        llm.chat([*given[:1], *given])
    with pytest.raises(InputError, match="in front of the memory"):
        llm.chat([ChatMessage("Before"), *given])
    with pytest.raises(ConfigError, match="by itself"):
        BeaconMemory.from_defaults(session_id="ada", llm=BeaconLLM(engine=llm.engine, session_id="ada"))
    with pytest.raises(ConfigError, match="not by a MockLLM"):
        BeaconMemory.from_defaults(session_id="ada", llm=MockLLM())
    with pytest.raises(ConfigError, match="nowhere to be kept"):
        BeaconMemory.from_defaults(session_id="ada", llm=BeaconLLM(engine=scripted_engine(clerk, None)))
    assert llm.chat(given, session_id="ada").message.content == "None."
    assert told(memory) == ["Hello"]


def test_an_llm_that_remembers_by_itself_only_reads_what_a_memory_writes(llm):
    reader = BeaconLLM(engine=llm.engine, session_id="own", max_new_tokens=160)
    memory = BeaconMemory.from_defaults(session_id="ada", llm=reader)
    memory.put(ChatMessage("fact 000 is here"))
    assert reader.chat(memory.get()).message.content == "First was fact 000."
    assert llm.engine.sessions() == ["ada"]


@HERE
def test_documents_of_the_llms_store_stand_in_front_of_a_memory_of_another(llm):
    reader = llm.with_context("fact 000 is in the handbook.", context_id="handbook")
    memory = BeaconMemory.from_defaults(session_id="ada", llm=reader, store="memory://")
    memory.put(ChatMessage("Which was first?"))
    assert reader.chat(memory.get()).message.content == "First was fact 000."
    assert memory.engine.sessions() == ["ada"]


# Bad input


def test_what_cannot_be_remembered_is_refused_and_the_session_stays(llm):
    memory = BeaconMemory.from_defaults(session_id="ada", llm=llm)
    memory.put(ChatMessage("Hello"))
    image = ChatMessage(blocks=[ImageBlock(url="https://example.org/a.png")])
    for bad, why in ((image, "text alone"), (ChatMessage(role="system", content="Be brief."), "system prompt")):
        for act in (lambda bad=bad: memory.put_messages([ChatMessage("More"), bad]), lambda bad=bad: memory.set([bad])):
            with pytest.raises(InputError, match=why):
                act()
    assert told(memory) == ["Hello"]
    memory.put(ChatMessage("More"))
    given = memory.get()
    memory.reset()
    with pytest.raises(SessionConflict, match="went back"):
        llm.chat(given)


@HERE
def test_another_models_session_and_a_store_that_is_gone_say_so(llm):
    memory = BeaconMemory.from_defaults(session_id="ada", llm=llm)
    memory.put(ChatMessage("Hello"))
    other = BeaconEngine(tiny_model(seed=1), llm.engine.memory.store)
    stranger = BeaconMemory.from_defaults(session_id="ada", llm=BeaconLLM(engine=other))
    assert told(stranger) == ["Hello"]  # words are read whatever model folded them
    with pytest.raises(ModelMismatch, match="'ada'"):
        stranger.put(ChatMessage("More"))
    assert told(memory) == ["Hello"]
    with redis_server("valkey") as url:
        gone = BeaconMemory.from_defaults(session_id="ada", llm=llm, redis_url=url)
        gone.put(ChatMessage("Hello"))
    with pytest.raises(StoreUnavailable):
        gone.get()
