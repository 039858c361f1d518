"""Documents that stand in front of a model by name: replaced, listed, removed, and a folder kept in step."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_beacon import BeaconLLM as LangChainText
from langchain_beacon import ChatBeacon
from langchain_core.documents import Document
from llama_index.core.schema import Document as IndexDocument
from llama_index.llms.beacon import BeaconLLM

from beacon_memory.errors import ConfigError, InputError, SessionNotFound
from beacon_memory.serving.engine import BeaconEngine

MODELS: dict[str, Any] = {
    "ChatBeacon": lambda engine, **how: ChatBeacon(engine=engine, **how),
    "LangChain's text model": lambda engine, **how: LangChainText(engine=engine, **how),
    "LlamaIndex": lambda engine, **how: BeaconLLM(engine=engine, **how),
}


@pytest.fixture(params=MODELS)
def make(request: pytest.FixtureRequest, shared: BeaconEngine) -> Any:
    """Makes a model over one store, as another process would."""
    engine = shared.with_store("memory://")
    return lambda **how: MODELS[request.param](engine, **how)


def seen(llm: Any) -> list[int]:
    """The numbers of the names that stand in front of the model."""
    said = llm.complete("Who?").text if isinstance(llm, BeaconLLM) else llm.invoke("Who?")
    return [int(number) for number in re.findall(r"Rex(\d+)", getattr(said, "text", said))]


def page(llm: Any, text: str, name: str) -> Any:
    """A document of the model's framework."""
    if isinstance(llm, BeaconLLM):
        return IndexDocument(text=text, metadata={"file_name": name})
    return Document(text, metadata={"source": name})


def names(llm: Any, context_id: str | None = None) -> list[str]:
    return [info.key for info in llm.documents(context_id).info()]


def test_an_edited_document_takes_the_older_ones_place(make, tmp_path):
    """The old text stayed, and the model read both."""
    file = tmp_path / "lease.txt"
    file.write_text("Rex1 is here.")
    llm = make()
    old = llm.with_context(file, context_id="house")
    assert seen(old) == [1]
    file.write_text("Rex2 is here.")
    assert seen(make().with_context(file, context_id="house")) == seen(old) == [2]
    llm.with_context(page(llm, "Rex3 is here.", "page"), context_id="house")
    assert seen(old) == [2, 3]
    llm.with_context([page(llm, "Rex4 is here.", "page")], context_id="house")
    assert (seen(old), names(old)) == ([2, 4], ["lease.txt", "page"])


def test_text_without_a_name_is_known_by_its_place(make):
    llm = make()
    for text in ("Rex1 is here, at length. " * 9, "Rex2 is here."):
        reader = llm.with_context(text, context_id="house")
    assert (seen(reader), names(reader)) == ([2], ["text 1"])
    llm.with_context(["Rex3.", "Rex4."], context_id="house")
    assert (seen(reader), names(reader)) == ([3, 4], ["text 1", "text 2"])


def test_documents_without_a_name_are_known_by_their_place_too(make):
    """LlamaIndex makes an id up for each: in the next run the old text stood in front of the new one."""
    llm = make()

    def run(*texts: str) -> Any:
        plain = [IndexDocument(text=t) if isinstance(llm, BeaconLLM) else Document(t) for t in texts]
        return llm.with_context(plain, context_id="house")

    run("Rex1 is here.", "Rex2 is here.")
    reader = run("Rex1 is here.", "Rex3 is here.")
    assert (seen(reader), names(reader)) == ([1, 3], ["text 1", "text 2"])
    owned = IndexDocument(text="Rex4.", id_="own") if isinstance(llm, BeaconLLM) else Document("Rex4.", id="own")
    llm.with_context(owned, context_id="house")
    assert names(reader) == ["text 1", "text 2", "own"]


def test_the_pages_of_a_file_are_one_document(make):
    llm = make()
    pages = [page(llm, f"Rex{n} is here.", "book.pdf") for n in range(1, 4)]
    reader = llm.with_context(pages, context_id="house")
    assert (seen(reader), names(reader)) == ([1, 2, 3], ["book.pdf"])
    llm.with_context(pages[:1], context_id="house")
    assert seen(reader) == [1]


def test_the_same_text_at_another_ratio_stands_once(make):
    for ratio in (4, 8, None):
        reader = make(beacon_ratio=ratio).with_context("Rex1 is here. " * 20, context_id="house")
    assert len(reader.documents().info()) == 1
    assert seen(reader) == [1]


def test_documents_are_listed_and_removed(make):
    llm = make()
    reader = llm.with_context([page(llm, f"Rex{n}.", f"p{n}") for n in range(3)], context_id="house")
    other = llm.with_context("Rex9.")
    assert names(llm, "house") == names(reader) == ["p0", "p1", "p2"]
    assert len(llm.opened.memory.contexts()) == 2
    reader.documents().remove("p1")
    assert seen(reader) == [0, 2]
    with pytest.raises(InputError, match="no document 'p1'"):
        reader.documents().remove("p1")
    other.documents().forget()
    assert llm.opened.memory.contexts() == ["house"]
    with pytest.raises(SessionNotFound):
        other.documents().info()
    for nameless in (llm, make(context_id=["house", "flat"])):
        with pytest.raises(ConfigError, match="documents"):
            nameless.documents()


