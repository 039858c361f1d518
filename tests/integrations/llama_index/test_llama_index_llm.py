"""BeaconLLM as LlamaIndex's users use it: sessions, documents, engines of theirs, many at once, bad input."""

from __future__ import annotations

import asyncio
import copy
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, SummaryIndex
from llama_index.core.base.llms.types import (
    ChatMessage,
    CitableBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.schema import TextNode
from llama_index.core.tools import FunctionTool, ToolMetadata
from llama_index.llms.beacon import BeaconLLM
from pydantic import ValidationError
from remembering import HERE, remembers, told

from beacon_memory import BeaconConfig
from beacon_memory.errors import ConfigError, InputError, ModelMismatch, PromptTooLong, StoreUnavailable
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import RedisServer, scripted_engine, sensible, tiny_checkpoint, tiny_model


@pytest.fixture
def llm(shared: BeaconEngine, by: Any) -> BeaconLLM:
    """A model with no session in its store yet."""
    return BeaconLLM(**by(shared.with_store("memory://")), max_new_tokens=60)


def say(llm: BeaconLLM, *messages: ChatMessage | str, **how) -> str:
    talk = [m if isinstance(m, ChatMessage) else ChatMessage(m) for m in messages]
    return llm.chat(talk, **how).message.content


async def test_a_session_is_named_by_the_constructor_or_the_call(llm):
    named = llm.model_copy(update={"session_id": "built"})
    say(named, "Rex1 is here.")
    assert say(named, "Who?") == "I know Rex1"
    assert (await named.achat([ChatMessage("Who?")], session_id="other")).message.content == "I know nobody"
    assert named.complete("Who?", session_id=None).text == "I know nobody"
    assert sorted(llm.opened.sessions()) == ["built", "other"]
    assert len(told(llm, "built")) == 4


def test_a_whole_list_is_read_once_and_an_edited_one_forks(llm):
    talk = [ChatMessage("Rex1 is here.")]
    for words in ("Rex2 too.", "Who?"):
        talk += [llm.chat(talk, session_id="ada").message, ChatMessage(words)]
    assert say(llm, *talk, session_id="ada") == "I know Rex1, Rex2"
    assert told(llm, "ada") == [m.content for m in talk] + ["I know Rex1, Rex2"]
    assert say(llm, ChatMessage("Rex7 is here."), *talk[1:2], "Who?", session_id="ada") == "I know Rex1, Rex7"
    assert say(llm, "Rex7 is here.", session_id="ada", history="append").endswith("Rex7")
    assert len(told(llm, "ada")) == 6


def test_a_formatted_prompt_is_read_as_it_is(llm, shared):
    prompt = "<|im_start|>user\nRex1 is here.<|im_end|>\n<|im_start|>assistant\n"
    said = llm.complete(prompt, formatted=True)
    assert said.text == "I know Rex1"
    ids = shared.memory.model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert said.raw["usage"]["prompt_tokens"] in (len(ids), len(ids) + 1)
    assert "".join(r.delta for r in llm.stream_complete(prompt, formatted=True)) == said.text
    assert llm.complete("Rex2. " * 4000, formatted=True).text == "I know Rex2"  # more than fits is folded
    base = BeaconLLM(engine=llm.engine, is_chat_model=False, max_new_tokens=60)
    assert base.complete("Rex3").text == "I know Rex3"
    assert not base.metadata.is_function_calling_model
    with pytest.raises(ConfigError, match="cannot remember it"):
        llm.complete(prompt, formatted=True, session_id="ada")


def test_documents_stand_in_front_of_every_prompt(llm, tmp_path):
    (tmp_path / "more.txt").write_text("Rex9 is away.")
    handbook = [Document(text="Rex7 guards the door. " * 20), TextNode(text="Rex8 sleeps."), tmp_path / "more.txt"]
    reader = llm.with_context(handbook, context_id="handbook")
    said = reader.complete("Who?")
    assert said.text == "I know Rex7, Rex8, Rex9"
    assert said.raw["usage"]["prompt_tokens_details"]["cached_tokens"] > 100
    assert llm.complete("Who?", context_id="handbook", session_id="ada").text == said.text
    assert "guards" not in str(told(llm, "ada"))
    assert llm.with_context("Rex1.").complete("<|im_start|>", formatted=True).text == "I know Rex1"
    with pytest.raises(InputError, match="no context"):
        llm.complete("Who?", context_id="another")


def test_calls_are_remembered_in_the_words_that_come_back():
    llm = BeaconLLM(engine=scripted_engine(sensible), max_new_tokens=200, session_id="ada")

    def add(a: int) -> int:
        """Adds."""
        return a + 4

    tool = FunctionTool.from_defaults(add)
    talk = [ChatMessage(role="system", content="You add."), ChatMessage("add 3")]
    call = llm.chat_with_tools([tool], chat_history=talk).message
    result = ChatMessage(role="tool", content="7", additional_kwargs={"tool_call_id": "1"})
    llm.chat_with_tools([tool], chat_history=[*talk, call, result])
    assert [m["role"] for m in llm.opened.session("ada").messages()] == ["user", "assistant", "tool", "assistant"]
    assert "You add." not in str(told(llm, "ada"))
    assert "".join(r.delta for r in llm.stream_chat_with_tools([tool], "add 3", session_id=None)) == ""
    pieces = [r.delta for r in llm.stream_chat_with_tools([tool], "add 3", tool_choice="none", session_id=None)]
    assert len(pieces) > 3


def test_blocks_that_are_text_are_read_and_thoughts_left_out(llm):
    cited = CitableBlock(title="t", source="s", content=[TextBlock(text="Rex1 is here.")])
    thought = ChatMessage(role="assistant", blocks=[ThinkingBlock(content="Rex2?"), TextBlock(text="Hm.")])
    assert say(llm, ChatMessage(blocks=[cited, TextBlock(text="Rex3.")]), thought, "Who?") == "I know Rex1, Rex3"


def test_a_long_document_is_answered_from_in_one_call_by_llama_indexs_own_index():
    """The window that is told of is the one that memory makes: nothing is cut into several calls."""
    seen: list[str] = []
    engine = scripted_engine(lambda text: seen.append(text) or remembers(text), max_position_embeddings=4096)
    llm = BeaconLLM(engine=engine, max_new_tokens=60)
    assert llm.metadata.context_window > 10_000
    index = SummaryIndex.from_documents([Document(text=f"Rex1 is here. {'The sea is grey today. ' * 300}And Rex2.")])
    assert str(index.as_query_engine(llm=llm).query("Who?")) == "I know Rex1, Rex2"
    assert len(seen) == 1
    assert len(llm.tokenize(seen[0])) > 4096


def test_the_window_is_known_without_loading_or_as_it_is_said(tmp_path):
    assert BeaconLLM(model="smollm2").metadata.context_window == 4 * (8192 - 2048 - 512 - 128)
    assert BeaconLLM(model="smollm2", beacon_ratio=8, max_tokens=50).metadata.num_output == 50
    assert BeaconLLM(model="not/there").metadata.context_window == 3900  # LlamaIndex's own default
    assert BeaconLLM(model="not/there", context_window=9000).metadata.context_window == 9000


def test_copies_share_the_weights_and_names_make_it_anew(tmp_path):
    llm = BeaconLLM(model=str(tiny_checkpoint(tmp_path)), max_tokens=4, store="sqlite:///" + str(tmp_path / "m.db"))
    llm.complete("Hi")
    loaded = llm.opened.memory.model
    for other in (copy.copy(llm), copy.deepcopy(llm), llm.model_copy(), BeaconLLM(model_name=llm.model_name)):
        assert other.opened.memory.model is loaded
    again = pickle.loads(pickle.dumps(llm))
    assert (again.model_name, again.max_new_tokens) == (llm.model_name, 4)
    assert again.opened.memory.model.fingerprint == llm.opened.memory.model.fingerprint
    assert BeaconLLM(engine=llm.engine, model=llm.model_name).engine is llm.engine


def test_settings_are_those_that_users_of_local_models_know(shared, monkeypatch):
    llm = BeaconLLM(engine=shared, generate_kwargs={"max_new_tokens": 4, "temperature": 0.5, "seed": 1})
    assert llm.complete("Hi").raw["usage"]["completion_tokens"] == 4
    assert llm.complete("Hi", max_tokens=2).raw["usage"]["completion_tokens"] == 2
    monkeypatch.setenv("BEACON_MODEL", "not/there")
    assert BeaconLLM().model_name == "not/there"
    with pytest.raises(ConfigError, match="unknown option do_sample"):
        llm.complete("Hi", do_sample=True)
    with pytest.raises(ConfigError, match="temperature"):
        llm.complete("Hi", temperature=-1)
    with pytest.raises(ConfigError, match="chat template"):
        BeaconLLM(engine=shared, messages_to_prompt=str)
    with pytest.raises(ConfigError, match="one place"):
        BeaconLLM(store="memory://", redis_url="redis://localhost")
    with pytest.raises(ValidationError, match="tokenizer_name"):
        BeaconLLM(engine=shared, tokenizer_name="gpt2")


def test_a_password_stays_here():
    llm = BeaconLLM(redis_url="redis://:secret@localhost:6379/0")
    for shown in (repr(llm), str(llm.to_dict()), llm.to_json(), str(llm.to_payload()), str(llm.model_dump())):
        assert "secret" not in shown
    assert "redis" not in str(BeaconLLM(store="redis://:secret@localhost:6379/0").to_dict())


@HERE
async def test_twenty_conversations_at_once_and_the_loop_goes_on(llm):
    gaps, done = [], asyncio.Event()

    async def tick() -> None:
        last = time.perf_counter()
        while not done.is_set():
            await asyncio.sleep(0.005)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    async def talk(n: int) -> str:
        await llm.achat([ChatMessage(f"Rex{n:02} is here. " * 40)], session_id=f"c{n}")
        *_, last = [r async for r in await llm.astream_chat([ChatMessage("Who?")], session_id=f"c{n}")]
        return last.message.content

    llm.opened.sessions()  # loaded before the clock runs
    ticking = asyncio.create_task(tick())
    said = await asyncio.gather(*(talk(n) for n in range(20)))
    done.set()
    await ticking
    assert said == [f"I know Rex{n:02}" for n in range(20)]
    # A call that blocked would hold the loop all the time; a busy machine may hold it now and then.
    assert sum(gap for gap in gaps if gap > 0.05) < sum(gaps) / 2


async def test_a_stream_that_is_left_early_stops_the_model_and_leaves_the_session(by):
    engine = scripted_engine(lambda seen: "word " * 500)
    llm = BeaconLLM(**by(engine), max_new_tokens=2000, session_id="ada")
    engine.session("ada").add("Hello")
    begun = time.perf_counter()
    stream = llm.stream_chat([ChatMessage("More")])
    next(stream)
    stream.close()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(llm.achat([ChatMessage("More")]), 0.3)
    left = await llm.astream_complete("More")
    await anext(left)
    await left.aclose()
    await engine.run(lambda: None)
    assert time.perf_counter() - begun < 8
    assert told(llm, "ada") == ["Hello"]


# Bad input


def test_what_cannot_be_read_is_refused_and_the_session_stays(llm):
    say(llm, "Rex1 is here.", session_id="ada")
    before = llm.opened.session("ada").info()
    image = ChatMessage(blocks=[TextBlock(text="Look:"), ImageBlock(url="https://example.org/a.png")])
    broken = ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_name="add", tool_kwargs="{no")])
    deep = ChatMessage(
        blocks=[CitableBlock(title="t", source="s", content=[DocumentBlock(data=b"%PDF", document_mimetype="x/y")])]
    )

    class Odd(ToolMetadata):
        def get_parameters_dict(self) -> dict:
            return {"type": "banana"}

    odd = FunctionTool(fn=lambda: 1, metadata=Odd(name="odd", description="Odd."))
    how = {"session_id": "ada"}
    for act, error, why in (
        (lambda: llm.chat([image], **how), InputError, "'image' cannot be read: this model reads text alone"),
        (lambda: llm.chat([deep], **how), InputError, "'document' cannot be read"),
        (lambda: next(llm.stream_chat([broken], **how)), InputError, "'add' has arguments that are no JSON"),
        (lambda: llm.chat_with_tools([odd], "Hi", **how), InputError, "'odd'"),
        (lambda: llm.chat([ChatMessage("Hi")], schema={"type": "banana"}, **how), InputError, "schema"),
        (lambda: llm.chat([ChatMessage("")], **how), InputError, "empty user message"),
        (lambda: llm.chat([], session_id="new"), InputError, "no message to answer"),
        (
            lambda: llm.chat([ChatMessage(role="system", content="long " * 9000), ChatMessage("Hi")], **how),
            PromptTooLong,
            "positions",
        ),
    ):
        with pytest.raises(error, match=why):
            act()
    assert llm.opened.session("ada").info() == before


