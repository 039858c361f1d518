"""Folding again, from the messages and ids that are kept beside the slots: what a store has lost, and what another
model or adapter has written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from beacon_memory.config import slot_count
from beacon_memory.errors import (
    CodecError,
    IntegrityError,
    ModelMismatch,
    SegmentMissing,
    SessionNotFound,
    TranscriptError,
)
from beacon_memory.models.joining import with_document
from beacon_memory.models.loading import tokenizer_fingerprint
from beacon_memory.sessions.rewind import Changed
from beacon_memory.sessions.stored import StoredSession, branch_name
from beacon_memory.state.codec import decode_ids, decode_segment, encode_ids, encode_segment
from beacon_memory.state.head import DOCUMENT, Entry, SessionHead, check_entry, read_note, read_page
from beacon_memory.state.state import BeaconState, Segment, chain, overlapped, segment_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from beacon_memory.config import BeaconConfig
    from beacon_memory.sessions.repository import Repository

LOST = (SegmentMissing, IntegrityError, CodecError)


def repair(memory: Repository, session: str, *, places: bool = False) -> int:
    """Fold a session's lost or damaged segments again; gives their number, 0 when nothing was wrong. With `places`,
    fold those again too that an older release wrote without saying which tokens their slots stand for.

    Conversation comes from the messages, documents from their ids. Where what stood in front of a segment is
    unchanged, it comes back under its own digest, for every session that names it. Raises SegmentMissing when the
    messages or ids that it takes are lost too.
    """
    return memory.written(session, lambda: _repair_once(memory, session, places=places))


def refold(
    memory: Repository,
    session: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Move a session, with its branches, to the memory's model and adapter: all of it is folded again, in the order in
    which it was read. Gives the number of tokens read, 0 when it was this model's already.

    The talk comes from the messages, documents from their ids. Where the new model has another tokenizer, these are
    made text again by the old one, `tokenizer`. Until all is folded nothing is written. Raises SessionNotFound,
    SegmentMissing for documents whose ids are not kept, ModelMismatch when the old tokenizer is needed and not given,
    TranscriptError for messages that the new chat template cannot render.
    """

    def once() -> int:
        messages, head, version = memory.view(session, memory.messages, any_model=True)
        if head.fingerprint == memory.model.fingerprint:
            return 0
        moved, state, blobs = _refolded(memory, head, messages, tokenizer, progress)
        StoredSession(memory, session).write(head, moved, state, blobs, expected=version)
        return state.tokens

    tokens = 0
    with suppress(SessionNotFound):
        for number in memory.load(session, any_model=True)[0].branches:
            with suppress(SessionNotFound):  # it has expired
                tokens += refold(memory, branch_name(session, number), tokenizer=tokenizer, progress=progress)
    return tokens + memory.written(session, once)


def _refolded(
    memory: Repository,
    old: SessionHead,
    messages: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase | None,
    progress: Callable[[int], None] | None,
) -> Changed:
    """Head, state and blobs of a session, read anew by this memory's model."""
    model = memory.model
    ratio = old.ratio if model.config.window % old.ratio == 0 else model.config.ratio
    budget = old.budget if old.budget is None or model.config.sink < old.budget <= model.budget else None
    head = replace(
        SessionHead(fingerprint=model.fingerprint, ratio=ratio, budget=budget, slot_dtype=old.slot_dtype),
        notes=old.notes,
        branches=old.branches,
    )
    how: dict[str, Any] = {"known": memory.known, "slot_dtype": head.slot_dtype, "budget": budget, "progress": progress}
    state, blobs, noted = BeaconState(), dict[str, bytes](), list[Mapping[str, Any]]()
    for is_document, run in groupby(messages, key=lambda message: message["role"] == DOCUMENT):
        if not is_document:
            said = list(run)
            ids = [i for message in said for i in memory.transcript.turn(message)]
            start = [] if state.tokens else memory.transcript.start
            state = model.compress([*start, *ids], state, ratio=ratio, **how)
            head = head.with_state(state)
            noted += said
            continue
        for note in run:
            theirs, source = str(note["document"]), _source(memory, old, note, tokenizer)
            digest = hashlib.sha256(source).hexdigest()
            name = digest[:16]
            if name not in head.sources:  # else two names of one text
                finest = min((e.ratio for e in old.entries if e.document == theirs), default=ratio)
                at = finest if model.config.window % finest == 0 else ratio
                ids = decode_ids(source, digest)
                fitted, _ = with_document(model, state.segments, ids, ratio=at, **how)
                state = replace(state, segments=fitted)
                head = head.with_state(state, document=name)
                head, blobs = replace(head, sources={**head.sources, name: digest}), blobs | {digest: source}
            noted.append({**note, "document": name, "tokens": len(decode_ids(source, digest))})
    memory.keep(state.segments)
    head, pages = head.with_messages(noted)
    return head, state, blobs | pages