def test_a_folder_is_kept_in_step(make, tmp_path):
    book = tmp_path / "book"
    (book / "deep").mkdir(parents=True)
    for n, name in enumerate(("a.txt", "b.txt", "deep/c.txt")):
        (book / name).write_text(f"Rex{n} is here.")
    llm = make()
    reader = llm.with_context(book, context_id="house")
    assert (seen(reader), names(reader)) == ([0, 1, 2], ["a.txt", "b.txt", "deep/c.txt"])
    (book / "a.txt").unlink()
    (book / "b.txt").write_text("Rex7 is here.")
    (book / "d.txt").write_text("Rex8 is here.")
    llm.with_context(book, context_id="house")
    assert seen(reader) == [0, 2, 7, 8]  # nothing goes unless it is said
    llm.with_context(book, context_id="house", delete_missing=True)
    assert (seen(reader), names(reader)) == ([2, 7, 8], ["b.txt", "deep/c.txt", "d.txt"])
    version = reader.documents().version
    llm.with_context(book, context_id="house", delete_missing=True)
    assert reader.documents().version == version
    with pytest.raises(ConfigError, match="context_id"):
        llm.with_context(book, delete_missing=True)


def test_a_bad_page_among_good_ones_is_left_out_or_refused(make, tmp_path):
    book: Path = tmp_path / "book"
    book.mkdir()
    for name, content in {"a.txt": b"Rex1 is here.", "b.txt": b"Rex2 is here.", "c.txt": b"Rex3 is here."}.items():
        (book / name).write_bytes(content)
    llm = make()
    reader = llm.with_context(book, context_id="house")
    (book / "a.txt").write_bytes(b"Rex4 is here.")
    for content in (b" \n", b"\0\1", b"caf\xe9"):
        (book / "b.txt").write_bytes(content)
        with pytest.raises(InputError, match=r"b\.txt"):
            llm.with_context(book, context_id="house", skip_bad=False)
        assert seen(reader) == [1, 2, 3]  # all or none
    with pytest.warns(match=r"b\.txt.*left out"):
        llm.with_context(book, context_id="house", delete_missing=True)
    assert seen(reader) == [2, 3, 4]  # what could not be read is not missing
    pages = [page(llm, "Rex5.", "x.pdf"), page(llm, " ", "x.pdf"), page(llm, "Rex6.", "x.pdf")]
    with pytest.warns(match="x.pdf.*part 2.*left out"):
        assert seen(llm.with_context(pages, context_id="flat")) == [5, 6]
    for none in ([], [page(llm, " ", "blank.pdf")], [" ", page(llm, "\0", "nul.pdf")]):
        with pytest.raises(InputError, match="no document"):
            llm.with_context(none, context_id="other")
    assert llm.opened.memory.contexts() == ["flat", "house"]


def test_pages_as_readers_of_pdfs_give_them_are_read(make):
    llm = make()
    pages = [page(llm, "Rex1\0 is here.", "a.pdf"), page(llm, "Rex2 \ud835 is here.", "b\udce9.pdf")]
    reader = llm.with_context(pages, context_id="house")
    assert (seen(reader), names(reader)) == ([1, 2], ["a.pdf", "b\ufffd.pdf"])
    llm.with_context(pages, context_id="house", delete_missing=True)
    assert (seen(reader), names(reader)) == ([1, 2], ["a.pdf", "b\ufffd.pdf"])


TEXTS = st.text(st.characters(exclude_categories=()), max_size=30)
NAMES = st.sampled_from(["a.pdf", "b.pdf", "c\udce9.pdf", ""])
PAGES = st.lists(st.tuples(TEXTS | TEXTS.map(lambda text: f"Here: {text}"), NAMES), max_size=4)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(MODELS)), st.lists(st.tuples(PAGES, st.booleans(), st.booleans()), min_size=1, max_size=3)
)
def test_whatever_pages_come_each_is_read_or_named_and_nothing_else_moves(shared, kind, calls):
    llm = MODELS[kind](shared.with_store("memory://"))
    first = llm.with_context([page(llm, "Always here.", "first")], context_id="house")
    for pages, skip_bad, delete_missing in calls:
        # Without a name a document of LlamaIndex has an id that is made up.
        documents = [page(llm, text, name) if name else text for text, name in pages]
        before, how = first.documents().texts(), {"context_id": "house", "delete_missing": delete_missing}
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                llm.with_context(documents, skip_bad=skip_bad, **how)
            except InputError:
                assert first.documents().texts() == before  # all or none
                continue
        told, there = " ".join(str(one.message) for one in warned), names(first)
        for _, name in pages:
            key = name.replace("\udce9", "\ufffd")
            read = key in there if key else any(name.startswith("text ") for name in there)
            assert read or (repr(key) if key else "text") in told
        kept = {name.replace("\udce9", "\ufffd") for _, name in pages}
        gone = set(before) - set(there)
        assert not gone & kept
        assert delete_missing or not gone
        version = first.documents().version
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            llm.with_context(documents, skip_bad=skip_bad, **how)
        assert first.documents().version == version  # it is all there
