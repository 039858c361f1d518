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
from llama_index.core.indices.registry import INDEX_STRUCT_TYPE_TO_INDEX_CLASS
from llama_index.core.schema import BaseNode, Document, TransformComponent
from llama_index.core.settings import Settings
from llama_index.core.storage.storage_context import StorageContext
from llama_index.indices.managed.beacon.answers import reader
from llama_index.indices.managed.beacon.changes import ChangingIndex
from llama_index.indices.managed.beacon.chat_engine import BeaconChatEngine
from llama_index.indices.managed.beacon.given import Given
from llama_index.indices.managed.beacon.nodes import Whole, text_of
from llama_index.indices.managed.beacon.query_engine import BeaconQueryEngine
from llama_index.indices.managed.beacon.retriever import BeaconRetriever
from llama_index.llms.beacon import BeaconLLM

from beacon_memory.errors import ConfigError, SessionExists, SessionNotFound
from beacon_memory.serving.engines import named_store

# LlamaIndex's list of kinds is closed; it looks them up by their words, and these are its error where they are missing.
KIND = cast(IndexStructType, "beacon (import llama_index.indices.managed.beacon first)")

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


class BeaconIndex(ChangingIndex):
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
        skip_bad: bool = True,
        delete_missing: bool = False,
    ) -> None:
        """The index that is kept under `index_id`, which must be there; with `nodes`, one that holds these.

        `llm` reads and answers; default: `Settings.llm` where that is a BeaconLLM, else a new one. The index is kept in
        its store, or in `store`, `redis_url`, `redis_client`. `ratio` is of what is folded from now on, `budget` the
        most slots the index may have: beyond it old documents get coarser. `skip_bad` and `delete_missing` as
        `from_documents` has them. Raises SessionNotFound, SessionExists, ModelMismatch, InputError, ConfigError,
        StoreError.
        """
        named = {"store": store, "redis_url": redis_url, "redis_client": redis_client}
        self.llm = _placed(llm, key_prefix=key_prefix, ttl=ttl, **named)
        name = index_id or (index_struct.index_id if index_struct is not None else None)
        if name is None and nodes is None:
            raise ConfigError("an index is opened by its index_id; a new one is made by BeaconIndex.from_documents")
        self._ratio, self._budget = ratio or self.llm.beacon_ratio, budget
        self._read = (0, [])
        self.windows_folded = 0
        struct = BeaconStruct(index_id=name or str(uuid.uuid4()))
        self._id = struct.index_id
        self._show_progress = show_progress
        if nodes is None:
            self._opened()
        else:
            given = nodes if isinstance(nodes, Given) else Given.nodes(nodes, skip_bad=skip_bad)
            cut = (transformations or [Whole()]) if isinstance(nodes, Given) else None
            self._made(given, cut, delete_missing=delete_missing)
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

        Documents of one id are parts of one. What is empty, binary or cannot be kept is left out with a warning; with
        `skip_bad=False`, or where no document is good, it is refused. An index of this id that holds other documents
        is refused too, unless `delete_missing` says that they go. `kwargs` as the constructor takes them. Raises
        InputError, and what the constructor does.
        """
        return cls(
            Given.documents(documents, skip_bad=kwargs.get("skip_bad", True)),  # type: ignore[arg-type]
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
        return _placed(llm, **place).opened.contexts()

    def forget(self) -> None:
        """Delete the index: every byte of it that no other one names. Raises SessionNotFound."""
        self.documents.forget()
        self._storage_context.index_store.delete_index_struct(self._id)

    def set_index_id(self, index_id: str) -> None:
        """Keep the index under another id. Raises SessionExists."""
        self.documents.rename(index_id)
        self._id = index_id
        super().set_index_id(index_id)

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
        known = {name: kwargs.pop(name) for name in ASKING if name in kwargs}
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

    def _made(
        self, given: Given, transformations: Sequence[TransformComponent] | None, *, delete_missing: bool
    ) -> None:
        """Read the documents of a new index, or what changed of one that holds no others."""
        made = given.cut(given.unread(self._hashes()), transformations) if transformations else given.made(given.parts)
        shelf = self.documents

        def alone() -> None:
            held = self._kept(shelf, create=True)
            others = held.keys() - given.parts.keys() - given.bad.keys()
            # An id that LlamaIndex has made up is another one in each run: there the text says what is the same.
            texts = {text_of(held[key]): key for key in others}
            same = {one.key: texts[one.text] for one in made if one.key not in held and one.text in texts}
            others -= set(same.values())
            if others and not delete_missing:
                raise SessionExists(
                    f"index {self._id!r} holds {len(others)} other documents ({min(others)!r}, …): open it by "
                    f"BeaconIndex(index_id={self._id!r}) to change it, give another index_id, or delete_missing=True "
                    f"to have these documents alone"
                )
            given.parts |= {key: [] for key in same.values()}
            self._put(given, [one for one in made if one.key not in same], shelf, delete_missing=delete_missing)

        shelf.alone(alone)


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
