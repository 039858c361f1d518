"""Documents and nodes as a caller gives them: by their ids, cleaned, with what is bad among them set apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from llama_index.core.ingestion import arun_transformations, run_transformations
from llama_index.core.schema import BaseNode, TransformComponent
from llama_index.indices.managed.beacon.nodes import (
    by_document,
    called,
    check_node,
    cleaned,
    hash_of,
    plain,
    text_of,
    to_document,
    version_of,
)

from beacon_memory.errors import InputError
from beacon_memory.models.given import given_list
from beacon_memory.state import info as core
from beacon_memory.talk.sources import clean_text, leave_out


@dataclass
class Given:
    """Documents by their ids. Those of one id are parts of one document, and equal parts stand once."""

    skip_bad: bool
    parts: dict[str, list[BaseNode]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)  # what tells a document from an older one of its id
    keys: list[str] = field(default_factory=list)  # of each document, in the order in which they were given
    bad: dict[str, InputError] = field(default_factory=dict)

    @classmethod
    def documents(cls, documents: Sequence[BaseNode], *, skip_bad: bool) -> Given:
        """Documents that are still to be cut into nodes. Raises InputError for a bad one, or where none is good."""
        found, alike = cls(skip_bad), set()
        for document in given_list(documents, "documents"):
            one = found._cleaned(document)
            if one is not None and (one.node_id, one.hash) not in alike:
                alike.add((one.node_id, one.hash))
                found.parts.setdefault(one.node_id, []).append(one)
        for key, parts in found.parts.items():
            hashes = [part.hash for part in parts]
            found.hashes[key] = hashes[0] if len(parts) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        return found._checked()

    @classmethod
    def nodes(cls, nodes: Sequence[BaseNode], *, skip_bad: bool) -> Given:
        """Nodes by the documents they were made of. Raises InputError as `documents` does."""
        found, many = cls(skip_bad), given_list(nodes, "nodes")
        for node in many:
            check_node(node)
        for key, given in by_document(many).items():
            try:
                parts = [cleaned(node) for node in given]
                clean_text(text_of(parts), what=f"document {key!r}")
            except InputError as exc:
                found._refuse(key, exc)
                continue
            found.parts[key], found.hashes[key] = parts, version_of(parts) or hash_of(parts)
        return found._checked()

    def unread(self, held: Mapping[str, str]) -> list[str]:
        """The ids of those that are new or changed, where `held` are the hashes of what is there, by id."""
        return [key for key in self.parts if held.get(key) != self.hashes[key]]

    def cut(self, keys: Iterable[str], transformations: Sequence[TransformComponent]) -> list[core.Document]:
        """These documents in nodes. Raises InputError for one of which nothing is left to read."""
        made: dict[str, list[BaseNode]] = {}
        for key in keys:
            made[key] = [node for one in self.parts[key] for node in run_transformations([one], transformations)]
        return self.made(made)

    async def acut(self, keys: Iterable[str], transformations: Sequence[TransformComponent]) -> list[core.Document]:
        """The same, asynchronously."""
        made: dict[str, list[BaseNode]] = {}
        for key in keys:
            made[key] = [node for one in self.parts[key] for node in await arun_transformations([one], transformations)]
        return self.made(made)

    def made(self, nodes: Mapping[str, Sequence[BaseNode]]) -> list[core.Document]:
        """The core's documents of nodes by id. Raises InputError."""
        found = []
        for key, own in nodes.items():
            try:
                found.append(to_document(key, [cleaned(node) for node in own], hash=self.hashes[key]))
            except InputError as exc:
                self._refuse(key, exc)
                del self.parts[key]
                leave_out([exc], good=bool(self.parts))
        return found

    def _cleaned(self, document: BaseNode) -> BaseNode | None:
        """A document that can be read, None for one that is left out."""
        key = str(plain(check_node(document).node_id))
        self.keys.append(key)
        try:
            one = cleaned(document)
            clean_text(one.get_content(), what=called(document))
        except InputError as exc:
            self._refuse(key, exc)
            return None
        return one

    def _refuse(self, key: str, why: InputError) -> None:
        if not self.skip_bad:
            raise why
        self.bad[key] = why

    def _checked(self) -> Given:
        leave_out(list(self.bad.values()), good=bool(self.parts))
        return self
