"""Looking again in LlamaIndex: passages that were read a second time are source nodes, ranked, with scores."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.base.response.schema import Response
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.postprocessor import LongContextReorder
from llama_index.core.schema import Document, NodeWithScore, QueryBundle
from llama_index.indices.managed.beacon import BeaconIndex
from llama_index.llms.beacon import BeaconLLM
from llama_index.memory.beacon import BeaconMemory
from remembering import HERE

from beacon_memory import BeaconConfig
from beacon_memory.errors import ConfigError
from beacon_memory.models.finder import Finder
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import scripted_engine, tiny_checkpoint

CONFIG = BeaconConfig(window=64, keep_last=64, anchors="last")
FINDER = Finder(((1, 0), (0, 1)), (2.0, 1.0), 0.0)  # finds something, whatever is asked
TEXTS = {
    "lease": "The lease ends in May. The rent is due on the first. " * 6,
    "house": "The door is green. The cellar floods each spring. " * 6,
}
DOCUMENTS = [Document(text=text, id_=name, metadata={"page": name[0]}) for name, text in TEXTS.items()]


@pytest.fixture(scope="module")
def engine() -> BeaconEngine:
    engine = scripted_engine(lambda seen: f"Seen {seen.count('lease ends')} times.", config=CONFIG)
    engine.memory.model.finder = FINDER
    return engine


@pytest.fixture
def llm(engine, by: Any) -> BeaconLLM:
    return BeaconLLM(**by(engine.with_store("memory://")), recall_tokens=128, max_new_tokens=24)


@pytest.fixture
def index(llm) -> BeaconIndex:
    return BeaconIndex.from_documents(DOCUMENTS, llm=llm, index_id="home")


def check(nodes: list[NodeWithScore], *, tokens: int = 128) -> None:
    """The nodes are passages of the documents, the best first."""
    assert nodes
    scores = [found.score for found in nodes]
    assert None not in scores
    assert scores == sorted(scores, reverse=True)
    for found in nodes:
        document = found.node.ref_doc_id
        assert found.text in TEXTS[document]
        assert found.node.metadata == {"page": document[0]}
        start, end = found.node.start_char_idx, found.node.end_char_idx
        assert TEXTS[document][start:end] == found.text
    places = [found.node.node_id.rpartition(":")[2].split("-") for found in nodes]
    assert sum(int(end) - int(start) for start, end in places) <= tokens


async def test_a_query_engines_source_nodes_are_what_was_read_again(index):
    engine, streaming = index.as_query_engine(), index.as_query_engine(streaming=True)
    question = "When does the lease end?"
    stream, astream = streaming.query(question), await streaming.aquery(question)
    assert [found.score for found in stream.source_nodes] == [None, None]  # before it is read: all that there is
    assert str(stream) == str(await astream.get_response())
    answered = [engine.query(question), await engine.aquery(question), stream, astream]
    for response in answered:
        check(response.source_nodes)
        told = response.metadata["beacon"]["sources"]
        assert [found.text for found in response.source_nodes] == [source["text"] for source in told]
        assert {found.node.node_id for found in response.source_nodes} <= set(response.metadata)
    assert len({tuple(found.node.node_id for found in response.source_nodes) for response in answered}) == 1
    seen = int(str(answered[0]).split()[1])
    again = sum(found.text.count("lease ends") for found in answered[0].source_nodes)
    assert seen == TEXTS["lease"].count("lease ends") + again  # what was read again was seen twice


def test_how_much_is_read_again_is_the_engines_to_say_and_a_cutoff_is_honoured(index):
    off = index.as_query_engine(recall_tokens=0).query("When?")
    assert [(found.node.node_id, found.score) for found in off.source_nodes] == [("lease", None), ("house", None)]
    check(index.as_query_engine(recall_tokens=64).query("When?").source_nodes, tokens=64)
    every = index.as_query_engine().query("When?").source_nodes
    assert len(every) > 1
    best = index.as_query_engine(similarity_cutoff=every[0].score).query("When?")
    assert [found.node.node_id for found in best.source_nodes] == [every[0].node.node_id]
    assert index.as_query_engine(similarity_cutoff=1e9).query("When?").source_nodes == []
    for wrong in (-1, True, "64"):
        with pytest.raises(ConfigError, match="recall_tokens"):
            index.as_query_engine(recall_tokens=wrong)


def test_a_passage_of_a_split_document_has_its_own_nodes_metadata(llm):
    pages = SentenceSplitter(chunk_size=48, chunk_overlap=0)(DOCUMENTS)
    for number, page in enumerate(pages):
        page.metadata["number"] = number
    index = BeaconIndex(pages, llm=llm, index_id="pages")
    nodes = index.as_query_engine().query("When does the lease end?").source_nodes
    assert nodes
    for found in nodes:
        whole = [page for page in pages if page.ref_doc_id == found.node.ref_doc_id]
        within = [page for page in whole if found.text in page.get_content()]
        assert found.node.metadata in [page.metadata for page in within or whole]


def test_a_passage_of_a_given_node_is_that_nodes_whatever_others_say(llm):
    """It was told by its words alone: equal ones were all of the first node, and all had one id."""
    said = {name: f"The rent is due. House {name} is quiet. The rent is due." for name in ("one", "two", "three")}
    nodes = [Document(text=text, id_=name, metadata={"house": name}) for name, text in said.items()]
    index = BeaconIndex.from_documents([*nodes, Document(text=".", id_="dot")], llm=llm, index_id="houses")
    engine = index.as_query_engine(node_postprocessors=[LongContextReorder()])
    response = engine.query("When is the rent due?")
    found = response.source_nodes
    assert len(found) > 2
    assert len({one.node.node_id for one in found}) == len(found)
    for one in found:
        name = one.node.ref_doc_id
        assert one.node.node_id.startswith(f"{name}:")
        assert one.node.metadata == ({} if name == "dot" else {"house": name})
        whole = f"house: {name}\n\n{said[name]}" if name in said else "."
        assert one.text in whole
    texts = [source["document"] for source in response.metadata["beacon"]["sources"]]
    assert set(texts) <= {"text 1", "text 2", "text 3", "text 4"}


@pytest.mark.parametrize("chosen", [None, [LongContextReorder()]])
def test_a_passage_has_the_metadata_of_the_page_that_it_stands_on(llm, chosen):
    """One that began with a page's metadata, or ended on the next page, had the first page's; behind a postprocessor
    the first page alone was read.
    """
    said = ["Anna paints the tower. ", "Boris mends a bridge. ", "Clara plants the garden. "]
    pages = [Document(text=text * 4, id_="pdf", metadata={"page": text[:4]}) for text in said]
    index = BeaconIndex.from_documents(pages, llm=llm, index_id="pages")
    assert [node.node_id for node in index.nodes()] == ["pdf", "pdf#2", "pdf#3"]
    assert [node.ref_doc_id for node in index.nodes()] == ["pdf"] * 3
    engine = index.as_query_engine(node_postprocessors=chosen, recall_tokens=1000)
    assert len(engine.retrieve(QueryBundle("Who?"))) == 3
    found = engine.query("Who mends a bridge?").source_nodes
    for passage in found:
        words = passage.text.split()
        most = max(said, key=lambda text: sum(len(word) for word in words if word in text.split()))
        whole = [text[:4] for text in said if passage.text in text * 4]
        assert passage.metadata["page"] in (whole or [most[:4]])
    assert len({passage.metadata["page"] for passage in found}) > 1
    index.delete_nodes(["pdf#2"])
    assert [node.metadata["page"] for node in index.nodes()] == ["Anna", "Clar"]


@HERE
async def test_a_chat_engines_source_nodes_are_of_documents_and_talk(index, llm):
    for chat in (index.as_chat_engine(session_id="ada"), index.as_chat_engine(recall_tokens=128)):
        chat.chat("I live in Lyon, near the river, in a small house. " * 6)
        response = chat.chat("Where do I live?")
        stream = chat.stream_chat("And when does the lease end?")
        list(stream.response_gen)
        astream = await chat.astream_chat("And when does the lease end?")
        [piece async for piece in astream.async_response_gen()]
        for nodes in (response.source_nodes, stream.source_nodes, astream.source_nodes):
            assert nodes
            assert all(found.score is not None for found in nodes)
            for found in nodes:
                if found.node.ref_doc_id:
                    page = f"page: {found.node.ref_doc_id[0]}\n\n"  # what a document says of itself may be found too
                    assert found.text.removeprefix(page) in TEXTS[found.node.ref_doc_id]
                else:
                    assert found.node.metadata["role"] in ("user", "assistant")
        assert response.metadata["beacon"]["sources"]
    quiet = index.as_chat_engine(recall_tokens=0).chat("Where do I live?")
    assert [found.score for found in quiet.source_nodes] == [None, None]
    other = llm.model_copy(update={"store": "memory://"})
    memory = BeaconMemory.from_defaults(session_id="eve", llm=other)
    apart = index.as_chat_engine(memory=memory).chat("When does the lease end?")
    check(apart.source_nodes)  # documents of one store behind a talk of another


async def test_an_llm_tells_its_sources_in_raw(llm):
    llm.opened.session("ada").add_text(TEXTS["lease"], name="lease.txt")
    asked = [ChatMessage("When does the lease end?")]
    told: list[Any] = [llm.chat(asked, session_id="ada"), await llm.achat(asked, session_id="ada")]
    told.append(list(llm.stream_chat(asked, session_id="ada"))[-1])
    told.append(llm.complete("When does the lease end?", session_id="ada"))
    for response in told:
        assert response.raw["beacon"]["sources"][0]["session"] == "ada"
    assert llm.chat(asked, session_id="ada", recall_tokens=0).raw["beacon"]["sources"] == []
    reading = llm.with_context(TEXTS["lease"], context_id="lease")
    formatted = reading.complete("The lease ends", formatted=True)
    assert formatted.raw["beacon"]["sources"][0]["session"] == "context:lease"
    assert "beacon" not in reading.complete("The lease ends", formatted=True, recall_tokens=0).raw
    memory = BeaconMemory.from_defaults(session_id="bob", llm=llm)
    memory.put(ChatMessage("I live in Lyon, near the river, in a small house. " * 6))
    memory.put(ChatMessage("Where do I live?"))
    assert llm.chat(memory.get()).raw["beacon"]["sources"][0]["role"] == "user"
    with pytest.raises(ConfigError, match="recall_tokens"):
        BeaconLLM(engine=llm.engine, recall_tokens=-1)


def test_below_the_threshold_an_answer_has_the_nodes_that_it_had(engine):
    strict = scripted_engine(lambda seen: "Yes.", config=CONFIG)
    strict.memory.model.finder = Finder(FINDER.heads, FINDER.weights, 1e9)
    llm = BeaconLLM(engine=strict, recall_tokens=128)
    index = BeaconIndex.from_documents(DOCUMENTS, llm=llm, index_id="home")
    response = index.as_query_engine().query("When does the lease end?")
    assert isinstance(response, Response)
    assert [(found.node.node_id, found.score) for found in response.source_nodes] == [("lease", None), ("house", None)]


def test_words_find_for_a_model_without_an_adapter(tmp_path):
    checkpoint = str(tiny_checkpoint(tmp_path / "model", max_position_embeddings=4096))
    llm = BeaconLLM(model=checkpoint, config=CONFIG, adapter=None, finder="words", max_new_tokens=2)
    index = BeaconIndex.from_documents(DOCUMENTS, llm=llm, index_id="home")
    found = index.as_query_engine().query("Which floods come to the cellar?").source_nodes
    assert "cellar floods" in found[0].text
    assert {one.node.ref_doc_id for one in found} == {"house"}
    with pytest.raises(ConfigError, match="finder is one of"):
        BeaconLLM(model=checkpoint, finder="bm25")
