"""Many streams of one engine: the first token of the slowest, tokens a second, and the longest gap while another folds.

    python -m benchmarks.answers.streams

The control is a fold that lets nobody go first.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import aclosing
from itertools import pairwise

from rich.console import Console
from rich.table import Table

from beacon_memory import BeaconMemory, BeaconModel
from beacon_memory.models.generation import end_ids
from beacon_memory.models.running import line
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.stores import open_store
from benchmarks import synthetic
from benchmarks.bench import BOOK
from benchmarks.speed.decode import Ticks
from benchmarks.speed.turn import questions

STREAMS = 8
ROOM = 8 << 30  # bytes for hot sessions
FOLDED = 8192  # tokens that another session folds meanwhile


class Streams:
    """One model, and hot sessions of one size."""

    def __init__(self, model: BeaconModel, slots: int, *, new: int) -> None:
        store = open_store("memory://")
        self.memory = BeaconMemory(model, store, cache_bytes=ROOM, resident_bytes=ROOM, recall_tokens=0)
        self.engine = BeaconEngine(model, store)
        self.names = [f"session {number}" for number in range(STREAMS)]
        self._asked, self._ends, self._new = questions(), end_ids(model.lm), new
        for seed, name in enumerate(self.names):
            synthetic.filled(self.memory, name, slots, seed=seed)

    async def stream(self, name: str) -> tuple[float, list[float]]:
        """When an answer was asked for, and when each of its tokens was there."""
        ticks, begun = Ticks(self._ends), time.perf_counter()
        async for _ in self._pieces(name, ticks, new=self._new):
            pass
        return begun, ticks.seen

    def _pieces(self, name: str, ticks: Ticks, *, new: int) -> AsyncIterator[str]:
        question = next(self._asked)

        def begin() -> Iterator[str]:
            return self.memory.session(name).ask(question, stream=True, max_new_tokens=new, constraint=ticks)

        return self.engine.stream(begin)

    async def together(self) -> list[tuple[float, list[float]]]:
        """All streams at once."""
        return await asyncio.gather(*(self.stream(name) for name in self.names))

    async def beside_a_fold(self, ids: list[int]) -> list[float]:
        """When each token of one stream was there while another session folded these ids."""
        ticks = Ticks(self._ends)
        async with aclosing(self._pieces(self.names[0], ticks, new=2000)) as pieces:  # type: ignore[type-var]
            await anext(pieces)
            begun = time.perf_counter()
            folding = asyncio.create_task(self.engine.run(lambda: self.memory.model.compress(ids)))
            async for _ in pieces:
                if folding.done():
                    break
        await folding
        return [at for at in ticks.seen if at > begun]


def first(streams: Iterable[tuple[float, list[float]]]) -> list[float]:
    """Seconds to the first token of each stream."""
    return [seen[0] - begun for begun, seen in streams]


async def measured(model: BeaconModel, slots: int, *, new: int, repeats: int, folded: int) -> dict[str, str]:
    """One column of the table."""
    streams, ids = Streams(model, slots, new=new), model.encode(BOOK.read_text(encoding="utf-8"))[:folded]
    for name in streams.names:
        await streams.stream(name)  # hot from here on
    alone, slowest, apart, at_once, steps = [], [], [], [], []
    for _ in range(repeats):
        begun = time.perf_counter()
        one_by_one = [await streams.stream(name) for name in streams.names]
        apart.append(time.perf_counter() - begun)
        alone.append(statistics.median(first(one_by_one)))
        steps += [b - a for _, seen in one_by_one for a, b in pairwise(seen)]
        begun = time.perf_counter()
        together = await streams.together()
        at_once.append(time.perf_counter() - begun)
        slowest.append(max(first(together)))
    step = statistics.median(steps)
    gaps = [b - a for a, b in pairwise(await streams.beside_a_fold(ids))]
    short, line.SHORT = line.SHORT, 1 << 30
    held = [b - a for a, b in pairwise(await streams.beside_a_fold(ids))]
    line.SHORT = short
    tokens = STREAMS * new
    one, many = statistics.median(alone), statistics.median(slowest)
    return {
        "first token, alone": f"{one:.2f} s",
        f"first token, the slowest of {STREAMS}": f"{many:.2f} s: {many / one:.1f}x",
        "tokens a second, one after another": f"{tokens / statistics.median(apart):.0f}",
        f"tokens a second, {STREAMS} streams": f"{tokens / statistics.median(at_once):.0f}: "
        f"{statistics.median(apart) / statistics.median(at_once):.1f}x",
        "step, alone": f"{1000 * step:.0f} ms",
        f"longest gap while another folds {folded} tokens": f"{1000 * max(gaps):.0f} ms: {max(gaps) / step:.1f}x",
        "the same, median": f"{1000 * statistics.median(gaps):.0f} ms: {statistics.median(gaps) / step:.1f}x",
        "control: the fold lets nobody go first": f"{1000 * max(held):.0f} ms: {max(held) / step:.1f}x",
    }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--slots", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--new", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folded", type=int, default=FOLDED, help="tokens")
    args = parser.parse_args()
    console = Console()
    with console.status("measuring"):
        model = BeaconModel.from_pretrained(args.model)
        how = {"new": args.new, "repeats": args.repeats, "folded": args.folded}
        columns = [asyncio.run(measured(model, slots, **how)) for slots in args.slots]
    table = Table("", *(f"{slots} slots" for slots in args.slots))
    for row in columns[0]:
        table.add_row(row, *(column[row] for column in columns))
    console.print(table)


if __name__ == "__main__":
    main()