def _source(
    memory: Repository, old: SessionHead, note: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None
) -> bytes:
    """The ids of a document for this memory's model, as they are kept."""
    if note["document"] not in old.sources:
        raise SegmentMissing(f"the ids of document {note['content']!r} are not kept: forget it, and read it again")
    digest = old.sources[note["document"]]
    (source,) = memory.store.read([digest])
    ids, model = decode_ids(source, digest), memory.model
    if old.fingerprint.tokenizer == model.fingerprint.tokenizer:
        return source
    if tokenizer is None or tokenizer_fingerprint(tokenizer) != old.fingerprint.tokenizer:
        raise ModelMismatch(
            f"document {note['content']!r} is kept as ids of another tokenizer ({old.fingerprint.tokenizer}): give the "
            f"old model's too (refold(tokenizer=…), --from MODEL)"
        )
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return encode_ids([*memory.transcript.start, *model.encode(text)])


def _repair_once(memory: Repository, session: str, *, places: bool) -> int:
    head, version = memory.load(session)
    damaged: set[str] = set()
    found = [_segment(memory, entry, damaged) for entry in head.entries]
    older = [segment if places and segment and segment.placed is None else None for segment in found]
    lost = [index for index, segment in enumerate(found) if segment is None or older[index]]
    sources, blobs = _sources(memory, head, found, damaged)
    for digest in head.pages:
        read_page(memory.store.read([digest])[0], digest)
    for digest in head.notes.values():
        read_note(memory.store.read([digest])[0], digest)
    if not lost and not blobs:
        return 0
    ids = _ids(memory, head, found, sources) if lost else []
    segments, folded = list[Segment](), dict[str, bytes]()
    for index, segment in enumerate(found):
        if segment is None or older[index]:
            segment = _folded(memory, head, index, ids[index], before=segments)
            folded[segment.digest] = encode_segment(
                segment, fingerprint=memory.model.fingerprint, config=_config(memory, head)
            )
        segments.append(segment)
    memory.keep([segments[index] for index in lost])
    after = replace(head, sources=sources).with_state(BeaconState(tuple(segments), head.tail)).where(head, folded)
    memory.commit(session, after, blobs | folded, expected=version, damaged=damaged)
    return len(lost)


def _segment(memory: Repository, entry: Entry, damaged: set[str]) -> Segment | None:
    """The segment as the store has it, or None."""
    try:
        return check_entry(entry, memory.decode(memory.store.read([entry.blob])[0], entry))
    except LOST:
        # Other slots than those this head names are somebody's; what nobody can read is replaced.
        with suppress(SegmentMissing):
            try:
                (blob,) = memory.store.read([entry.digest])
                decode_segment(blob, fingerprint=memory.model.fingerprint, digest=entry.digest)
            except (IntegrityError, CodecError):
                damaged.add(entry.digest)
        return None


