"""Documents as LlamaIndex's readers give them, and the calls that change an index."""

from __future__ import annotations

import contextlib
import datetime
import enum
import json
import re
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core import SimpleDirectoryReader
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.postprocessor import LongContextReorder
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
    TransformComponent,
)
from llama_index.indices.managed.beacon import BeaconIndex, BeaconSynthesizer
from llama_index.llms.beacon import BeaconLLM

from beacon_memory.errors import BeaconError, ConfigError, InputError, SessionExists
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import scripted_engine

GOOD = "The lease ends in May1."


def calendar(seen: str) -> str:
    """Says what it has seen, as often as it was seen."""
    return "I read " + " ".join(sorted(re.findall(r"May\d", seen)) or ["nothing"])


@pytest.fixture(scope="module")
def shared() -> BeaconEngine:
    return scripted_engine(calendar)


def asked(index: BeaconIndex) -> str:
    return str(index.as_query_engine().query("When?")).removeprefix("I read ")


def opened_again(index: BeaconIndex) -> BeaconIndex:
    return BeaconIndex(index_id=index.index_id, llm=index.llm)


# What readers give


class Odd(enum.Enum):
    ONE = 1


LEASE = Path("/data/lease.pdf")
AS_READ: dict[str, list[BaseNode]] = {
    "a NUL": [Document(text="The lease\0 ends in May1.")],
    "half a letter": [Document(text="The lease \ud835 ends in May1.", metadata={"file_name": "caf\udce9.pdf"})],
    "a date": [
        Document(text=GOOD, metadata={"modified": datetime.datetime(2026, 11, 26), "day": datetime.date.today()})
    ],
    "a path": [Document(text=GOOD, metadata={"file": LEASE}, id_="/data/caf\udce9.pdf")],
    "any object": [
        Document(text=GOOD, metadata={"a": Odd.ONE, "b": {1: {2, 3}}, "c": uuid.uuid4(), "d": b"\0", "e": object})
    ],
    "no number": [Document(text=GOOD, metadata={"score": float("nan"), "most": float("inf"), "none": None})],
    "a text resource": [Document(text_resource=MediaResource(text=GOOD, path=LEASE, url="https://example.org/lease"))],
    "a picture with words": [ImageDocument(text=GOOD, image="aGVsbG8=")],
    "a picture's node": [ImageNode(text=GOOD, image_url="https://example.org/lease.png")],
    "a node of an index": [IndexNode(text=GOOD, index_id="other", obj=TextNode(text="More."))],
    "a node of an object that cannot be written down": [IndexNode(text=GOOD, index_id="other", obj=lambda: 3)],
    "metadata that the model is not shown": [
        Document(text=GOOD, metadata={"secret": "May9"}, excluded_llm_metadata_keys=["secret"])
    ],
    "relations": [
        TextNode(
            text=GOOD, relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc", metadata={"at": LEASE})}
        )
    ],
    "many sources": [TextNode(text=GOOD, relationships={NodeRelationship.SOURCE: [RelatedNodeInfo(node_id="doc")]})],
}


@pytest.mark.parametrize("kind", AS_READ)
def test_what_a_reader_gives_is_read_and_kept(llm, kind):
    """One date in the metadata, or one NUL on one page, and a whole folder was refused."""
    documents = AS_READ[kind]
    index = BeaconIndex.from_documents(documents, llm=llm, index_id="house")
    assert asked(index) == asked(opened_again(index)) == "May1"
    [node] = opened_again(index).nodes()
    assert set(node.metadata) == set(documents[0].metadata)
    assert json.loads(json.dumps(node.metadata)) == node.metadata
    assert index.refresh_ref_docs(documents) == [False]
    for key in [documents[0].node_id]:
        index.delete_ref_doc(key)
    assert index.nodes() == []


BLANK: dict[str, BaseNode] = {
    "blank": Document(text=" \n\t", id_="bad", metadata={"page_label": "2"}),
    "no text": Document(text=None, id_="bad"),
    "a NUL alone": Document(text="\0", id_="bad"),
    "binary": Document(text="\x89PNG\r\n\x1a\n\0\0\0" * 9, id_="bad"),
    "UTF-16 read as Latin-1": Document(text="The lease ends".encode("utf-16").decode("latin-1"), id_="bad"),
    "a picture": ImageDocument(image="aGVsbG8=", id_="bad"),
    "metadata without an end": Document(text="Fine.", id_="bad", metadata={"loop": (loop := [])}),
    "a broken template": Document(text="Fine.", id_="bad", metadata={"a": 1}, metadata_template="{nothing}"),
}
loop.append(loop)


