"""Our engine, vLLM with raw prompts of the whole history, and vLLM with our connector: the table of docs/vllm.md.

Sessions are documents of so many tokens. First tokens, and each number of sessions at once, are taken of one way after
the other, so that a busy minute of the machine falls on all. At each number everyone is asked once, and then, as in a
next turn, once more, which is timed; where their blocks do not fit into the cache together, the first turn is timed,
because a next one would find nothing.

python -m benchmarks.vllm --tokens 7500 --concurrent 1    # vLLM is in vllm-env, or --python says where
python -m benchmarks.vllm --tables
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_beacon.client import VLLMServer

from beacon_memory import BeaconMemory, BeaconModel
from beacon_memory.errors import SessionExists
from beacon_memory.models.generation import Answer, Sampling
from beacon_memory.sessions.prompt import make_prompt
from beacon_memory.state.state import BeaconState
from benchmarks.record import HERE, newest, read, stamp, write
from benchmarks.reports.speed_tables import fill
from benchmarks.vllm.running import BLOCK, RunningVLLM, running_vllm

STORY = HERE.parent / "examples" / "kjv_stories.txt"
QUESTION = "Tell all of it again, in your own words, from the beginning. Mind part {n}."
ANSWER = 16  # tokens
OURS, RAW, SLOTS = "our engine", "vLLM, raw prompts", "vLLM, our connector"


@dataclass(frozen=True)
class Said:
    """One answer: seconds to its first piece, its tokens, and the KV blocks that vLLM held for it."""

    first: float
    tokens: int
    blocks: int = 0


class Ours:
    """Our engine in this process."""

    name = OURS

    def __init__(self, memory: BeaconMemory, store: str, *, ratio: int, tokens: int) -> None:
        self._memory, self._model, self._store = memory, memory.model, store
        self._ratio, self._tokens = ratio, tokens

    def forget(self) -> None:
        """Have nothing of a session on hand."""
        self._memory = BeaconMemory.open(self._model, self._store)

    def ask(self, session: int, n: int) -> Said:
        begun, first = time.perf_counter(), 0.0
        how: dict[str, Any] = {"recall_tokens": 0, "max_new_tokens": ANSWER}
        opened = self._memory.session(named(self._tokens, self._ratio, session))
        stream: Any = opened.ask(QUESTION.format(n=n), stream=True, **how)
        for _ in stream:
            first = first or time.perf_counter() - begun
        return Said(first, stream.answer.tokens)


class Vllm:
    """vLLM, asked by the ids of a prompt: raw, or behind slots."""

    def __init__(self, server: VLLMServer, running: RunningVLLM, *, ratio: int | None, ids: Sequence[int]) -> None:
        self.name = RAW if ratio is None else SLOTS
        self._server, self._running, self._ratio, self._ids = server, running, ratio, ids

    def forget(self) -> None:
        self._running.forget()

    def ask(self, session: int, n: int, *, probe: bool = False) -> Said:
        begun, first, blocks, whole = time.perf_counter(), 0.0, 0, list[Answer]()
        ids, asked = self._prompt(session, QUESTION.format(n=n))
        body = self._server.vllm.body(self._server.memory.model, Sampling(max_new_tokens=ANSWER))
        body |= {"ignore_eos": True, "stop": [], "stop_token_ids": []}
        with closing(self._server.vllm.stream(ids, asked, body, whole)) as pieces:
            for _ in pieces:
                if not first:
                    first = time.perf_counter() - begun
                    blocks = self._running.cache().held if probe else 0
        return Said(first, whole[0].tokens, blocks)

    def _prompt(self, session: int, question: str) -> tuple[list[int], Any]:
        memory = self._server.memory
        if self._ratio is not None:
            made = self._server.question(named(len(self._ids), self._ratio, session), question, answer=ANSWER)
            return list(made.ids), made.asked
        # No two sessions have a block in common.
        ids = [*memory.model.encode(f"{session}. "), *self._ids][: len(self._ids)]
        asked = [{"role": "user", "content": question}]
        return list(make_prompt(memory, BeaconState((), tuple(ids)), opens=True, asked=asked).ids), None


def named(tokens: int, ratio: int, session: int) -> str:
    """A session's name."""
    return f"{tokens} {ratio}x {session}"


def sessions(memory: BeaconMemory, ids: Sequence[int], *, ratio: int, many: int) -> int:
    """Fold a document once, for so many sessions; gives its slots. What a slot holds changes no time."""
    first = memory.session(named(len(ids), ratio, 0), ratio=ratio)
    first.add_text(memory.model.decode(ids), name="story")
    for n in range(1, many):
        with suppress(SessionExists):  # an earlier run has forked it
            first.fork(named(len(ids), ratio, n))
    return first.info().slots


Found = dict[str, Any]


def measured(ways: Sequence[Ours | Vllm], *, concurrent: Sequence[int], repeats: int, blocks: int) -> list[Found]:
    """Of each way: first tokens cold and hot, KV blocks of one session, and tokens a second. `blocks`: of the cache."""
    found: list[Found] = [{"cold": [], "hot": []} for _ in ways]
    for n in range(repeats):
        for one, way in zip(found, ways, strict=True):
            way.forget()
            one["cold"].append(way.ask(0, 2 * n).first)
            one["hot"].append(way.ask(0, 2 * n + 1).first)
            if isinstance(way, Vllm) and n == 0:
                one["blocks"] = way.ask(0, 99, probe=True).blocks
            print(f"{way.name}: {one}", file=sys.stderr, flush=True)
    for many in concurrent:
        for one, way in zip(found, ways, strict=True):
            way.forget()
            turns = (1,) if many * one.get("blocks", 0) > blocks else (0, 1)
            with ThreadPoolExecutor(many) as asking:
                for turn in turns:
                    begun = time.perf_counter()
                    said = list(asking.map(lambda n, turn=turn, way=way: way.ask(n, 100 + turn), range(many)))
                    seconds = time.perf_counter() - begun
            one[f"rate {many}"] = sum(answer.tokens for answer in said) / seconds
            print(f"{way.name}: {many} at once, {one[f'rate {many}']:.2f} tokens/s", file=sys.stderr, flush=True)
    return found


