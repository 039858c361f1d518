"""What an answer had read again, as LlamaIndex's nodes with scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.schema import (
    BaseNode,
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.indices.managed.beacon.nodes import text_of


def source_nodes(
    about: Mapping[str, Any], nodes: Sequence[NodeWithScore], *, cutoff: float | None = None
) -> list[NodeWithScore]:
    """The passages that were read again for an answer, the best first, each a node with its document's metadata.

    Where none was, `nodes` as they are: the answer had all of them in memory, and nothing else.

    `about` is what the answer tells beside its words; passages that score less than `cutoff` are left out.
    """
    sources = about.get("beacon", {}).get("sources", ())
    if not sources:
        return list(nodes)
    every = [found.node for found in nodes]
    kept = [source for source in sources if cutoff is None or source["score"] >= cutoff]
    return [NodeWithScore(node=_passage(source, every), score=source["score"]) for source in kept]


def _passage(source: Mapping[str, Any], nodes: Sequence[BaseNode]) -> TextNode:
    """A node of a passage's text; a document's has the metadata of the node that it is of."""
    text, place, key = source["text"], f"{source['start']}-{source['end']}", source.get("document")
    if key is None:
        said = {name: source[name] for name in ("role", "id", "message", "time") if name in source}
        return TextNode(id_=f"{source.get('session', 'talk')}:{place}", text=text, metadata=said)
    own = [node for node in nodes if key in (node.ref_doc_id, node.node_id)]
    if "session" not in source:  # the nodes themselves were given with the question: "text 1" is the first
        own = [nodes[int(key.removeprefix("text ")) - 1]]
        key = own[0].node_id
    within = _within(text, own) if own else None
    passage = TextNode(id_=f"{key}:{place}", text=text)
    document = key if within is None else within.ref_doc_id or key
    passage.relationships = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}
    if within is not None:
        passage.metadata = dict(within.metadata)
        if (at := within.get_content().find(text)) >= 0:
            passage.start_char_idx, passage.end_char_idx = at, at + len(text)
    return passage


def _within(text: str, nodes: Sequence[BaseNode]) -> BaseNode:
    """The node of a document that most of a passage stands in. A passage may begin in one and end in the next, or with
    the metadata in front of one.
    """
    start = max(text_of(nodes).find(text), 0)
    end, before, shared = start + len(text), 0, dict[int, int]()
    for n, node in enumerate(nodes):
        if node.get_content().strip():  # as `text_of` has them
            read = node.get_content(MetadataMode.LLM)
            first = before + max(read.rfind(node.get_content()), 0)
            before += len(read)
            shared[n] = min(end, before) - max(start, first)
            before += 2
    return nodes[max(shared, key=lambda n: shared[n], default=0)]
