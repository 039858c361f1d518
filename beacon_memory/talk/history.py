"""Which part of a message list a session holds already: read once, never twice, forked where the past was edited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from beacon_memory.errors import ConfigError

Message = Mapping[str, Any]
History = Literal["auto", "append", "full"]


@dataclass(frozen=True)
class Match:
    """Where a list of messages meets what is stored."""

    kept: int  # of the stored messages: what comes later belongs to another branch
    known: int  # of the given messages: stored already


def match(stored: Sequence[Message], given: Sequence[Message], history: History = "auto") -> Match:
    """How `given` continues `stored`.

    - `append`: all of it is new.
    - `full`: it is the whole conversation; from the first difference on, the stored one is another branch.
    - `auto`: it begins where the first of its messages that has a stored one's `id` says. Without ids: the whole
      conversation where it begins as the stored one does; else its newest part, trimmed, where it begins somewhere
      within; else new. A list in which the assistant never speaks, and in which no message has the `id` of a stored
      one, is always new: saying "hello" again does not go back to the first hello.

    >>> a, b = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    >>> match([a, b], [a, b, a])
    Match(kept=2, known=2)
    >>> match([a, b], [a])
    Match(kept=2, known=0)
    """
    if history not in ("auto", "append", "full"):
        raise ConfigError(f"history is 'auto', 'append' or 'full', not {history!r}")
    if not stored or all_new(given, history):
        return Match(len(stored), 0)
    same = _run(stored, given, 0)
    if history == "full":
        return Match(same, same)
    places = {m["id"]: n for n, m in enumerate(stored) if m.get("id")}
    # What the ids say comes first: two messages may be equal in words.
    begin = next((places[m["id"]] - n for n, m in enumerate(given) if m.get("id") in places), None)
    if begin is not None and begin >= 0:
        run = _run(stored, given, begin)
        return Match(begin + run, run)
    if begin is None and all(m["role"] == "user" for m in given):
        return Match(len(stored), 0)
    if same:
        return Match(same, same)
    # Trimmed at its front: the place where most of it agrees; one equal message within may be chance.
    runs = [(_run(stored, given, at), at) for at in range(1, len(stored))]
    ending = [run for run, at in runs if run and at + run == len(stored)]
    if ending:
        return Match(len(stored), max(ending))
    run, at = max(runs, key=lambda found: (found[0], found[1]), default=(0, 0))
    if run > 1:
        return Match(at + run, run)
    # Its first message was edited, or it is another conversation.
    answers = {m["content"] for m in stored if m["role"] == "assistant"}
    edited = begin is not None or any(m["role"] == "assistant" and m["content"] in answers for m in given)
    return Match(0, 0) if edited else Match(len(stored), 0)


def all_new(given: Sequence[Message], history: History) -> bool:
    """Whether all of `given` is new whatever is stored.

    >>> all_new([{"role": "user", "content": "Hi"}], "auto")
    True
    """
    if history == "append":
        return True
    return history == "auto" and all(m["role"] == "user" and not m.get("id") for m in given)


def _run(stored: Sequence[Message], given: Sequence[Message], at: int) -> int:
    """How many messages agree when `given` begins at `stored[at]`."""
    run = 0
    for a, b in zip(stored[at:], given, strict=False):
        if a["role"] != b["role"] or a["content"].strip() != b["content"].strip():
            break
        run += 1
    return run
