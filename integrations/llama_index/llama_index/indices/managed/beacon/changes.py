"""What changes an index: each change is whole or not made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.indices.managed.base import BaseManagedIndex
from llama_index.core.schema import BaseNode, Document, MetadataMode, TextNode
from llama_index.core.storage.docstore.types import BaseDocumentStore, RefDocInfo
from llama_index.indices.managed.beacon.docstore import KeptDocstore
from llama_index.indices.managed.beacon.given import Given
from llama_index.indices.managed.beacon.nodes import from_about, hash_of, plain, to_document, version_of
from llama_index.llms.beacon import BeaconLLM
from tqdm import tqdm

from beacon_memory.errors import ConfigError, InputError
from beacon_memory.models.given import given_list
from beacon_memory.serving.engine import Engine
from beacon_memory.state import info as core

if TYPE_CHECKING:
    from beacon_memory.client.documents import RemoteDocuments
    from beacon_memory.sessions.documents import Documents

    Kept = Documents | RemoteDocuments

# LlamaIndex's own names for what it hands on; there is nothing here to hand on to.
HANDED_ON = ("insert_kwargs", "delete_kwargs", "update_kwargs")


class ChangingIndex(BaseManagedIndex):
    """Documents are added, replaced and taken out. What is bad among good ones is left out with a warning, or refused
    by name with `skip_bad=False`.
    """

    llm: BeaconLLM
    windows_folded: int  # by this object
    _id: str
    _ratio: int | None
    _budget: int | None
    _read: tuple[int, list[BaseNode]]

    @property
    def engine(self) -> Engine:
        """The model and the store."""
        return self.llm.opened

    @property
    def documents(self) -> Kept:
        """The core's documents behind this index."""
        return self.engine.documents(self._id, ratio=self._ratio, budget=self._budget)

    def nodes(self) -> list[BaseNode]:
        """Every node, in the order in which they are read."""
        documents = self.documents
        version = documents.version
        if not version or version != self._read[0]:
            self._read = (version, [node for nodes in self._kept(documents).values() for node in nodes])
        return list(self._read[1])

    @property
    def ref_doc_info(self) -> dict[str, RefDocInfo]:
        """The documents by id, with their nodes' ids and the metadata of the first."""
        return {
            key: RefDocInfo(
                node_ids=[node.node_id for node in nodes], metadata=dict(nodes[0].metadata) if nodes else {}
            )
            for key, nodes in self._kept(self.documents).items()
        }

    @property
    def docstore(self) -> BaseDocumentStore:
        """The nodes, and the documents by id, to read as they are now: for code that takes a docstore."""
        return KeptDocstore(self.nodes(), self._hashes())

    # Documents

    def insert(self, document: Document, **insert_kwargs: Any) -> None:
        """Read one more document, or one whose id is there in the place of the older text. Raises InputError."""
        self.refresh_ref_docs([document], **insert_kwargs)

    def update_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """Read a document again in its place, where it has changed; one that is new comes last. Raises InputError."""
        self.refresh_ref_docs([document], **update_kwargs)

    def refresh_ref_docs(
        self,
        documents: Sequence[Document],
        *,
        skip_bad: bool = True,
        delete_missing: bool = False,
        **update_kwargs: Any,
    ) -> list[bool]:
        """Read those documents that are new or have changed; says which. The others are neither cut nor folded again.

        With `delete_missing` those that are not given are taken out, so the index is kept in step with a folder; what
        was bad is not missing. Raises InputError.
        """
        _handed_on(update_kwargs)
        with self._callback_manager.as_trace("refresh_ref_docs"):
            given = Given.documents(documents, skip_bad=skip_bad)
            made = given.cut(given.unread(self._hashes()), self._transformations)
            return self._put(given, made, self.documents, delete_missing=delete_missing)

    def delete_ref_doc(self, ref_doc_id: str, delete_from_docstore: bool = False, **delete_kwargs: Any) -> None:
        """Take a document out; nothing is folded. Raises InputError when it is not there."""
        _handed_on(delete_kwargs)
        with self._callback_manager.as_trace("delete_ref_doc"):
            self.documents.remove(plain(ref_doc_id))

    # Nodes

    def insert_nodes(self, nodes: Sequence[BaseNode], *, skip_bad: bool = True, **insert_kwargs: Any) -> None:
        """Read more documents, given in nodes.

        Of a document that is there already, nodes of the same version (their source's hash), or of none, are more of
        it: a node takes the place of the older one of its id, and no text stands twice. Nodes of another version take
        the place of all older ones. Raises InputError.
        """
        _handed_on(insert_kwargs)
        with self._callback_manager.as_trace("insert_nodes"):
            given = Given.nodes(nodes, skip_bad=skip_bad)
            self._insert_given(given)

    def _insert_given(self, given: Given) -> None:
        shelf = self.documents

        def alone() -> None:
            held, made = self._kept(shelf, create=True), dict(given.parts)
            for key, parts in given.parts.items():
                versions = {version_of(held.get(key, ())), version_of(parts)} - {""}
                if key in held and len(versions) < 2:
                    made[key] = _joined(held[key], parts)
                    given.hashes[key] = hash_of(made[key])
                    if given.hashes[key] == hash_of(held[key]):
                        del made[key]
            self._put(given, given.made(made), shelf)

        shelf.alone(alone)

    def _insert(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        self.insert_nodes(nodes)

    def delete_nodes(self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any) -> None:
        """Take nodes out. A document of which others stay is folded again without them. Raises InputError for a node
        that is not there.
        """
        _handed_on(delete_kwargs)
        given = {plain(one) for one in given_list(node_ids, "node ids")}
        shelf = self.documents
        shelf.alone(lambda: self._delete_given(shelf, given))

    def _delete_given(self, shelf: Kept, given: set[str]) -> None:
        held = self._kept(shelf)
        if unknown := given - {node.node_id for nodes in held.values() for node in nodes}:
            raise InputError(f"no nodes {', '.join(map(repr, sorted(unknown)))} in this index: nothing was deleted")
        changed, kept = [], []
        for key, nodes in held.items():
            left = [node for node in nodes if node.node_id not in given]
            if len(left) == len(nodes):
                kept.append(key)
            elif any(node.get_content().strip() for node in left):
                changed.append(to_document(key, left, hash=hash_of(left)))
        if given:
            self._written(changed, shelf, delete_missing=True, keep=kept)

    def _delete_node(self, node_id: str, **delete_kwargs: Any) -> None:
        self.delete_nodes([node_id])

    # The same, asynchronously. Transformations run in the caller's event loop, where they may ask an LLM: only reading
    # is the engine's work.

    async def ainsert(self, document: Document, **insert_kwargs: Any) -> None:
        await self.arefresh_ref_docs([document], **insert_kwargs)

    async def aupdate_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        await self.arefresh_ref_docs([document], **update_kwargs)

    async def arefresh_ref_docs(
        self,
        documents: Sequence[Document],
        *,
        skip_bad: bool = True,
        delete_missing: bool = False,
        **update_kwargs: Any,
    ) -> list[bool]:
        _handed_on(update_kwargs)
        with self._callback_manager.as_trace("refresh_ref_docs"):
            given = Given.documents(documents, skip_bad=skip_bad)
            unread = given.unread(await self.engine.run(self._hashes))
            made = await given.acut(unread, self._transformations)
            return await self.engine.run(lambda: self._put(given, made, self.documents, delete_missing=delete_missing))

    async def adelete_ref_doc(self, ref_doc_id: str, delete_from_docstore: bool = False, **delete_kwargs: Any) -> None:
        await self.engine.run(lambda: self.delete_ref_doc(ref_doc_id, **delete_kwargs))

    async def ainsert_nodes(self, nodes: Sequence[BaseNode], *, skip_bad: bool = True, **insert_kwargs: Any) -> None:
        await self.engine.run(lambda: self.insert_nodes(nodes, skip_bad=skip_bad, **insert_kwargs))

    async def adelete_nodes(
        self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        await self.engine.run(lambda: self.delete_nodes(node_ids, **delete_kwargs))

    def _hashes(self) -> dict[str, str]:
        """What tells each document from an older or newer one of its id."""
        documents = self.documents
        return {info.key: info.hash for info in documents.info()} if documents.version else {}

    def _kept(self, documents: Kept, *, create: bool = False) -> dict[str, list[BaseNode]]:
        """The nodes of each document; none where nothing was written, if the index may be made."""
        if create and not documents.version:
            return {}
        kept = {key: from_about(about) for key, about in documents.about().items()}
        if any(not nodes for nodes in kept.values()):  # a context that was not read by an index
            texts = documents.texts()
            kept = {key: nodes or [TextNode(id_=key, text=texts.get(key, ""))] for key, nodes in kept.items()}
        return kept

    def _put(
        self, given: Given, made: Sequence[core.Document], shelf: Kept, *, delete_missing: bool = False
    ) -> list[bool]:
        """Write what was made of the given documents; says which of them are new or changed."""
        changed = self._written(made, shelf, delete_missing=delete_missing, keep=[*given.parts, *given.bad])
        return [changed.get(key, False) for key in given.keys]

    def _written(
        self, documents: Sequence[core.Document], shelf: Kept, *, delete_missing: bool, keep: Sequence[str]
    ) -> dict[str, bool]:
        with tqdm(desc="Folding", unit=" tokens", disable=not self._show_progress) as bar:
            how: dict[str, Any] = {"delete_missing": delete_missing, "keep": keep, "progress": bar.update}
            written = shelf.put(documents, **how)
        self.windows_folded += written.windows
        return dict(zip([document.key for document in documents], written.changed, strict=True))


def _joined(held: Sequence[BaseNode], more: Sequence[BaseNode]) -> list[BaseNode]:
    """The nodes of a document with more of them: one of the same id in the older one's place, no text twice."""
    found = {node.node_id: node for node in held}
    texts = {node.get_content(MetadataMode.LLM) for node in held}
    for node in more:
        text = node.get_content(MetadataMode.LLM)
        if node.node_id in found or text not in texts:
            found[node.node_id] = node
            texts.add(text)
    return list(found.values())


def _handed_on(kwargs: dict[str, Any]) -> None:
    """Raises ConfigError for an option that nobody reads."""
    if unknown := sorted(set(kwargs) - set(HANDED_ON)):
        raise ConfigError(f"unknown option {', '.join(unknown)}; there are skip_bad and delete_missing")
