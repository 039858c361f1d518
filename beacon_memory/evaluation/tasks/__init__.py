"""The eight tasks. Items are a function of the data, the seed and their number: more items begin with the fewer ones.

May import: evaluation's `items`, `data`, models, `talk`. Hands out: `TASKS`, `make_task`.
A new task goes here: a function that yields items, and its line in `TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from beacon_memory.errors import InputError
from beacon_memory.evaluation.data import Data
from beacon_memory.evaluation.items import Item, Task
from beacon_memory.evaluation.tasks.chat import chat
from beacon_memory.evaluation.tasks.dialogues import dialogue
from beacon_memory.evaluation.tasks.near import near
from beacon_memory.evaluation.tasks.passages import DEPTHS, LONG_SCORED, RAW, copying, long, needle, prose
from beacon_memory.evaluation.tasks.reader import CHOICES, Reader
from beacon_memory.evaluation.tasks.stories import qa
from beacon_memory.models.model import BeaconModel

__all__ = ["TASKS", "Reader", "make_task"]

Maker = Callable[..., Iterator[Item]]
# name -> makes items, headline figure of ranked answers, what it is
# `prose`     256 tokens are folded, the next 128 scored
# `copy`      128 tokens are folded, and read again: exact recall
# `qa`        a story is folded, then asked about what it told 1 to 20 sections ago; the right one also stands among
#             answers of its length about other stories, which no knowledge of how answers sound tells apart
# `dialogue`  a conversation is folded, then the user's own words asked for, among values other people gave
# `needle`    facts in 1K to 16K tokens of a novel, asked for among wrong ones
# `long`      the same 256 tokens of a novel after 2K, 4K, ... of it, the newest 512 raw, the rest read as a document
# `chat`      what was said in passing in a talk of 5 to 50 rounds, some of it changed since, as a session keeps it
# `near`      the same in a talk that is raw, behind more and more slots of something else
TASKS: dict[str, tuple[Maker, str, str]] = {
    "prose": (prose, "kept", "share of the context's worth kept, next 128 tokens after 256"),
    "copy": (copying, "loss", "loss on the same 128 tokens again, in nats"),
    "qa": (qa, "kept", f"share of the log-likelihood gap of right answers kept; accuracy among {CHOICES}"),
    "dialogue": (dialogue, "accuracy", f"the user's own words among {CHOICES} choices"),
    "needle": (needle, "accuracy", f"a fact in a novel among {2 * len(DEPTHS)} choices"),
    "long": (long, "loss", f"loss on the next {LONG_SCORED} tokens of a novel, the newest {RAW} raw"),
    "chat": (chat, "accuracy", "what was said in passing in a talk, asked in free words"),
    "near": (near, "accuracy", "what was said in the raw tail, behind slots of something else"),
}


def make_task(
    name: str, model: BeaconModel, data: Data, *, items: int, seed: int, ratio: int = 4, **options: Any
) -> Task:
    """A task with as many contexts as ask `items` questions. Raises InputError where the data is missing or too short.

    `options`: `lengths` of needle and long in tokens, of near in slots. `ratio` is what near is made for.
    """
    make, metric, about = TASKS[name]
    only = ratio if make is near else 0
    if only:
        options["ratio"] = ratio
    found: list[Item] = []
    questions = 0
    for item in make(Reader(model), data, seed, **options):
        found.append(item)
        questions += len(item.questions)
        if questions >= items:
            break
    if not found:
        raise InputError(f"task {name} finds nothing to ask in the data")
    return Task(name, about, metric, tuple(found), only)