async def test_an_error_comes_out_of_every_call(llm):
    image = [ChatMessage(blocks=[ImageBlock(url="https://example.org/a.png")])]
    with pytest.raises(InputError):
        await llm.achat(image)
    with pytest.raises(InputError):
        await llm.astream_chat(image)  # now, and not at the first response
    with pytest.raises(InputError):
        llm.stream_chat(image)
    with pytest.raises(ConfigError):
        await llm.acomplete("Hi", temperature=-1)


def test_a_session_needs_a_store(shared):
    llm = BeaconLLM(engine=scripted_engine(remembers, None), max_new_tokens=60)
    with pytest.raises(ConfigError, match="nowhere to be kept"):
        say(llm, "Hi", session_id="ada")
    assert say(llm, "Hi") == "I know nobody"
    gone = BeaconLLM(engine=shared.with_store("redis://localhost:1/0"))
    with pytest.raises(StoreUnavailable):
        say(gone, "Hi", session_id="ada")


@HERE
def test_two_models_cannot_share_a_session(llm):
    say(llm, "Hi", session_id="ada")
    other = BeaconEngine(tiny_model(seed=1, config=BeaconConfig(window=64, keep_last=16)), llm.opened.memory.store)
    with pytest.raises(ModelMismatch, match="session 'ada'"):
        say(BeaconLLM(engine=other), "Hi", session_id="ada")
    assert told(llm, "ada") == ["Hi", "I know nobody"]


