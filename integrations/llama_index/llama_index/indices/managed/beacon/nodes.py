"""LlamaIndex's documents and nodes as the core's documents, and back."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_index.core.constants import DATA_KEY
from llama_index.core.schema import (
    BaseNode,
    Document,
    IndexNode,
    MetadataMode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
    TransformComponent,
)
from llama_index.core.storage.docstore.utils import doc_to_json, json_to_doc

from beacon_memory.errors import InputError
from beacon_memory.state import info as core
from beacon_memory.talk.messages import whole
from beacon_memory.talk.sources import clean_text


class Whole(TransformComponent):
    """A document is one node: it is read whole, so nothing is split."""

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
        return [_node(node) if isinstance(node, Document) else node for node in nodes]


def by_document(nodes: Sequence[BaseNode]) -> dict[str, list[BaseNode]]:
    """Nodes by the document they were made of, in the order of the first of each; one without stands for itself."""
    parts: dict[str, list[BaseNode]] = {}
    for node in nodes:
        source = source_of(node)
        parts.setdefault(plain(node.node_id if source is None else source.node_id), []).append(node)
    return parts


def to_document(key: str, nodes: Sequence[BaseNode], *, hash: str) -> core.Document:
    """Nodes as one document. Raises InputError when there is nothing to read in any of them."""
    text = clean_text(text_of(nodes), what=f"document {key!r}")
    return core.Document(key, text, about={"nodes": [plain(_dumped(node)) for node in nodes]}, hash=hash)


def from_about(about: Mapping[str, Any]) -> list[BaseNode]:
    """The nodes that were kept beside a document. Parts of one id are numbered from the second on: LlamaIndex's
    retrievers and docstores keep one node of an id.
    """
    nodes, seen = [json_to_doc(found) for found in about.get("nodes", ())], Counter[str]()
    for node in nodes:
        name = node.node_id
        seen[name] += 1
        if seen[name] > 1:
            node.relationships.setdefault(NodeRelationship.SOURCE, RelatedNodeInfo(node_id=name))
            node.node_id = f"{name}#{seen[name]}"
    return nodes


def text_of(nodes: Sequence[BaseNode]) -> str:
    """What is read of a document that is made of these nodes: blank ones add nothing."""
    return "\n\n".join(node.get_content(MetadataMode.LLM) for node in nodes if node.get_content().strip())


def check_node(node: BaseNode) -> BaseNode:
    """The node, if it is one. Raises InputError."""
    if not isinstance(node, BaseNode):
        raise InputError(f"documents are LlamaIndex's Documents or nodes, not {node!r:.80}")
    return node


def called(node: BaseNode) -> str:
    """What errors and warnings call a document: its id, and the file and page that its reader has noted."""
    noted = {name: value for name, value in node.metadata.items() if isinstance(value, str | int | Path) and value}
    file = next((noted[name] for name in ("file_path", "file_name", "source", "url", "title") if name in noted), "")
    page = f"page {noted['page_label']}" if "page_label" in noted else ""
    where = ", ".join(str(part) for part in (file, page) if part)
    return f"document {plain(node.node_id)!r}" + (f" ({plain(where)})" if where else "")


def cleaned(node: BaseNode) -> BaseNode:
    """A node as it will be kept: of JSON alone, without what cannot be read. It is the same object where it was so.

    What is not JSON, such as a date or a path in the metadata, becomes its `str()`. The object of an `IndexNode` that
    cannot be written down is left out. Raises InputError for a node that is binary or cannot be kept.
    """
    what = called(node)
    if (text := node.get_content()).replace("\0", "").strip():
        clean_text(text, what=what)
    try:
        found = _dumped(node)
        kept = plain(found)
        # By their words: what stands in metadata may be equal to nothing, or to anything.
        made = node if repr(kept[DATA_KEY]) == repr(found[DATA_KEY]) else json_to_doc(kept)
        made.get_content(MetadataMode.LLM)
    # Metadata holds any object, and templates are anybody's: whatever goes wrong in them, this node cannot be kept.
    except Exception as exc:
        raise InputError(f"{what} cannot be kept: {exc!r:.200}") from exc
    return made


def plain(value: Any) -> Any:
    """A value as JSON has it, with text that UTF-8 can hold.

    >>> import datetime
    >>> plain({1: (2.5, "a\\0b"), "on": datetime.date(2026, 11, 26), "to": float("inf")})
    {'1': [2.5, 'ab'], 'on': '2026-11-26', 'to': 'inf'}
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, Mapping):
        return {plain(key if isinstance(key, str) else str(key)): plain(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [plain(held) for held in value]
    if isinstance(value, set | frozenset):
        return sorted(plain(str(held)) for held in value)
    return whole((value if isinstance(value, str) else str(value)).replace("\0", ""))


def source_of(node: BaseNode) -> RelatedNodeInfo | None:
    """The document that a node says it was made of."""
    source = node.relationships.get(NodeRelationship.SOURCE)
    return source if isinstance(source, RelatedNodeInfo) else None


def version_of(nodes: Sequence[BaseNode]) -> str:
    """The hash of the document that nodes were made of, "" where they do not know it or differ."""
    hashes = {source.hash for node in nodes if (source := source_of(node)) is not None and source.hash}
    return hashes.pop() if len(hashes) == 1 else ""


def hash_of(nodes: Sequence[BaseNode]) -> str:
    """What tells a document that is made of exactly these nodes from others of its id."""
    return hashlib.sha256("".join(f"{node.node_id} {node.hash}" for node in nodes).encode()).hexdigest()


def _dumped(node: BaseNode) -> dict[str, Any]:
    try:
        return doc_to_json(node)
    except ValueError:
        if not isinstance(node, IndexNode) or node.obj is None:
            raise
        return doc_to_json(node.model_copy(update={"obj": None}))


def _node(document: Document) -> TextNode:
    return TextNode(
        id_=document.id_,
        text=document.text,
        metadata=document.metadata,
        excluded_embed_metadata_keys=document.excluded_embed_metadata_keys,
        excluded_llm_metadata_keys=document.excluded_llm_metadata_keys,
        metadata_separator=document.metadata_separator,
        metadata_template=document.metadata_template,
        text_template=document.text_template,
        relationships={NodeRelationship.SOURCE: document.as_related_node_info()},
    )
