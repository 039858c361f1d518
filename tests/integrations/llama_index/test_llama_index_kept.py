"""An index in its store: opened by LlamaIndex's own loader, listed, deleted; its documents replaced, taken out."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Settings, StorageContext, load_index_from_storage, load_indices_from_storage
from llama_index.core.extractors import TitleExtractor
from llama_index.core.indices.list import SummaryIndex
from llama_index.core.llms import MockLLM
from llama_index.core.schema import BaseNode, Document, TransformComponent
from llama_index.indices.managed.beacon import BeaconIndex
from llama_index.indices.managed.beacon.nodes import Whole
from llama_index.llms.beacon import BeaconLLM
from remembering import HERE, calendar

from beacon_memory.errors import SessionNotFound
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import scripted_engine

HOUSE = ["The lease ends in May1.", "The door is May2 green."]


@pytest.fixture(scope="module")
def shared() -> BeaconEngine:
    return scripted_engine(calendar)


def docs(*texts: str) -> list[Document]:
    return [Document(text=text, id_=f"d{n}") for n, text in enumerate(texts)]


def asked(index: BeaconIndex) -> str:
    return str(index.as_query_engine().query("When?"))


# LlamaIndex's storage


def test_an_index_that_was_persisted_is_loaded_by_llama_index(llm, tmp_path):
    """It was loaded as a VectorStoreIndex that asked for an embedding model and answered nothing."""
    index = BeaconIndex.from_documents(docs(*HOUSE), llm=llm, index_id="house")
    index.storage_context.persist(tmp_path)
    loaded = load_index_from_storage(StorageContext.from_defaults(persist_dir=str(tmp_path)), llm=llm)
    assert isinstance(loaded, BeaconIndex)
    assert (loaded.index_id, loaded.windows_folded) == ("house", 0)
    assert asked(loaded) == "I read May1 May2"
    loaded.insert(Document(text="May3."))
    assert asked(index) == "I read May1 May2 May3"


def test_a_storage_holds_indexes_of_several_kinds(llm, tmp_path, monkeypatch):
    monkeypatch.setattr(Settings, "_llm", llm)
    storage = StorageContext.from_defaults()
    SummaryIndex.from_documents(docs("One."), storage_context=storage).set_index_id("summary")
    for name in ("house", "garden"):
        BeaconIndex.from_documents(docs(*HOUSE), llm=llm, index_id=name, storage_context=storage)
    storage.persist(str(tmp_path))
    again = StorageContext.from_defaults(persist_dir=str(tmp_path))
    kinds = {index.index_id: type(index) for index in load_indices_from_storage(again)}
    assert kinds == {"summary": SummaryIndex, "house": BeaconIndex, "garden": BeaconIndex}
    assert load_index_from_storage(again, "garden").index_id == "garden"
    garden = load_index_from_storage(again, "garden")
    garden.set_index_id("yard")
    garden.forget()
    assert {index.index_id for index in load_indices_from_storage(again)} == {"summary", "house"}


def test_a_process_that_has_not_imported_the_index_is_told_to(llm, tmp_path):
    BeaconIndex.from_documents(docs(*HOUSE), llm=llm, index_id="house").storage_context.persist(tmp_path)
    load = f"load_index_from_storage(StorageContext.from_defaults(persist_dir={str(tmp_path)!r}))"
    loading = f"from llama_index.core import StorageContext, load_index_from_storage; {load}"
    ended = subprocess.run([sys.executable, "-c", loading], capture_output=True, text=True, check=False)
    assert "import llama_index.indices.managed.beacon first" in ended.stderr


@HERE
def test_an_index_that_is_persisted_without_its_store_is_named(llm, tmp_path, monkeypatch):
    monkeypatch.setattr(Settings, "_llm", MockLLM())
    BeaconIndex.from_documents(docs(*HOUSE), llm=llm, index_id="house").storage_context.persist(tmp_path)
    other = BeaconLLM(engine=llm.opened.with_store("memory://"))
    with pytest.raises(SessionNotFound, match=r"no index 'house'.*name the llm or the store"):
        load_index_from_storage(StorageContext.from_defaults(persist_dir=str(tmp_path)), llm=other)


# Listed and deleted


@HERE
def test_indexes_are_listed_and_deleted(llm, tmp_path):
    assert BeaconIndex.index_ids(llm) == []
    indexes = [BeaconIndex.from_documents(docs(*HOUSE), llm=llm, index_id=name) for name in ("house", "garden")]
    llm.complete("Hello", session_id="ada")
    assert BeaconIndex.index_ids(llm) == ["garden", "house"]
    url = f"sqlite:///{tmp_path}/other.db"
    BeaconIndex.from_documents(docs("Elsewhere."), llm=llm, index_id="else", store=url)
    assert BeaconIndex.index_ids(llm, store=url) == ["else"]
    indexes[0].forget()
    assert BeaconIndex.index_ids(llm) == ["garden"]
    assert asked(indexes[1]) == "I read May1 May2"
    for act in (indexes[0].forget, indexes[0].nodes, lambda: BeaconIndex(index_id="house", llm=llm)):
        with pytest.raises(SessionNotFound):
            act()
    made = BeaconIndex.from_documents(docs("May7."), llm=llm, index_id="house")
    assert asked(made) == "I read May7"


def test_a_deleted_index_leaves_no_byte(shared, tmp_path):
    llm = BeaconLLM(engine=shared.with_store(f"sqlite:///{tmp_path}/memory.db"))
    index = BeaconIndex.from_documents(docs("Codeword SECRET. " * 9), llm=llm, index_id="house")
    index.forget()
    llm.opened.close()
    assert not any(b"SECRET" in path.read_bytes() for path in Path(tmp_path).iterdir())


# Documents


def test_a_document_of_the_same_id_takes_the_older_ones_place(llm):
    """`insert` refused it, and LlamaIndex's own indexes keep both."""
    index = BeaconIndex.from_documents(docs(*HOUSE), llm=llm, index_id="house")
    index.insert(Document(text="Now it ends in May8.", id_="d0"))
    assert asked(index) == "I read May2 May8"
    assert [node.node_id for node in index.nodes()] == ["d0", "d1"]  # in its place
    folded = index.windows_folded
    index.insert(Document(text="Now it ends in May8.", id_="d0"))
    assert index.windows_folded == folded
    asyncio.run(index.ainsert(Document(text="Now it ends in May9.", id_="d0")))
    again = BeaconIndex.from_documents(docs("May6.", HOUSE[1]), llm=llm, index_id="house")
    assert asked(again) == asked(index) == "I read May2 May6"


