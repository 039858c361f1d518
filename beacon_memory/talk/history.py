"""Which part of a message list a session holds already: read once, never twice, forked where the past was edited."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from beacon_memory.errors import ConfigError

Message = Mapping[str, Any]
History = Literal["auto", "append", "full"]
GREETING = 2  # messages: an exchange that two talks may begin with


@dataclass(frozen=True)
class Match:
    """Where a list of messages meets what is stored."""

    kept: int  # of the stored messages: what comes later belongs to another branch
    known: int  # of the given messages: stored already
    late: tuple[int, ...] = ()  # of those, by place: not stored after all, and read behind what is kept


def match(stored: Sequence[Message], given: Sequence[Message], history: History = "auto") -> Match:
    """How `given` continues `stored`.

    - `append`: all of it is new.
    - `full`: it is the whole conversation; from the first difference on, the stored one is another branch.
    - `auto`: messages with a stored one's `id` and words are that one (see `_by_ids`). Where only other words have a
      stored `id`, the list begins there. Without ids: the whole conversation where it begins as the stored one does;
      its first messages and its newest ones, without those between; else its newest part, trimmed, where it begins
      somewhere within; else new. One exchange that is equal may be chance (a greeting in a new window), so what comes
      behind it is new; behind more than one it is an edit. A list in which the assistant never speaks, and in which no
      message has the `id` of a stored one, is always new: saying "hello" again does not go back to the first hello.

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
    if (found := _by_ids(stored, given)) is not None:
        return found
    places = {m["id"]: n for n, m in enumerate(stored) if m.get("id")}
    # What the ids say comes first: two messages may be equal in words.
    begin = next((places[m["id"]] - n for n, m in enumerate(given) if m.get("id") in places), None)
    if begin is not None and begin >= 0:
        run = _run(stored, given, begin)
        return Match(begin + run, run)
    if begin is None and all(m["role"] == "user" for m in given):
        return Match(len(stored), 0)
    if same in (len(given), len(stored)):
        return Match(same, same)  # the same list again, up to a question; or all that is stored, and more
    if pasted := _pasted(stored, given):
        return Match(len(stored), pasted)
    if ends := _head_and_tail(stored, given, same):
        return Match(len(stored), ends)
    if same:
        return Match(len(stored) if _greets(stored, given, same) else same, same)
    # Trimmed at its front: the place where most of it agrees; one equal message within may be chance.
    runs = [(_run(stored, given, at), at) for at in range(1, len(stored))]
    ending = [run for run, at in runs if run and at + run == len(stored)]
    if ending:
        return Match(len(stored), max(ending))
    if (put := _put_in_front(stored, given)) is not None:
        return put
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


def _by_ids(stored: Sequence[Message], given: Sequence[Message]) -> Match | None:
    """The same where ids tell: where there are messages of a stored one's `id` and words. None where there are none.

    What stands between two of these may be missing (trimmed), or be worded otherwise (a question without what was
    pasted into it, a result that was cleared): what came after it still stands, so the session goes on with the words
    it has. What is new between them is an edit, and so is what follows the last of them, unless that is the newest one
    that is stored. What stands before the first of them, in the place of the front (a summary, examples), is late.
    """
    anchors = _anchors(stored, given)
    if not anchors:
        return None
    first, at = anchors[0]
    while first and at and _agree(stored[at - 1], given[first - 1]):
        first, at = first - 1, at - 1
    if first and not at and anchors[-1][1] < len(stored) - 1:
        return Match(0, 0)  # something was put in front of a talk that goes on otherwise
    kept, known = anchors[0][1] + 1, anchors[0][0] + 1
    for (g, s), (later_g, later_s) in pairwise(anchors):
        before = _run(stored[s + 1 : later_s], given[g + 1 : later_g], 0)
        said, there = given[g + 1 + before : later_g], stored[s + 1 + before : later_s]
        after = _run(there[::-1], said[::-1], 0)
        said, there = said[: len(said) - after], there[: len(there) - after]
        named = {m["id"] for m in there if m.get("id")}
        reworded = all(m.get("id") in named for m in said)
        if said and not reworded and (len(said) != len(there) or any(map(_other, there, said))):
            kept, known = s + 1 + before, g + 1 + before
            break
        kept, known = later_s + 1, later_g + 1
    else:
        run = _run(stored[kept:], given[known:], 0)
        kept, known = kept + run, known + run
    places = {m["id"]: n for n, m in enumerate(stored[:kept]) if m.get("id")}
    front = range(0 if _stands(stored[:kept], given[:first]) else first)
    moved = {g for g, m in enumerate(given[:known]) if m.get("id") in places}
    return Match(kept, known, tuple(g for g in front if g not in moved))