@pytest.mark.parametrize("kind", BLANK)
def test_a_bad_document_among_good_ones_is_left_out_with_a_warning_or_refused_by_name(llm, kind):
    bad = BLANK[kind]
    documents = [Document(text=GOOD, id_="d1"), bad, Document(text="The door is May2 green.", id_="d2")]
    with pytest.raises(InputError, match="'bad'"):
        BeaconIndex.from_documents(documents, llm=llm, index_id="house", skip_bad=False)
    assert llm.opened.contexts() == []
    with pytest.warns(match="'bad'.*left out"):
        index = BeaconIndex.from_documents(documents, llm=llm, index_id="house")
    assert (asked(index), list(index.ref_doc_info)) == ("May1 May2", ["d1", "d2"])
    with pytest.raises(InputError, match=r"no document to read.*'bad'"):
        index.insert(bad)
    index.insert(Document(text="Once May3.", id_="bad"))
    with pytest.warns(match="'bad'.*left out"):
        assert index.refresh_ref_docs([bad, documents[0]], delete_missing=True) == [False, False]
    assert asked(index) == "May1 May3"  # what could not be read is not missing: its older text stays


def test_what_is_left_out_is_told_by_the_file_and_page_it_is_of(llm):
    bad = Document(text=" ", metadata={"file_path": "/data/lease.pdf", "page_label": "7"})
    with pytest.warns(match=r"document '.*' \(/data/lease.pdf, page 7\) is empty"):
        BeaconIndex.from_documents([Document(text=GOOD), bad], llm=llm, index_id="house")


async def test_chunks_that_cannot_be_read_do_not_stop_an_answer(llm):
    """A blank node, or a NUL in what another index's retriever found, was an error for each question."""
    found = [NodeWithScore(node=TextNode(text=text)) for text in ("It is\0 May1.", " ", "It is \ud835 May2.")]
    synthesizer = BeaconSynthesizer(llm)
    assert str(synthesizer.synthesize("When?", found)) == "I read May1 May2"
    assert str(await synthesizer.asynthesize("When?", found)) == "I read May1 May2"
    with pytest.raises(InputError, match="no document to read"):
        synthesizer.synthesize("When?", found[1:2])
    nodes = [TextNode(text="It is May1.", id_="a"), TextNode(text=" ", id_="b"), TextNode(text="It is May2.", id_="c")]
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc")}
    index = BeaconIndex(
        [node.model_copy(update={"relationships": source}) for node in nodes], llm=llm, index_id="house"
    )
    assert str(index.as_query_engine(node_postprocessors=[LongContextReorder()]).query("When?")) == "I read May1 May2"
    assert len(index.nodes()) == 3


async def test_documents_of_one_id_are_parts_of_one(llm):
    """Two folders have a file of one name, and the pages of a file its id."""
    pages = [Document(text=f"Page{n} says May{n}.", id_="lease.pdf") for n in (1, 2, 3)]
    index = BeaconIndex.from_documents([*pages, pages[1]], llm=llm, index_id="house")
    assert (asked(index), list(index.ref_doc_info)) == ("May1 May2 May3", ["lease.pdf"])
    assert index.refresh_ref_docs(pages) == [False] * 3
    assert await index.arefresh_ref_docs(pages[:2]) == [True, True]
    assert asked(index) == "May1 May2"
    index.insert(Document(text="All in May4.", id_="lease.pdf"))
    assert asked(index) == "May4"


def test_a_script_that_runs_again_finds_its_index_though_its_ids_are_made_up(llm):
    """It was refused, because the same texts had other ids."""

    def run(*texts: str, **how: Any) -> BeaconIndex:
        return BeaconIndex.from_documents([Document(text=text) for text in texts], llm=llm, index_id="house", **how)

    first, again = run("May1.", "May2."), run("May1.", "May2.")
    assert (again.windows_folded, asked(again)) == (0, "May1 May2")
    assert list(again.ref_doc_info) == list(first.ref_doc_info)
    assert asked(run("May1.", "May2.", "May3.")) == "May1 May2 May3"
    with pytest.raises(SessionExists, match="delete_missing"):
        run("May1.", "May4.")
    assert asked(run("May1.", "May4.", delete_missing=True)) == "May1 May4"
    assert len(first.ref_doc_info) == 2


def test_a_folder_is_kept_in_step(llm, tmp_path):
    for n in range(3):
        (tmp_path / f"{n}.txt").write_text(f"It is May{n}.")

    def read() -> list[Document]:
        return SimpleDirectoryReader(tmp_path, filename_as_id=True).load_data()

    index = BeaconIndex.from_documents(read(), llm=llm, index_id="house")
    assert asked(index) == "May0 May1 May2"
    assert index.nodes()[0].metadata["file_name"] == "0.txt"
    (tmp_path / "0.txt").unlink()
    (tmp_path / "1.txt").write_text("Now it is May7.")
    (tmp_path / "9.txt").write_text("New: May9.")
    assert index.refresh_ref_docs(read()) == [True, False, True]
    assert asked(index) == "May0 May2 May7 May9"  # nothing goes unless it is said
    folded = index.windows_folded
    assert index.refresh_ref_docs(read(), delete_missing=True) == [False] * 3
    assert (asked(index), index.windows_folded) == ("May2 May7 May9", folded)
    assert asked(BeaconIndex.from_documents(read()[:1], llm=llm, index_id="house", delete_missing=True)) == "May7"


