"""A retriever for code that asks for one: it gives every node, in the order in which they were read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle

if TYPE_CHECKING:
    from llama_index.indices.managed.beacon.base import BeaconIndex


class BeaconRetriever(BaseRetriever):
    """All nodes of an index, without a score: nothing is searched."""

    def __init__(self, index: BeaconIndex, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._index = index

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=node) for node in self._index.nodes()]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await self._index.engine.run(lambda: self._retrieve(query_bundle))