@HERE  # a server is at the end of a short answer before its first piece is read
def test_redis_gone_in_the_middle_of_a_stream_leaves_the_session_where_it_was(shared, by):
    with RedisServer("valkey", appendonly="yes", appendfsync="always") as server:
        llm = BeaconLLM(**by(shared.with_store(server.url)), max_new_tokens=60)
        say(llm, "Rex1 is here.", session_id="ada")
        stream = llm.stream_chat([ChatMessage("Who?")], session_id="ada")
        next(stream)
        server.kill()
        with pytest.raises(StoreUnavailable):
            list(stream)
        server.start()
        assert told(llm, "ada") == ["Rex1 is here.", "I know Rex1"]
        assert say(llm, "Who?", session_id="ada") == "I know Rex1"


def test_the_namespace_is_left_to_llama_index():
    """An `__init__.py` above `beacon` would hide LlamaIndex's own packages, or be hidden by them."""
    root = Path(__file__).parents[3] / "integrations" / "llama_index"
    assert {path.parent.name for path in root.rglob("__init__.py")} == {"beacon"}


OFFLINE = """
import sys

def refuse(event, args):
    if event == "socket.getaddrinfo" or (event == "socket.connect" and isinstance(args[1], tuple)):
        raise OSError(f"no network here: {args}")

sys.addaudithook(refuse)
from llama_index.core import Document, SummaryIndex
from llama_index.core.memory import Memory
from llama_index.core.llms import ChatMessage
from llama_index.llms.beacon import BeaconLLM
from llama_index.memory.beacon import BeaconMemory, BeaconMemoryBlock, BeaconRedisChatStore
from beacon_memory.testing import scripted_engine

llm = BeaconLLM(engine=scripted_engine(lambda seen: "Yes."))
memory = BeaconMemory.from_defaults(session_id="ada", llm=llm)
memory.put(ChatMessage("Hi"))
print(llm.chat(memory.get()).message.content)
index = SummaryIndex.from_documents([Document(text="The sea is grey today. " * 500)])
print(index.as_query_engine(llm=llm).query("Well?"))
print(Memory.from_defaults(memory_blocks=[BeaconMemoryBlock(llm)]).token_limit)
"""


def in_a_process_of_its_own(code: str, where: Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[3]
    path = [str(root), *(str(root / "integrations" / name) for name in ("langchain", "llama_index"))]
    line = [sys.executable, "-c", f"import sys; sys.path[:0] = {path}\n{code}"]
    return subprocess.run(line, capture_output=True, text=True, cwd=where)


def test_nothing_is_asked_of_the_network(tmp_path):
    """LlamaIndex counts tokens by tiktoken and splits by nltk, whose data must be those that come with it."""
    done = in_a_process_of_its_own(OFFLINE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["Yes.", "Yes.", "30000"]


@pytest.mark.parametrize("name", ["llms", "memory", "indices.managed"])
def test_without_llama_index_the_extra_is_named(tmp_path, name):
    code = f"sys.modules['llama_index.core'] = None\nimport llama_index.{name}.beacon"
    done = in_a_process_of_its_own(code, tmp_path)
    assert "MissingExtra: LlamaIndex is not installed: pip install 'beacon-memory[llama-index]'" in done.stderr