class Counted(TransformComponent):
    """Counts what it is given."""

    seen: list[str]

    def __call__(self, nodes: Any, **kwargs: Any) -> Any:
        self.seen += [node.node_id for node in nodes]
        return nodes


async def test_documents_that_have_not_changed_are_not_transformed_again(llm):
    counted = Counted(seen=[])
    documents = [Document(text=f"May{n}.", id_=f"d{n}") for n in range(3)]
    index = BeaconIndex.from_documents(documents, llm=llm, index_id="house", transformations=[counted])
    again = BeaconIndex.from_documents(documents, llm=llm, index_id="house", transformations=[counted])
    changed = [documents[0], Document(text="May8.", id_="d1"), documents[2]]
    assert again.refresh_ref_docs(changed) == await index.arefresh_ref_docs(documents) == [False, True, False]
    assert counted.seen == ["d0", "d1", "d2", "d1", "d1"]


# Nodes


SPLIT = SentenceSplitter(chunk_size=12, chunk_overlap=0)
BOOK = Document(text=" ".join(f"It was in May{n} that all began again." for n in range(1, 5)), id_="book")


def test_nodes_of_a_document_are_taken_out_and_put_in(llm):
    nodes = SPLIT([BOOK])
    assert len(nodes) == 4
    index = BeaconIndex(nodes[:2], llm=llm, index_id="house")
    index.insert(Document(text="May9.", id_="note"))
    index.insert_nodes(nodes[2:])
    assert asked(index) == "May1 May2 May3 May4 May9"
    assert index.ref_doc_info["book"].node_ids == [node.node_id for node in nodes]
    version = index.documents.version
    index.insert_nodes(nodes)
    index.insert_nodes(SPLIT([BOOK]))  # the same text under new ids
    assert index.documents.version == version
    index.delete_nodes([nodes[1].node_id])
    assert asked(index) == "May1 May3 May4 May9"
    index.insert_nodes([nodes[1]])
    assert asked(index) == "May1 May2 May3 May4 May9"
    other = nodes[0].model_copy(update={"text": "It was in May7."})
    index.insert_nodes([other])
    assert asked(index) == "May2 May3 May4 May7 May9"
    index.delete_nodes([node.node_id for node in nodes])
    assert (asked(index), list(index.ref_doc_info)) == ("May9", ["note"])
    index.insert_nodes(nodes)
    index.insert_nodes(SPLIT([Document(text="All in May8.", id_="book")]))  # of a new version
    assert asked(index) == "May8 May9"
    assert asked(opened_again(index)) == "May8 May9"


async def test_a_document_that_lost_a_node_is_whole_again_after_a_refresh(llm):
    index = BeaconIndex.from_documents([BOOK], llm=llm, index_id="house", transformations=[SPLIT])
    await index.adelete_nodes(index.ref_doc_info["book"].node_ids[1:])
    assert asked(index) == "May1"
    assert await index.arefresh_ref_docs([BOOK]) == [True]
    assert asked(index) == "May1 May2 May3 May4"
    await index.ainsert_nodes([TextNode(text="May5.", id_="alone")])
    await index.adelete_nodes(["alone"])
    await index.adelete_ref_doc("book", delete_from_docstore=True)
    assert index.nodes() == []


def test_nodes_of_no_known_version_are_more_of_their_document(llm):
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc")}
    index = BeaconIndex([], llm=llm, index_id="house")
    for n in (1, 2, 2):
        index.insert_nodes([TextNode(text=f"May{n}.", relationships=source)])
    assert (asked(index), list(index.ref_doc_info)) == ("May1 May2", ["doc"])


def test_many_threads_that_change_one_index_lose_nothing(llm):
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc")}
    index = BeaconIndex([], llm=llm, index_id="house")

    def change(n: int) -> None:
        BeaconIndex.from_documents([], llm=llm, index_id=f"other{n % 2}")
        here = opened_again(index)
        here.insert_nodes([TextNode(text=f"Part {n}.", id_=f"n{n}", relationships=source)])
        here.insert_nodes([TextNode(text=f"Gone {n}.", id_=f"g{n}", relationships=source)])
        here.delete_nodes([f"g{n}"])
        here.insert(Document(text=f"Whole {n}.", id_=f"d{n}"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(8)))
    there = index.ref_doc_info
    assert sorted(there["doc"].node_ids) == [f"n{n}" for n in range(8)]
    assert set(there) == {"doc", *(f"d{n}" for n in range(8))}


