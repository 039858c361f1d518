"""LlamaIndex's documents and nodes as the core's documents, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.schema import BaseNode, Document, MetadataMode, NodeRelationship, TextNode, TransformComponent
from llama_index.core.storage.docstore.utils import doc_to_json, json_to_doc

from beacon_memory.sessions import documents as core


class Whole(TransformComponent):
    """A document is one node: it is read whole, so nothing is split."""

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
        return [_node(node) if isinstance(node, Document) else node for node in nodes]


def to_documents(nodes: Sequence[BaseNode]) -> list[core.Document]:
    """Nodes by the document they were made of, in the order of the first of each; one without stands for itself."""
    parts: dict[str, list[BaseNode]] = {}
    for node in nodes:
        parts.setdefault(node.ref_doc_id or node.node_id, []).append(node)
    return [
        core.Document(
            key,
            "\n\n".join(node.get_content(MetadataMode.LLM) for node in made),
            about={"nodes": [doc_to_json(node) for node in made]},
            hash=_hash(made),
        )
        for key, made in parts.items()
    ]


def from_about(about: Mapping[str, Any]) -> list[BaseNode]:
    """The nodes that were kept beside a document."""
    return [json_to_doc(found) for found in about.get("nodes", ())]


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


def _hash(nodes: Sequence[BaseNode]) -> str:
    """Its document's hash where the nodes know it: what LlamaIndex takes for a change."""
    source = nodes[0].source_node
    if source is not None and source.hash:
        return source.hash
    return hashlib.sha256("".join(node.hash for node in nodes).encode()).hexdigest()
