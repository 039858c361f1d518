"""One answer in pieces of text, as it is made."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Self

import torch
from transformers import PreTrainedTokenizerBase, TextStreamer

from beacon_memory.models.generation import Answer, Pieces, StopFilter, ended
from beacon_memory.models.running.rows import Row
from beacon_memory.models.running.running import Running


class Stream(Pieces):
    """An answer in pieces as it is made; `answer` is set once it is complete."""

    def __init__(self, pieces: Generator[str, None, None], whole: list[Answer]) -> None:
        """`pieces` puts the answer into `whole` at its end. It does not refer to this object, so a dropped stream is
        closed at once, not by the next garbage collection.
        """
        self._pieces, self._whole = pieces, whole

    @classmethod
    def of(cls, running: Running, row: Row, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> Self:
        """An answer that a model of this process makes."""
        whole: list[Answer] = []
        return cls(_streamed(running, row, tokenizer, stops, whole), whole)

    @property
    def answer(self) -> Answer | None:
        """The whole answer; None until it is complete."""
        return self._whole[0] if self._whole else None


def _streamed(
    running: Running, row: Row, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], done: list[Answer]
) -> Generator[str, None, None]:
    words, certain, whole = _Words(tokenizer), StopFilter(stops), list[str]()
    with closing(running.tokens(row)) as tokens:
        for token in tokens:
            words.put(torch.tensor([token]))
            if text := certain.feed(words.taken()):
                whole.append(text)
                yield text
        words.end()
        if text := certain.feed(words.taken()) + certain.end():
            whole.append(text)
            yield text
    done.append(Answer("".join(whole), *ended(row.made, row.ends, stopped=certain.stopped)))


class _Words(TextStreamer):  # type: ignore[misc]
    """Text of tokens, held back where the next token may change it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self._text = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._text += text

    def taken(self) -> str:
        """What is certain by now and was not taken before."""
        text, self._text = self._text, ""
        return text