def test_llama_indexs_own_ways_to_call_are_taken(llm):
    index = BeaconIndex.from_documents([Document(text="May1.", id_="d1")], llm=llm, index_id="house")
    index.update_ref_doc(
        Document(text="May2.", id_="d1"), update_kwargs={"delete_kwargs": {"delete_from_docstore": True}}
    )
    index.refresh_ref_docs([Document(text="May3.", id_="d1")], update_kwargs={"delete_kwargs": {}})
    assert asked(index) == "May3"


# The docstore


async def test_a_docstore_shows_what_the_index_holds(llm):
    index = BeaconIndex.from_documents([BOOK], llm=llm, index_id="house", transformations=[SPLIT])
    store = index.docstore
    assert list(store.docs) == index.ref_doc_info["book"].node_ids == store.get_ref_doc_info("book").node_ids
    assert store.get_document_hash("book") == BOOK.hash
    assert [node.get_content() for node in store.get_nodes(list(store.docs))] == [
        n.get_content() for n in index.nodes()
    ]
    index.insert(Document(text="May9.", id_="new"))
    assert index.docstore.ref_doc_exists("new")
    for act in (
        lambda: store.add_documents([]),
        lambda: store.delete_ref_doc("book"),
        lambda: store.set_document_hash("a", "b"),
    ):
        with pytest.raises(ConfigError, match="change the index"):
            act()
    with pytest.raises(ConfigError, match="change the index"):
        await store.adelete_document("book")


def test_what_with_context_has_read_is_an_index_too(llm):
    """It had no nodes, so its query engine answered that it was empty."""
    llm.with_context(["It is May1.", "It is May2."], context_id="house")
    index = BeaconIndex(index_id="house", llm=llm)
    assert asked(index) == "May1 May2"
    assert [node.get_content() for node in index.nodes()] == ["It is May1.", "It is May2."]
    index.insert(Document(text="It is May3."))
    index.delete_ref_doc("text 1")
    assert asked(index) == asked(opened_again(index)) == "May2 May3"


# Whatever comes


WORDS = st.text(st.characters(exclude_categories=()), max_size=30)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | WORDS
OBJECTS = (
    PLAIN
    | st.binary(max_size=4)
    | st.dates()
    | st.datetimes()
    | st.uuids()
    | st.decimals()
    | st.builds(Path, st.just("/a"))
)
METADATA = st.dictionaries(
    WORDS,
    st.recursive(
        OBJECTS,
        lambda held: st.lists(held, max_size=2) | st.dictionaries(st.integers() | WORDS, held, max_size=2),
        max_leaves=4,
    ),
    max_size=3,
)
BODY = st.one_of(WORDS, st.just(""), WORDS.map(lambda text: f"Here: {text}"))
IDS = st.sampled_from(["a", "b", "c", "\udce9.pdf", "a b/c"])


@st.composite
def anything(draw: st.DrawFn) -> BaseNode:
    """A document of some kind, with any text, metadata and id."""
    metadata = draw(METADATA)
    hidden = [key for key in metadata if draw(st.booleans())]
    how: dict[str, Any] = {"id_": draw(IDS), "metadata": metadata, "excluded_llm_metadata_keys": hidden}
    kind = draw(st.sampled_from([Document, Document, TextNode, ImageDocument, IndexNode]))
    if kind is IndexNode:
        how |= {"index_id": "other", "obj": draw(st.none() | st.just(object()))}
    return kind(text=draw(BODY), **how)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(anything(), max_size=4), min_size=1, max_size=3), st.booleans())
def test_whatever_documents_come_each_is_read_or_named_and_the_index_opens_again(shared, batches, skip_bad):
    llm = BeaconLLM(engine=shared.with_store("memory://"))
    index = BeaconIndex.from_documents([Document(text="Always here.", id_="first")], llm=llm, index_id="house")
    for documents in batches:
        before = index.ref_doc_info
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                index.refresh_ref_docs(documents, skip_bad=skip_bad)
            except BeaconError:
                assert index.ref_doc_info == before  # all or none
                continue
        told = " ".join(str(one.message) for one in warned)
        there = index.ref_doc_info
        for document in documents:
            key = document.node_id.replace("\udce9", "\ufffd")
            assert key in there or repr(key) in told
        assert set(before) <= set(there)
        again = BeaconIndex(index_id="house", llm=llm)
        assert [node.node_id for node in again.nodes()] == [node.node_id for node in index.nodes()]
        with warnings.catch_warnings(), contextlib.suppress(InputError):
            warnings.simplefilter("ignore")
            assert not any(again.refresh_ref_docs(documents))  # it is all there
    assert "Always here." in [node.get_content() for node in index.nodes()]
