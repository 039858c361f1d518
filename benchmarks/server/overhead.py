"""What HTTP and the server add to a hot turn: the engine called directly, and the same turn asked for over HTTP.

    python -m benchmarks.server.overhead

Two sessions of the same slots are asked the same questions, in turn, so both give the same answers and grow alike: one
by the engine in this process, one by OpenAI's chat completions, streamed, from a server in this process over the same
engine. Both are warm, and both turns are written. What is told are medians, and the median of the differences of pairs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Iterator

import httpx
import torch
from rich.console import Console
from rich.table import Table

from beacon_memory import BeaconMemory
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import beacon_server, tiny_model
from benchmarks import synthetic

MODEL = "smollm2"
DIRECT, OVER = "engine", "over HTTP"
WARM = 3  # turns that do not count


def direct(engine: BeaconEngine, said: str, *, new: int) -> Iterator[str]:
    """A turn's answer in pieces, by the engine."""
    asked = [{"role": "user", "content": said}]
    yield from engine.reply(asked, session_id=DIRECT, max_new_tokens=new, recall_tokens=0)


def over_http(http: httpx.Client, said: str, *, new: int) -> Iterator[str]:
    """The same by a server. Raises httpx's errors."""
    asked = [{"role": "user", "content": said}]
    body = {
        "model": MODEL,
        "messages": asked,
        "session_id": OVER,
        "max_tokens": new,
        "recall_tokens": 0,
        "stream": True,
    }
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {") and (piece := json.loads(line[6:])["choices"][0]["delta"].get("content")):
                yield piece


def timed(pieces: Iterable[str]) -> tuple[float, float, str]:
    """Seconds to an answer's first piece, and to its end, and what it says."""
    begun, first, said = time.perf_counter(), 0.0, ""
    for piece in pieces:
        first = first or time.perf_counter() - begun
        said += piece
    return first, time.perf_counter() - begun, said


def measured(engine: BeaconEngine, *, slots: int, turns: int, new: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds to the first piece and to the end of each turn, by way."""
    memory: BeaconMemory = engine.memory
    for name in (DIRECT, OVER):
        synthetic.filled(memory, name, slots, seed=0)
    found: dict[str, list[tuple[float, float]]] = {DIRECT: [], OVER: []}
    with beacon_server(engine) as url, httpx.Client(base_url=url, timeout=600) as http:
        for turn in range(-WARM, turns):
            said = f"{turn}. Who was Naomi's husband, and where did they live?"
            ways = {DIRECT: lambda said=said: direct(engine, said, new=new)}
            ways[OVER] = lambda said=said: over_http(http, said, new=new)
            answers = set()
            for way in (DIRECT, OVER) if turn % 2 else (OVER, DIRECT):
                first, whole, answer = timed(ways[way]())
                answers.add(answer.strip())
                if turn >= 0:
                    found[way].append((first, whole))
            if len(answers) > 1:
                raise RuntimeError(f"the two ways gave other answers: {answers}")
    return found


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=512)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--new", type=int, default=16, help="tokens of an answer")
    parser.add_argument("--tiny", action="store_true", help="a model of no weight: what is left is the rest of a turn")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    engine = BeaconEngine(
        "smollm2" if not chosen.tiny else tiny_model(max_position_embeddings=4096), "memory://", name=MODEL
    )
    found = measured(engine, slots=chosen.slots, turns=chosen.turns, new=chosen.new)
    table = Table("", *found, "difference, median of pairs", "its quartiles", title=f"ms, {chosen.threads} threads")
    for place, what in enumerate(("first token", "whole answer")):
        ways = [[1000 * times[place] for times in found[way]] for way in (DIRECT, OVER)]
        more = [b - a for a, b in zip(*ways, strict=True)]
        low, middle, high = statistics.quantiles(more, n=4)
        told = [f"{statistics.median(way):.1f}" for way in ways]
        table.add_row(what, *told, f"{middle:.1f}", f"{low:.1f} to {high:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
