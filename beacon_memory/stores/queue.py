"""Sessions that wait to be folded: a queue beside the heads, for workers that fold what others have added.

A job is a hint and holds nothing but a session's name: what is to be folded stands in the head. So a job that is done
twice changes nothing, and one that is lost is made again by the session's next turn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A session that a worker has taken."""

    id: str
    session: str
    tries: int  # how often it was taken, this time included


@dataclass(frozen=True)
class Dead:
    """A session that no worker could fold. Its words are all there; they are read raw."""

    session: str
    why: str
    tries: int
    at: float  # seconds since 1970


@dataclass(frozen=True)
class Counts:
    """How long a queue is."""

    waiting: int
    taken: int  # by workers that are at it, or have died
    dead: int


class Queue(ABC):
    """Jobs, each given to one worker at a time, and to another when the first is silent for its `lease`.

    Every worker of a queue uses the same lease, in seconds. Any thread or process may use a queue. Every method raises
    StoreUnavailable.
    """

    @abstractmethod
    def put(self, session: str) -> None:
        """Have a session folded. One that waits already is not put a second time."""

    @abstractmethod
    def take(self, *, lease: float, seconds: float) -> Job | None:
        """The next job, or None when there is none for so many seconds. Jobs whose worker died come first."""

    @abstractmethod
    def renew(self, job: Job, *, lease: float) -> None:
        """Keep a job for another lease."""

    @abstractmethod
    def done(self, job: Job) -> None:
        """Remove a job, and what is said about its session among the dead."""

    @abstractmethod
    def bury(self, job: Job, why: str) -> None:
        """Put a job's session among the dead, in place of what was said about it before."""

    @abstractmethod
    def drop(self, session: str) -> None:
        """Remove what is kept about a session that was forgotten. A job that is taken goes when it is done."""

    @abstractmethod
    def dead(self) -> list[Dead]:
        """The sessions that no worker could fold, by name."""

    @abstractmethod
    def revive(self) -> int:
        """Put all of the dead on the queue again; gives their number."""

    @abstractmethod
    def counts(self) -> Counts:
        """How long it is."""