def _sources(
    memory: Repository, head: SessionHead, found: Sequence[Segment | None], damaged: set[str]
) -> tuple[dict[str, str], dict[str, bytes]]:
    """Where the ids of each document are, and those blobs that had to be made again."""
    sources, blobs = dict(head.sources), {}
    for document, digest in head.sources.items():
        try:
            decode_ids(memory.store.read([digest])[0], digest)
        except LOST:
            parts = [s for s, entry in zip(found, head.entries, strict=True) if entry.document == document]
            if None in parts:
                del sources[document]
            else:
                blob = encode_ids([i for segment in parts if segment for i in segment.ids])
                sources[document] = hashlib.sha256(blob).hexdigest()
                blobs[sources[document]] = blob
                damaged.add(sources[document])
    return sources, blobs


def _ids(
    memory: Repository, head: SessionHead, found: Sequence[Segment | None], sources: Mapping[str, str]
) -> list[Sequence[int]]:
    """The ids of every segment: those that are there tell them, the others' are taken from the transcript."""
    streams: dict[str, Iterator[int]] = {}
    needed = {entry.document for entry, segment in zip(head.entries, found, strict=True) if segment is None}
    for document in needed:
        if not document:
            streams[document] = iter(_conversation(memory, head))
        elif document in sources:
            streams[document] = iter(decode_ids(memory.store.read([sources[document]])[0], sources[document]))
        else:
            raise SegmentMissing(
                f"segments of document {document} are lost and so are its ids: rewind to before it, and read it again"
            )
    windows: list[Sequence[int]] = []
    for entry, segment in zip(head.entries, found, strict=True):
        stream = streams.get(entry.document)
        ids = tuple(i for _, i in zip(range(entry.tokens), stream, strict=False)) if stream is not None else ()
        if segment is not None and stream is not None and ids != segment.ids:
            raise TranscriptError("the transcript does not give the ids this session was folded from: it cannot repair")
        windows.append(ids if segment is None else segment.ids)
    return windows


def _conversation(memory: Repository, head: SessionHead) -> list[int]:
    """The ids of all that was said."""
    transcript = memory.transcript
    said = [i for m in memory.messages(head) if m["role"] != DOCUMENT for i in transcript.turn(m)]
    total = sum(entry.tokens for entry in head.entries if not entry.document) + len(head.tail)
    ids = said if total == len(said) else [*transcript.start, *said]
    if total != len(ids):
        raise TranscriptError("the model's chat template has changed since this session was written: it cannot repair")
    return ids


def _folded(
    memory: Repository, head: SessionHead, index: int, ids: Sequence[int], *, before: Sequence[Segment]
) -> Segment:
    """A window folded again, in the context that gives its old digest if that is there, else after `before`."""
    model, config, entry = memory.model, _config(memory, head), head.entries[index]
    sinks = [s for s in (0, config.sink) if s <= len(ids)]
    sinks = [s for s in sinks if s + slot_count(len(ids) - s, entry.ratio) == entry.slots]
    # A document was folded by itself, or where layers are recurrent behind all before it.
    own = [s for s, e in zip(before, head.entries[:index], strict=True) if e.document == entry.document]
    contexts = [own, list(before)] if entry.document and not model.recurrent else [list(before)]
    for context in contexts:
        parent, overlap = chain(s.name for s in context), len(overlapped(context, config=config))
        for sink in sinks:
            how: dict[str, Any] = {"ratio": entry.ratio, "sink": sink, "overlap": overlap}
            digest = segment_digest(ids, **how, parent=parent, config=config, fingerprint=model.fingerprint)
            if digest == entry.digest:
                return model.refold(ids, context, ratio=entry.ratio, sink=sink, slot_dtype=config.slot_dtype)
    sink = config.sink if not contexts[0] and config.sink in sinks else (sinks or [0])[0]
    return model.refold(ids, contexts[0], ratio=entry.ratio, sink=sink, slot_dtype=config.slot_dtype)


def _config(memory: Repository, head: SessionHead) -> BeaconConfig:
    """How this session folds."""
    config = memory.model.config
    return config.replace(slot_dtype=head.slot_dtype or config.slot_dtype)