def _anchors(stored: Sequence[Message], given: Sequence[Message]) -> list[tuple[int, int]]:
    """Places in `given` and in `stored` of equal messages with an id that neither has twice, in the order of both."""
    twice = {name for each in (stored, given) for name, n in Counter(m.get("id") for m in each).items() if n > 1}
    places = {m["id"]: n for n, m in enumerate(stored) if m.get("id") and m["id"] not in twice}
    found = [(g, places[m["id"]]) for g, m in enumerate(given) if m.get("id") in places]
    found = [(g, s) for g, s in found if _same(stored[s], given[g])]
    ordered: list[tuple[int, int]] = []
    for g, s in reversed(found):  # a summary is said again in front of what it was said behind
        if not ordered or s < ordered[-1][1]:
            ordered.append((g, s))
    return ordered[::-1] if 2 * len(ordered) > len(found) else []


def _greets(stored: Sequence[Message], given: Sequence[Message], same: int) -> bool:
    """Whether all that the list has in common with what is stored is one exchange at the beginning of both."""
    if same > GREETING or given[same - 1]["role"] != "assistant":
        return False
    return not any(_same(a, b) for a in stored for b in given[same:])


def _head_and_tail(stored: Sequence[Message], given: Sequence[Message], same: int) -> int:
    """How many messages are the first ones of what is stored (up to `same`) and then its last ones; 0 if none are.

    The first ones end with an answer: a question and an answer that are not told apart make an exchange.
    """
    for head in (n for n in range(same, 0, -1) if given[n - 1]["role"] == "assistant"):
        for tail in range(min(len(given), len(stored)) - head, same - head, -1):
            if _run(stored, given[head : head + tail], len(stored) - tail) == tail:
                return head + tail
    return 0


def _put_in_front(stored: Sequence[Message], given: Sequence[Message]) -> Match | None:
    """Where the newest messages that are stored stand behind something else (a summary, examples); None if not.

    Two or more of them, and in another place than they had: in the same place, what is in front of them is an edit.
    """
    for size in range(min(len(stored), len(given) - 1), 1, -1):
        for at in range(1, len(given) - size + 1):
            if at + size != len(stored) and _run(stored, given[at : at + size], len(stored) - size) == size:
                return Match(len(stored), at + size, tuple(range(at)))
    return None


def _pasted(stored: Sequence[Message], given: Sequence[Message]) -> int:
    """How many messages agree, from the first on, with the end of what is stored, where questions may be worded
    otherwise (what was pasted into them comes back without it) and the newest stored message is an answer; 0 for none.
    """
    if stored[-1]["role"] != "assistant":
        return 0
    for size in range(min(len(stored), len(given)), 0, -1):
        if _same(stored[-1], given[size - 1]) and all(map(_agree, stored[-size:], given)):
            return size
    return 0


def _agree(stored: Message, given: Message) -> bool:
    """Whether they are equal, or one that is no answer may be the other in other words: it has them within it."""
    if _same(stored, given):
        return True
    a, b = stored["content"].strip(), given["content"].strip()
    return stored["role"] != "assistant" and not _other(stored, given) and (a in b or b in a)


def _other(stored: Message, given: Message) -> bool:
    """Whether a message is another one, whatever its words: of another role, or of an id of its own."""
    ids = stored.get("id"), given.get("id")
    return bool(stored["role"] != given["role"] or (all(ids) and ids[0] != ids[1]))


def _stands(stored: Sequence[Message], given: Sequence[Message]) -> bool:
    """Whether these messages stand somewhere in what is stored, one behind another."""
    return any(_run(stored, given, at) == len(given) for at in range(len(stored) - len(given) + 1))


def _same(stored: Message, given: Message) -> bool:
    return bool(stored["role"] == given["role"] and stored["content"].strip() == given["content"].strip())


def _run(stored: Sequence[Message], given: Sequence[Message], at: int) -> int:
    """How many messages agree when `given` begins at `stored[at]`."""
    run = 0
    for a, b in zip(stored[at:], given, strict=False):
        if not _same(a, b):
            break
        run += 1
    return run
