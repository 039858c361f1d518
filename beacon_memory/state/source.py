"""Passages that were found in a memory, and whose words they are, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beacon_memory.state.head import SessionHead


@dataclass(frozen=True)
class Origin:
    """What a segment was folded from: a document, or the conversation of a session."""

    session: str | None = None
    document: str = ""  # the document's id in the session's head; none for the conversation
    # Where both are looked up; None where `document` is the name itself.
    head: SessionHead | None = field(default=None, compare=False)
    later: tuple[Mapping[str, Any], ...] = field(
        default=(), compare=False
    )  # messages folded behind those that the head knows


@dataclass(frozen=True)
class Found:
    """A passage, and how well it fits a question."""

    ids: tuple[int, ...]
    start: int  # where it begins among all ids of its origin
    score: float
    origin: Origin | None  # None where it is not known whose ids it is of

    @property
    def end(self) -> int:
        """Where it ends among all ids of its origin."""
        return self.start + len(self.ids)


@dataclass(frozen=True)
class Source:
    """A passage that was found, in words, and where it was read.

    A passage over several messages is a source for each of them.
    """

    text: str  # of what was really read, special tokens left out
    score: float  # how well it fits the question; from the finder's threshold on, it is read again
    start: int  # its tokens among those of the document, or of the conversation
    end: int
    session: str | None = None
    document: str | None = None  # the document's key or name; None for what was said
    message: int | None = None  # the message's place in the transcript, from 0; None for a document
    id: str | None = None  # the message's id, where its author gave one
    role: str | None = None  # the message's role
    time: str | None = None  # when the message was said, where its author said so

    def to_dict(self) -> dict[str, Any]:
        """What is known of it, as plain JSON values."""
        return {name: value for name, value in asdict(self).items() if value is not None}
