"""The retrieval that a memory replaces: BM25 over chunks of the context; the best chunks are read raw."""

from __future__ import annotations

import os
from collections.abc import Sequence

from beacon_memory.errors import MissingExtra
from beacon_memory.evaluation.items import Item
from beacon_memory.models.model import BeaconModel
from beacon_memory.models.passages import SIZE, Cutter


def best_chunks(model: BeaconModel, item: Item, query: str, entries: int, *, tail: int) -> tuple[int, ...]:
    """The ids to read: opening, best chunks in the order of the text, then the raw tail; exactly `entries` of them.

    The last chunk that is taken is cut to fit. Raises MissingExtra.
    """
    body = item.context[len(item.start) : len(item.context) - tail]
    newest = item.context[len(item.context) - tail :]
    room = entries - len(item.start) - tail
    cuts = chunk_ends(model, body, size=max(8, min(SIZE, room)))
    spans = list(zip([0, *cuts], cuts, strict=False))
    scores = word_scores([model.decode(body[start:end]) for start, end in spans], query)
    taken: list[tuple[int, int]] = []
    # Of equals the newest: what a user would fall back on.
    for place in sorted(range(len(spans)), key=lambda place: (scores[place], place), reverse=True):
        start, end = spans[place]
        taken.append((start, min(end, start + room)))
        room -= taken[-1][1] - start
        if not room:
            break
    return (*item.start, *(i for start, end in sorted(taken) for i in body[start:end]), *newest)


def word_scores(texts: Sequence[str], query: str) -> list[float]:
    """The BM25 score of each text for a query. Raises MissingExtra."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # bm25s imports JAX where it is: it would take a whole GPU
    try:
        import bm25s
    except ImportError as exc:
        raise MissingExtra("method bm25 needs the package bm25s: pip install 'beacon-memory[eval]'") from exc
    corpus = bm25s.tokenize(list(texts), stopwords="en", show_progress=False)
    asked = bm25s.tokenize([query], stopwords="en", show_progress=False, return_ids=False)[0]
    known = [word for word in asked if word in corpus.vocab]
    if not known:
        return [0.0] * len(texts)
    index = bm25s.BM25()
    index.index(corpus, show_progress=False)
    scores: list[float] = index.get_scores(known).tolist()
    return scores


def chunk_ends(model: BeaconModel, ids: tuple[int, ...], *, size: int) -> list[int]:
    """Where chunks of at most `size` tokens end: the passages that a memory looks at again."""
    return [end for _, end in Cutter(model.decode, size=size).spans(ids)]