# Transformations that ask the model


class Dated(TransformComponent):
    """Adds what the model says to each document, by whichever of its calls."""

    llm: Any
    way: str

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        for node in nodes:
            asked = f"Well? {node.get_content()}"
            said = asyncio.run(self.llm.acomplete(asked)) if self.way == "loop" else self.llm.complete(asked)
            node.metadata["said"] = str(said)
        return nodes

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        if self.way == "thread":
            return await asyncio.to_thread(self, nodes)
        return await self.llm.opened.run(lambda: self(nodes))


@pytest.mark.parametrize("way", ["extractor", "loop", "sync", "thread"])
async def test_a_transformation_that_asks_the_model_asks_it_within_an_asynchronous_change(llm, way):
    """It waited for the engine's one thread, which waited for it; then nobody was answered any more."""
    step = TitleExtractor(llm=llm, nodes=1, show_progress=False) if way == "extractor" else Dated(llm=llm, way=way)
    made = (Document(text="The lease ends in May1.", id_="d0"), [Whole(), step])
    async with asyncio.timeout(120):
        index = await asyncio.to_thread(
            lambda: BeaconIndex.from_documents(made[:1], llm=llm, index_id="house", transformations=made[1])
        )
        await index.ainsert(Document(text="The door is May2 green.", id_="d1"))
        assert await index.arefresh_ref_docs([Document(text="May3.", id_="d0")]) == [True]
        await index.aupdate_ref_doc(Document(text="May4.", id_="d1"))
        assert str(await index.as_query_engine().aquery("When?")) == "I read May3 May4"
    said = [node.metadata["document_title" if way == "extractor" else "said"] for node in index.nodes()]
    assert said == ["I read May3", "I read May4"]
