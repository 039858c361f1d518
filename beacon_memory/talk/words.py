"""What passages have of a question's words: BM25, as a share of what the question itself would score."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import lru_cache

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"  # Thai, Lao, Burmese, Khmer, kana, Han
_RUNS = re.compile(rf"[{_UNSPACED}]+|[^\W_{_UNSPACED}]+")
_UNSPACED_RUN = re.compile(rf"[{_UNSPACED}]")


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case; of scripts that put no space between words, pairs of letters.

    >>> words_of("It's Ada's house, 東京都.")
    ['it', 's', 'ada', 's', 'house', '東京', '京都']
    """
    found: list[str] = []
    for run in _RUNS.findall(text.lower()):
        pairs = _UNSPACED_RUN.match(run)
        found += [run[at : at + 2] for at in range(max(len(run) - 1, 1))] if pairs else [run]
    return found


def shares(passages: Sequence[str], question: str, *, frame: str = "") -> list[float]:
    """How much of a question's words each passage has: 0 for none, 1 for all of them, more where it repeats some.

    That is the passage's BM25 score over the one that the question would have as a passage; so words that few passages
    have count more, and English stop words not at all. Words that no passage has count half: they may be of the way of
    asking. Passages are cut to one size: theirs does not count. Words of `frame`, such as a chat template's, are not
    the question's.
    The package bm25s must be there (`config.check_finder`).
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # bm25s imports JAX where it is: it would take a whole GPU
    import bm25s
    from bm25s.stopwords import STOPWORDS_EN_PLUS

    stop = {*STOPWORDS_EN_PLUS, *words_of(frame)}
    asked = [word for word in dict.fromkeys(words_of(question)) if word not in stop]
    if not asked or not passages:
        return [0.0] * len(passages)
    said = [_words(text) for text in passages]
    there = set[str]().union(*said)
    known = [word for word in asked if word in there]
    if not known:
        return [0.0] * len(passages)
    index = bm25s.BM25(b=0.0)
    index.index([*said, asked], show_progress=False)
    *scores, least = index.get_scores(known).tolist()
    most: float = index.get_scores(asked).tolist()[-1]
    return [2 * score / (least + most) for score in scores]


@lru_cache(maxsize=4096)
def _words(passage: str) -> list[str]:
    return words_of(passage)
