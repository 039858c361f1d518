"""Which part of a message list a session holds already: read once, never twice, forked where the past was edited.

docs/messages.md says the same as a table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from beacon_memory.errors import ConfigError

Message = Mapping[str, Any]
History = Literal["auto", "append", "full"]
Pairs = list[tuple[int, int]]  # (place in the stored list, place in the given one), both rising

ALIGNED = 400  # messages of each list that are aligned one by one, the newest; older ones have to agree from the start


@dataclass(frozen=True)
class Match:
    """Where a list of messages meets what is stored."""

    kept: int  # of the stored messages: what comes later belongs to another branch
    known: int  # of the given messages, from the first on: stored already, but for `extra`
    extra: tuple[int, ...] = ()  # places of given messages before `known` that are not stored: a summary, an example

    def new(self, given: Sequence[Message]) -> list[Message]:
        """The given messages that are not stored, in order."""
        return [*(given[n] for n in self.extra), *given[self.known :]]


def match(stored: Sequence[Message], given: Sequence[Message], history: History = "auto") -> Match:
    """How `given` continues `stored`.

    - `append`: all of it is new.
    - `full`: it is the whole conversation; from the first difference on, the stored one is another branch.
    - `auto`: the two are aligned by ids, and by words where there are none. What is stored is not new. A list that is
      cut, has a gap, or has something put in front goes on at the end. Another branch begins where an id says so, where
      only the newest exchange is said otherwise, or where the list agrees with two of the user's messages before it
      parts; what can be told neither way is appended.

    >>> a, b = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    >>> match([a, b], [a, b, a])
    Match(kept=2, known=2, extra=())
    >>> match([a, b], [a])
    Match(kept=2, known=0, extra=())
    """
    if history not in ("auto", "append", "full"):
        raise ConfigError(f"history is 'auto', 'append' or 'full', not {history!r}")
    if not stored or all_new(given, history):
        return Match(len(stored), 0)
    if history == "full":
        same = _run(stored, given)
        return Match(same, same)
    if all(m["role"] == "user" and not m.get("id") for m in given):
        return _questions(stored, given)
    ids = _ids(stored, given)
    named = [(ids[m["id"]], n) for n, m in enumerate(given) if m.get("id") in ids]
    edited = [(at, n) for at, n in named if not _same(stored[at], given[n])]
    if len(edited) > 1 and len(edited) == len(named):
        ids, edited = {}, []  # another window, which counts from the start again
    pairs = _aligned(stored, given, ids)
    if edited:
        return _branched(pairs, *edited[0])
    return _met(stored, given, pairs, ids) if pairs else Match(len(stored), 0)


def all_new(given: Sequence[Message], history: History) -> bool:
    """Whether all of `given` is new whatever is stored.

    >>> all_new([{"role": "user", "content": "Hi"}], "auto")
    True
    """
    if history == "append":
        return True
    return history == "auto" and len(given) == 1 and given[0]["role"] == "user" and not given[0].get("id")


def _met(stored: Sequence[Message], given: Sequence[Message], pairs: Pairs, ids: Mapping[str, int]) -> Match:
    """Where lists meet that agree in `pairs`."""
    at, last = pairs[-1]
    run = _ending(pairs)
    told = any(given[n].get("id") in ids for _, n in run)
    left = stored[at + 1 :]  # what is stored behind the last that is given
    asked = sum(m["role"] == "user" for m in left)
    if not told and not asked and at == last and len(pairs) <= last and pairs[0][0] < 2:
        # The whole talk, place for place, with some of it said otherwise. More at its front is a summary, or examples.
        first = next(n for n, pair in enumerate(pairs) if pair != (n, n))
        return Match(first, first)
    agreed = sum(given[n]["role"] == "user" for _, n in run)
    newest = asked <= 1 and (len(run) > 1 or at == last)
    if left and (told or newest or agreed > 1):
        return _branched(pairs, at + 1, last + 1)
    return Match(len(stored), last + 1, _between(pairs, last))


def _branched(pairs: Pairs, at: int, last: int) -> Match:
    """Another branch, from `stored[at]` and `given[last]` on."""
    earlier = [pair for pair in pairs if pair[0] < at and pair[1] < last]
    extra = _between(earlier, last)
    if extra and earlier and earlier[0][0] == 0 < earlier[0][1]:
        return Match(0, 0)  # something was put in front of the whole talk
    return Match(at, last, extra)


def _between(pairs: Pairs, last: int) -> tuple[int, ...]:
    """The places of given messages before `last` that are in no pair."""
    return tuple(sorted(set(range(last)) - {n for _, n in pairs}))


def _questions(stored: Sequence[Message], given: Sequence[Message]) -> Match:
    """What a list of the user's messages alone is: the newest is new, and the others where they were not the last that
    the user said.
    """
    asked = [m["content"].strip() for m in stored if m["role"] == "user"]
    before = [m["content"].strip() for m in given[:-1]]
    return Match(len(stored), len(before) if asked[-len(before) :] == before else 0)


def _ids(stored: Sequence[Message], given: Sequence[Message]) -> dict[str, int]:
    """Where each id stands that names one stored message, and no two given ones."""
    there = Counter(m["id"] for m in stored if m.get("id"))
    sent = Counter(m["id"] for m in given if m.get("id"))
    return {m["id"]: n for n, m in enumerate(stored) if m.get("id") and there[m["id"]] == 1 and sent[m["id"]] == 1}


def _aligned(stored: Sequence[Message], given: Sequence[Message], ids: Mapping[str, int]) -> Pairs:
    """The most messages of both lists that are the same, in order; of several ways the one that stands last."""

    def worth(at: int, n: int) -> int:
        a, b = stored[at], given[n]
        if b.get("id") in ids or a.get("id") in ids_sent:
            return 4 if ids.get(b.get("id", "")) == at else 0
        if not _same(a, b):
            return _pasted(a, b)
        return 1 if a.get("id") and b.get("id") else 2  # what has another id may be another message

    ids_sent = {m["id"] for m in given if m.get("id") in ids}
    first = 0
    while first < min(len(stored), len(given)) and worth(first, first) > 1:
        first += 1
    if first < 3 and first not in (len(stored), len(given)):
        first = 0  # a greeting is no sign that it is the whole talk
    # The longest common part of what is left, from its end: a table of what the rest is worth.
    low = max(first, len(stored) - ALIGNED)
    high = max(first, len(given) - ALIGNED)
    rows, columns = len(stored) - low, len(given) - high
    best = [[0] * (columns + 1) for _ in range(rows + 1)]
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            here = worth(low + row - 1, high + column - 1)
            best[row][column] = max(
                best[row - 1][column], best[row][column - 1], best[row - 1][column - 1] + here if here else 0
            )
    pairs, row, column = Pairs(), rows, columns
    while row and column:
        here = worth(low + row - 1, high + column - 1)
        if here and best[row][column] == best[row - 1][column - 1] + here:
            pairs.append((low + row - 1, high + column - 1))
            row, column = row - 1, column - 1
        elif best[row][column] == best[row][column - 1]:
            column -= 1
        else:
            row -= 1
    pairs = [*((n, n) for n in range(first)), *reversed(pairs)]
    # Words alone tell a message with another id only where what stands beside it is the same too.
    strong = [worth(*pair) > 1 for pair in pairs]
    for way in (range(1, len(pairs)), range(len(pairs) - 2, -1, -1)):
        for n in way:
            beside = n - 1 if way.step > 0 else n + 1
            near = abs(pairs[n][0] - pairs[beside][0]) == abs(pairs[n][1] - pairs[beside][1]) == 1
            strong[n] = strong[n] or (strong[beside] and near)
    if not any(strong) and any(given[n]["role"] == "assistant" for _, n in pairs):
        return pairs  # none has its id any more
    return [pair for pair, sure in zip(pairs, strong, strict=True) if sure]


def _ending(pairs: Pairs) -> Pairs:
    """The last pairs, as far back as both lists go on without a gap."""
    run = [pairs[-1]]
    for pair in reversed(pairs[:-1]):
        if pair != (run[0][0] - 1, run[0][1] - 1):
            break
        run.insert(0, pair)
    return run


def _same(a: Message, b: Message) -> bool:
    return a["role"] == b["role"] and a["content"].strip() == b["content"].strip()


def _pasted(stored: Message, given: Message) -> bool:
    """Whether the user's stored message ends in the given one: what was found for a question was pasted before it."""
    whole, bare = str(stored["content"]).strip(), str(given["content"]).strip()
    if stored["role"] != "user" or given["role"] != "user" or len(bare) < 4 or not whole.endswith(bare):
        return False
    before: str = whole[: -len(bare)]
    return not before[-1:].isalnum()


def _run(stored: Sequence[Message], given: Sequence[Message]) -> int:
    """How many messages agree from the start on."""
    run = 0
    for a, b in zip(stored, given, strict=False):
        if not _same(a, b):
            break
        run += 1
    return run
