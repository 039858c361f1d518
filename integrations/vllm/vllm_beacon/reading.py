"""A request's memory from the store: every segment verified, joined, and rotated once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from beacon_memory.errors import (
    CodecError,
    ConfigError,
    ModelMismatch,
    SegmentMissing,
    SessionConflict,
    SessionRolledBack,
)
from beacon_memory.fold.prefix import Prefix, Rope, starts
from beacon_memory.state.codec import decode_segment, require
from beacon_memory.state.head import Entry, SessionHead, check_entry
from beacon_memory.state.state import Segment
from beacon_memory.stores.base import StateStore
from beacon_memory.stores.chain import descends
from vllm_beacon.asked import Asked
from vllm_beacon.places import Piece, placeholders

TRIES = 3  # of reading a session that others move on meanwhile


def pieces_of(owned: Sequence[tuple[str, Segment]]) -> list[Piece]:
    """What stands for segments that are read in this order, each with the name in the store it is read for."""
    left_out = starts([segment for _, segment in owned], behind=False)
    return [
        Piece(owner, segment.name, segment.slots - start)
        for (owner, segment), start in zip(owned, left_out, strict=True)
    ]


@dataclass(frozen=True)
class Reader:
    """Reads memories for one model. It holds no session: each call asks the store."""

    store: StateStore
    rope: Rope
    model: str  # `Fingerprint.model` of what answers
    vocabulary: int
    shape: tuple[int, int, int]  # layers, KV heads, head size
    dtype: torch.dtype
    device: torch.device
    salt: bytes = b""
    place: Callable[[str], StateStore] | None = None  # opens the store of a namespace

    def read(self, asked: Asked, ids: Sequence[int]) -> Prefix:
        """The slots for the placeholders `ids`: keys rotated at 0.., both (layers, 1, kv_heads, slots, head_dim).

        The placeholders must be those of what is read, so nobody is ever answered from another memory. A session that
        has grown since serves the slots it had. Raises SessionNotFound, ModelMismatch, SessionRolledBack,
        SessionConflict for one that has changed otherwise, SegmentMissing, CodecError, StoreUnavailable.
        """
        if asked.fingerprint.model != self.model:
            raise ModelMismatch(
                f"{_named(asked)}: written by model {asked.fingerprint.model}, vLLM serves {self.model}: serve that "
                f"model, or refold for this one"
            )
        for left in reversed(range(TRIES)):
            entries = self._entries(asked)
            try:
                owned = self._segments(asked, entries)
                break
            except SegmentMissing:
                # Another writer may have moved the session on, and removed what it no longer names.
                if not left or self._entries(asked) == entries:
                    raise
        drawn = placeholders(pieces_of(owned), vocabulary=self.vocabulary, salt=asked.salted(self.salt))
        if drawn != list(ids):
            raise SessionConflict(
                f"{_named(asked)}: the prompt's {len(ids)} placeholders are not those of its {len(drawn)} slots: it "
                f"was changed since the prompt was made, or the salt is another; make the prompt again"
            )
        return Prefix(self.rope, self.dtype, self.device).extend([segment for _, segment in owned])

    def _store(self, asked: Asked) -> StateStore:
        """Where it is kept. Raises ConfigError for a namespace that has no place."""
        if asked.namespace is None:
            return self.store
        if self.place is None:
            raise ConfigError(f"namespace {asked.namespace!r}: this reader has one store for all")
        return self.place(asked.namespace)

    def _entries(self, asked: Asked) -> list[tuple[str, Entry]]:
        """What the heads name, each with whose it is."""
        found = []
        for owner in asked.owners:
            stored, version = self._store(asked).load(owner)
            if owner == asked.session and asked.version and descends(version, stored.past, asked.version) is False:
                raise SessionRolledBack(
                    f"session {owner!r} is at version {version}, which does not come after version {asked.version} "
                    f"that the prompt was made for: make the prompt again"
                )
            head = SessionHead.from_bytes(stored.body)
            require(head.fingerprint, asked.fingerprint, what=f"session {owner!r}")
            found += [(owner, entry) for entry in head.entries]
        return found

    def _segments(self, asked: Asked, entries: Sequence[tuple[str, Entry]]) -> list[tuple[str, Segment]]:
        """The first segments, as many as have the slots that are asked for."""
        owned: list[tuple[str, Segment]] = []
        if not asked.slots:
            return owned
        blobs = self._store(asked).stream([entry.blob for _, entry in entries])
        for (owner, entry), blob in zip(entries, blobs, strict=False):
            segment = decode_segment(
                blob, fingerprint=asked.fingerprint, digest=entry.digest, checked=entry.checksum or None
            )
            layers, heads, _, width = (segment.packed.sink_keys if segment.packed else segment.keys).shape
            if (layers, heads, width) != self.shape:
                raise CodecError(
                    f"segment {segment.digest[:12]}: slots of {(layers, heads, width)}, vLLM's model has {self.shape}"
                )
            segment = check_entry(entry, segment)
            # A name is its checksum where other bits are stored under its digest.
            owned.append((owner, _renamed(segment, entry)))
            if sum(piece.slots for piece in pieces_of(owned)) >= asked.slots:
                break
        return owned


def _renamed(segment: Segment, entry: Entry) -> Segment:
    return replace(segment, apart=entry.checksum) if entry.apart else segment


def _named(asked: Asked) -> str:
    return " behind ".join(reversed([f"session {name!r}" for name in asked.owners])) or "no session"
