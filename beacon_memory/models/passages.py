"""Passages: a text's ids cut where sentences end, the same way each time, so that no cut has to be kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

SIZE = 64  # tokens of a passage, at most
STOPS = (".", "!", "?", ".”", '."')


class Cutter:
    """Cuts ids into passages of at most `size` tokens: before a message that begins in the second half of one, else
    after the last full stop there, else at `size`.

    >>> cutter = Cutter(lambda ids: "".join(map(chr, ids)), size=8)
    >>> cutter.spans([ord(letter) for letter in "It is. He was. Nobody knows"])
    [(0, 6), (6, 14), (14, 22), (22, 27)]
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], *, size: int = SIZE, openings: Collection[int] = ()
    ) -> None:
        """`decode` gives the text of ids; `openings` are the ids that a message begins with."""
        self._decode = decode
        self._size = size
        self._openings = frozenset(openings)
        self._stops: dict[int, bool] = {}

    def spans(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Where each passage begins and ends; together they are all of `ids`. What stands behind a passage's `size`
        tokens does not change it.
        """
        found: list[tuple[int, int]] = []
        start = 0
        while start < len(ids):
            end = min(start + self._size, len(ids))
            if end < len(ids):
                second = range(end, start + self._size // 2 + 1, -1)
                ends = [at for at in second if at < len(ids) and ids[at] in self._openings][:1]
                end = next(iter(ends or (at for at in second if self._stop(ids[at - 1]))), end)
            found.append((start, end))
            start = end
        return found

    def _stop(self, token: int) -> bool:
        if token not in self._stops:
            self._stops[token] = self._decode([token]).rstrip().endswith(STOPS)
        return self._stops[token]
