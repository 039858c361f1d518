"""Answers that another process makes, with the same weights, behind slots that it reads from the same store."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Event
from typing import TYPE_CHECKING, Any, Protocol

from beacon_memory.models.generation import Answer
from beacon_memory.models.running.stream import Stream

if TYPE_CHECKING:
    from beacon_memory.state.state import Segment

TOGETHER = 64  # answers that are waited for at the same time


class Elsewhere(Protocol):
    """What makes answers in the model's place. Where there is one, what is said stays raw until a worker folds it."""

    @property
    def positions(self) -> int:
        """The number of positions there."""

    def stream(
        self, prompt: Sequence[int], segments: Sequence[Segment], *, named: tuple[str, ...], **how: Any
    ) -> Stream:
        """The answer to a prompt behind segments, in pieces. `named` are the names in the store of those whose segments
        these are, as far as it has them; `how` as `Sampling` takes it. Raises InputError for what cannot be asked for.
        """

    def check(self) -> None:
        """Raises ModelUnavailable unless it answers."""

    def close(self) -> None:
        """Let go of it."""


def together(streams: Sequence[Stream], left: Sequence[Event] | None = None) -> list[Answer]:
    """The answers of streams, waited for at the same time; an event of `left`, one for each, ends its answer early."""

    def read(stream: Stream, gone: Event) -> Answer:
        said: list[str] = []
        with closing(stream):
            for piece in stream:
                said.append(piece)
                if gone.is_set():
                    return Answer("".join(said), len(said), "length")
        assert stream.answer is not None
        return stream.answer

    with ThreadPoolExecutor(min(len(streams), TOGETHER) or 1, thread_name_prefix="beacon-answer") as many:
        return list(many.map(read, streams, left or [Event() for _ in streams]))