def run(args: argparse.Namespace, folder: Path) -> None:
    """Measure, and write a line for each length, ratio and way."""
    if not (folder / "model").exists():
        plain = BeaconModel.from_pretrained("smollm2", adapter=None)
        plain.detach().save_pretrained(folder / "model")
        plain.tokenizer.save_pretrained(folder / "model")
    store = f"sqlite:///{folder / 'memory.db'}"
    memory = BeaconMemory.open("smollm2", store)
    ids = memory.model.encode(STORY.read_text())[: args.tokens]
    many = max(args.concurrent)
    slots = {ratio: sessions(memory, ids, ratio=ratio, many=many) for ratio in args.ratios}
    print(f"{args.tokens} tokens: {slots} slots", file=sys.stderr, flush=True)
    with running_vllm(str(args.python.absolute()), folder, store) as running:
        server = VLLMServer(memory, running.url)
        warm = Vllm(server, running, ratio=None, ids=ids[:64])
        warm.ask(0, 0)  # what is done once
        ways: list[tuple[int, Ours | Vllm]] = [(1, Vllm(server, running, ratio=None, ids=ids))]
        for ratio in args.ratios:
            ways += [
                (ratio, Ours(memory, store, ratio=ratio, tokens=args.tokens)),
                (ratio, Vllm(server, running, ratio=ratio, ids=ids)),
            ]
        blocks = running.cache().blocks
        each = [way for _, way in ways]
        for (ratio, way), found in zip(
            ways,
            measured(each, concurrent=args.concurrent, repeats=args.repeats, blocks=blocks),
            strict=True,
        ):
            about = {"tokens": args.tokens, "ratio": ratio, "way": way.name, "slots": slots.get(ratio, args.tokens)}
            row = {"line": f"{args.tokens} {ratio}", "case": way.name, **about, "all": blocks, **found, **stamp()}
            write(args.out, row)
        server.close()


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A row for each length and way, beside raw prompts of the same length."""
    rates = sorted({int(name.split()[1]) for row in rows for name in row if name.startswith("rate ")})
    heads = [f"tokens a second, {many} at once" for many in rates]
    yield f"| tokens | | slots | KV blocks of {BLOCK} | fit in 1 GiB | first token, cold | hot | {' | '.join(heads)} |"
    yield "|---" * (7 + len(rates)) + "|"
    for row in sorted(rows, key=lambda row: (row["tokens"], row["ratio"])):
        (raw,) = (one for one in rows if one["tokens"] == row["tokens"] and one["way"] == RAW)
        fold = "" if row is raw else f", {row['ratio']}x"
        cells = [f"{row['tokens']:,}", row["way"] + fold, "" if row is raw else f"{row['slots']:,}"]
        if blocks := row.get("blocks"):
            fit = f"{row['all'] / blocks:.1f}"
            cells += [str(blocks), fit if row is raw else f"{fit} ({raw['blocks'] / blocks:.2f}x)"]
        else:
            cells += ["", ""]
        for name in ("cold", "hot"):
            ours, theirs = statistics.median(row[name]), statistics.median(raw[name])
            cells.append(_seconds(ours) if row is raw else f"{_seconds(ours)} ({theirs / ours:.3g}x)")
        for many in rates:
            rate, plain_rate = row.get(f"rate {many}"), raw.get(f"rate {many}")
            more = "" if row is raw or rate is None or plain_rate is None else f" ({rate / plain_rate:.3g}x)"
            cells.append("" if rate is None else f"{rate:.3g}{more}")
        yield f"| {' | '.join(cells)} |"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def made(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Where and how it was measured."""
    machine, load = rows[0]["machine"], [row["load"] for row in rows]
    yield f"{machine['cpu']}, {machine['cores']} cores, load {min(load):g} to {max(load):g}; vLLM 0.32.0, float32."
    yield ""
    yield "```text"
    for command in dict.fromkeys(row["command"] for row in rows):
        at = next(row for row in rows if row["command"] == command)
        yield f"{command.replace('.__main__', '')}    # {at['at'][:10]}, commit {at['commit']}"
    yield "```"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, default=Path("vllm-env/bin/python"), help="of an environment with vLLM")
    parser.add_argument("--tokens", type=int, default=7500, help="of a session; SmolLM2 has 8,192 positions")
    parser.add_argument("--ratios", type=lambda text: [int(n) for n in text.split(",")], default=[4, 8])
    parser.add_argument("--concurrent", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=3, help="of first tokens")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "vllm.jsonl")
    parser.add_argument("--folder", type=Path, help="where the model and the sessions are kept for another run")
    parser.add_argument("--tables", action="store_true", help="measure nothing; write the tables")
    args = parser.parse_args()
    if not args.tables:
        with tempfile.TemporaryDirectory() as folder:
            run(args, args.folder or Path(folder))
    rows = list(newest(read(args.out)).values())
    print("\n".join([*table(rows), "", *made(rows)]))
    if args.tables:
        blocks = [*table(rows), "", *made(rows)]
        for path in (HERE.parent / "docs" / "vllm.md", HERE / "README.md"):
            fill(path, {"vllm side by side": iter(blocks)})


if __name__ == "__main__":
    main()
