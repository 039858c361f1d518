"""An index that has read its documents: each is folded by itself, and all stand in front of every question."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.data_structs.registry import INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS
from llama_index.core.data_structs.struct_type import IndexStructType
from llama_index.core.indices.managed.base import BaseManagedIndex
from llama_index.core.indices.registry import INDEX_STRUCT_TYPE_TO_INDEX_CLASS
from llama_index.core.ingestion import arun_transformations, run_transformations
from llama_index.core.schema import BaseNode, Document, TransformComponent
from llama_index.core.settings import Settings
from llama_index.core.storage.docstore.types import RefDocInfo
from llama_index.core.storage.storage_context import StorageContext
from llama_index.indices.managed.beacon.answers import reader
from llama_index.indices.managed.beacon.chat_engine import BeaconChatEngine
from llama_index.indices.managed.beacon.nodes import Whole, from_about, to_documents
from llama_index.indices.managed.beacon.query_engine import BeaconQueryEngine
from llama_index.indices.managed.beacon.retriever import BeaconRetriever
from llama_index.llms.beacon import BeaconLLM
from tqdm import tqdm

from beacon_memory.errors import ConfigError, InputError, SessionExists, SessionNotFound
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.serving.engines import named_store
from beacon_memory.sessions import documents as core

KIND = cast(IndexStructType, "beacon")  # LlamaIndex's list of kinds is closed; it looks them up by their words

# What `as_query_engine` hands on.
ASKING = (
    "streaming",
    "text_qa_template",
    "recall_tokens",
    "similarity_cutoff",
    "output_cls",
    "node_postprocessors",
    "verbose",
)


@dataclass
class BeaconStruct(IndexDict):
    """What LlamaIndex's index store keeps of an index: its id. The documents are in the LLM's store."""

    @classmethod
    def get_type(cls) -> IndexStructType:
        return KIND


class BeaconIndex(BaseManagedIndex):
    """Documents that a model has read. No embedding model, no retriever, no chunks: the whole of every document
    stands, folded, in front of each question. Adding a document folds that one, removing one folds none.

    >>> from beacon_memory.testing import scripted_engine
    >>> llm = BeaconLLM(engine=scripted_engine(lambda seen: "In May." if "ends in May" in seen else "?"))
    >>> index = BeaconIndex.from_documents([Document(text="The lease ends in May.")], llm=llm, index_id="house")
    >>> str(index.as_query_engine().query("When does the lease end?"))
    'In May.'
    >>> str(BeaconIndex(index_id="house", llm=llm).as_query_engine().query("When?"))
    'In May.'
    """

    index_struct_cls = BeaconStruct

    def __init__(
        self,
        nodes: Sequence[BaseNode] | None = None,
        *,
        index_id: str | None = None,
        llm: Any = None,
        store: Any = None,
        redis_url: str | None = None,
        redis_client: Any = None,
        key_prefix: str = "beacon",
        ttl: int | None = None,
        ratio: int | None = None,
        budget: int | None = None,
        index_struct: IndexDict | None = None,
        storage_context: StorageContext | None = None,
        show_progress: bool = False,
        callback_manager: CallbackManager | None = None,
        transformations: list[TransformComponent] | None = None,
    ) -> None:
        """The index that is kept under `index_id`, which must be there; with `nodes`, one that holds these.

        `llm` reads and answers; default: `Settings.llm` where that is a BeaconLLM, else a new one. The index is kept in
        its store, or in `store`, `redis_url`, `redis_client`. `ratio` is of what is folded from now on, `budget` the
        most slots the index may have: beyond it old documents get coarser. Raises SessionNotFound, ModelMismatch,
        InputError, ConfigError, StoreError.
        """
        named = {"store": store, "redis_url": redis_url, "redis_client": redis_client}
        self.llm = _placed(llm, key_prefix=key_prefix, ttl=ttl, **named)
        name = index_id or (index_struct.index_id if index_struct is not None else None)
        if name is None and nodes is None:
            raise ConfigError("an index is opened by its index_id; a new one is made by BeaconIndex.from_documents")
        self._ratio, self._budget = ratio or self.llm.beacon_ratio, budget
        self._read: tuple[int, list[BaseNode]] = (0, [])
        self.windows_folded = 0
        struct = BeaconStruct(index_id=name or str(uuid.uuid4()))
        self._id = struct.index_id
        self._show_progress = show_progress
        if nodes is None:
            self._opened()
        else:
            self._made(to_documents(nodes))
        super().__init__(
            index_struct=struct,
            storage_context=storage_context,
            show_progress=show_progress,
            callback_manager=callback_manager,
            transformations=transformations or [Whole()],
        )

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[Document],
        storage_context: StorageContext | None = None,
        show_progress: bool = False,
        callback_manager: CallbackManager | None = None,
        transformations: list[TransformComponent] | None = None,
        **kwargs: Any,
    ) -> Self:
        """The index of these documents, all of them read or none. Where it is there already, only what changed is.

        An index of this id that holds other documents is refused, never overwritten. `kwargs` as the constructor takes
        them. Raises SessionExists, InputError for an empty document or an id given twice, and what the constructor
        does.
        """
        return cls(
            _nodes(documents, transformations or [Whole()]),
            storage_context=storage_context,
            show_progress=show_progress,
            callback_manager=callback_manager,
            transformations=transformations,
            **kwargs,
        )

    @classmethod
    def index_ids(cls, llm: Any = None, **place: Any) -> list[str]:
        """The ids of all indexes in the LLM's store, or in `store`, `redis_url`, `redis_client`; what LangChain's
        `with_context` keeps under a name is one, too. Raises ConfigError, StoreError.
        """
        return _placed(llm, **place).opened.memory.contexts()

    def forget(self) -> None:
        """Delete the index: every byte of it that no other one names. Raises SessionNotFound."""
        self.documents.forget()
        self._storage_context.index_store.delete_index_struct(self._id)

    @property
    def engine(self) -> BeaconEngine:
        """The model and the store."""
        return self.llm.opened

    @property
    def documents(self) -> core.Documents:
        """The core's documents behind this index."""
        return core.Documents(self.engine.memory, self._id, ratio=self._ratio, budget=self._budget)

    def nodes(self) -> list[BaseNode]:
        """Every node, in the order in which they are read."""
        documents = self.documents
        version = documents.version
        if not version or version != self._read[0]:
            found = [node for about in documents.about().values() for node in from_about(about)]
            self._read = (version, found)
        return list(self._read[1])

    @property
    def ref_doc_info(self) -> dict[str, RefDocInfo]:
        """The documents by id, with their nodes' ids and the metadata of the first."""
        infos: dict[str, RefDocInfo] = {}
        for key, about in self.documents.about().items():
            nodes = from_about(about)
            infos[key] = RefDocInfo(
                node_ids=[node.node_id for node in nodes], metadata=dict(nodes[0].metadata) if nodes else {}
            )
        return infos

    def set_index_id(self, index_id: str) -> None:
        """Keep the index under another id. Raises SessionExists."""
        self.documents.rename(index_id)
        self._id = index_id
        super().set_index_id(index_id)

    # Changes: each is whole or not made.

    def insert(self, document: Document, **insert_kwargs: Any) -> None:
        """Read one more document, or one whose id is there in the place of the older text."""
        self.refresh_ref_docs([document])

    def insert_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        """Read more documents, given in nodes. Raises InputError when the id of one is there: whether these nodes are
        more of it, or all of it, they do not tell.
        """
        with self._callback_manager.as_trace("insert_nodes"):
            self._insert(nodes)

    def _insert(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        self._put(to_documents(nodes), new=True)

    def delete_ref_doc(self, ref_doc_id: str, delete_from_docstore: bool = False, **delete_kwargs: Any) -> None:
        """Take a document out; nothing is folded. Raises InputError when it is not there."""
        with self._callback_manager.as_trace("delete_ref_doc"):
            self.documents.remove(ref_doc_id)

    def delete_nodes(self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any) -> None:
        """Take out the documents that these nodes are the whole of. Raises InputError when a part would be left: a
        document is folded as one.
        """
        gone, given = [], set(node_ids)
        for key, info in self.ref_doc_info.items():
            if given.issuperset(info.node_ids):
                gone.append(key)
                given.difference_update(info.node_ids)
        if given:
            raise InputError(
                f"nodes {', '.join(map(repr, sorted(given)))} are no whole documents of this index: use "
                f"delete_ref_doc, or update_ref_doc with what is to stay"
            )
        if gone:
            self.documents.remove(*gone)

    def update_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """Read a document again in its place, where it has changed; one that is new comes last."""
        self.refresh_ref_docs([document])

    def refresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """Read those documents that are new or have changed; says which. The others are not folded again."""
        with self._callback_manager.as_trace("refresh_ref_docs"):
            return self._put(to_documents(_nodes(documents, self._transformations)))

    # Transformations run in the caller's event loop, where they may ask an LLM: only reading is the engine's work.

    async def ainsert(self, document: Document, **insert_kwargs: Any) -> None:
        await self.arefresh_ref_docs([document])

    async def ainsert_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        await self.engine.run(lambda: self.insert_nodes(nodes))

    async def adelete_ref_doc(self, ref_doc_id: str, delete_from_docstore: bool = False, **delete_kwargs: Any) -> None:
        await self.engine.run(lambda: self.delete_ref_doc(ref_doc_id))

    async def adelete_nodes(
        self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        await self.engine.run(lambda: self.delete_nodes(node_ids))

    async def aupdate_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        await self.arefresh_ref_docs([document])

    async def arefresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        with self._callback_manager.as_trace("refresh_ref_docs"):
            made = to_documents(await _anodes(documents, self._transformations))
            return await self.engine.run(lambda: self._put(made))

    # Engines

    def as_retriever(self, **kwargs: Any) -> BaseRetriever:
        """A retriever that gives every node; nothing is searched."""
        known = {name: kwargs.pop(name) for name in ("verbose",) if name in kwargs}
        _none(kwargs)
        return BeaconRetriever(self, callback_manager=self._callback_manager, **known)

    def as_query_engine(self, llm: Any = None, **kwargs: Any) -> BaseQueryEngine:
        """Answers from all documents. `kwargs` as `BeaconQueryEngine` takes them: streaming, text_qa_template,
        recall_tokens, similarity_cutoff, output_cls, node_postprocessors, verbose. `llm` may be a structured one.
        """
        names = (
            "streaming",
            "text_qa_template",
            "recall_tokens",
            "similarity_cutoff",
            "output_cls",
            "node_postprocessors",
            "verbose",
        )
        known = {name: kwargs.pop(name) for name in names if name in kwargs}
        _none(kwargs)
        return BeaconQueryEngine(self, llm=llm, callback_manager=self._callback_manager, **known)

    def as_chat_engine(self, chat_mode: Any = None, llm: Any = None, **kwargs: Any) -> BaseChatEngine:
        """A talk in front of which all documents stand. `kwargs` as `BeaconChatEngine` takes them: session_id, memory,
        chat_history, system_prompt, prefix_messages, recall_tokens. There is one mode; `chat_mode` and `verbose` are
        not looked at.
        """
        kwargs.pop("verbose", None)
        names = ("session_id", "memory", "chat_history", "system_prompt", "prefix_messages", "recall_tokens")
        known = {name: kwargs.pop(name) for name in names if name in kwargs}
        _none(kwargs)
        return BeaconChatEngine(self, llm=llm, callback_manager=self._callback_manager, **known)

    def _opened(self) -> None:
        """Look whether the index is there and ours."""
        try:
            self.documents.info()
        except SessionNotFound as exc:
            where = "this store" if self.engine.keeps_sessions else "this process, and the llm has no store"
            raise SessionNotFound(
                f"no index {self._id!r} in {where}: make it by BeaconIndex.from_documents(…, index_id={self._id!r}), "
                f"or name the llm or the store that has it"
            ) from exc

    def _made(self, documents: Sequence[core.Document]) -> None:
        """Read the documents of a new index, or what changed of one that holds no others."""
        there = self.documents
        if there.version:
            given = {document.key for document in documents}
            if others := [info.key for info in there.info() if info.key not in given]:
                raise SessionExists(
                    f"index {self._id!r} holds {len(others)} other documents ({others[0]!r}, …): open it by "
                    f"BeaconIndex(index_id={self._id!r}) to change it, or give another index_id"
                )
        self._put(documents)

    def _put(self, documents: Sequence[core.Document], *, new: bool = False) -> list[bool]:
        with tqdm(desc="Folding", unit=" tokens", disable=not self._show_progress) as bar:
            written = self.documents.put(documents, new=new, progress=bar.update)
        self.windows_folded += written.windows
        return list(written.changed)


def _nodes(documents: Sequence[Document], transformations: Sequence[TransformComponent]) -> list[BaseNode]:
    """The documents' nodes. Raises InputError for an id given twice and a document without text."""
    return [node for one in _checked(documents) for node in run_transformations([one], list(transformations))]


async def _anodes(documents: Sequence[Document], transformations: Sequence[TransformComponent]) -> list[BaseNode]:
    """The same, asynchronously."""
    return [node for one in _checked(documents) for node in await arun_transformations([one], list(transformations))]


def _checked(documents: Sequence[Document]) -> Sequence[Document]:
    given: set[str] = set()
    for document in documents:
        if document.id_ in given:
            raise InputError(f"document {document.id_!r} is given twice: give each its own id")
        given.add(document.id_)
        if not document.text.strip():
            raise InputError(f"document {document.id_!r} is empty: there is nothing to read")
    return documents


def _placed(llm: Any, *, key_prefix: str = "beacon", ttl: int | None = None, **named: Any) -> BeaconLLM:
    """The LLM that reads, over the store that is named. Raises ConfigError for one that cannot."""
    # Settings.llm would make, and ask a key for, another one.
    found = reader(llm or (Settings._llm if isinstance(Settings._llm, BeaconLLM) else BeaconLLM()))
    if all(one is None for one in named.values()):
        return found
    where = named_store(key_prefix=key_prefix, ttl=ttl, **named)
    assert where is not None
    return found.model_copy(update={"engine": found.opened.with_store(where)})


def _none(kwargs: dict[str, Any]) -> dict[str, Any]:
    """No options, where none are known. Raises ConfigError: what a retriever takes would be ignored here."""
    if kwargs:
        raise ConfigError(f"unknown option {', '.join(sorted(kwargs))}: nothing is retrieved here, all is read")
    return kwargs


# What `load_index_from_storage` looks kinds of index up in: additions alone, nothing of LlamaIndex's is changed.
INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS[KIND] = BeaconStruct
INDEX_STRUCT_TYPE_TO_INDEX_CLASS[KIND] = BeaconIndex
