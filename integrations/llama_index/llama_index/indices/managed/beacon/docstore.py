"""The documents of an index as LlamaIndex's docstore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from llama_index.core.schema import BaseNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.storage.kvstore import SimpleKVStore

from beacon_memory.errors import ConfigError


class KeptDocstore(SimpleDocumentStore):
    """Nodes, documents and hashes of an index to read, as they were when it was made. Changing it raises ConfigError:
    the index itself is what is changed.
    """

    def __init__(self, nodes: Sequence[BaseNode], hashes: Mapping[str, str]) -> None:
        kept = SimpleKVStore()
        filled = SimpleDocumentStore(kept)
        filled.add_documents(nodes)
        filled.set_document_hashes(dict(hashes))
        super().__init__(kept)

    def _refused(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ConfigError("an index's docstore is read: change the index itself, by insert, delete_ref_doc, …")

    async def _arefused(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refused()

    add_documents = delete_document = delete_ref_doc = _refused
    set_document_hash = set_document_hashes = _refused
    async_add_documents = adelete_document = adelete_ref_doc = _arefused
    aset_document_hash = aset_document_hashes = _arefused
