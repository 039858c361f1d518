"""LlamaIndex side by side: answers from a story that was read, from its full text, from the best chunks, from nothing.

The same questions of the same stories, the same model, greedy answers of at most 32 tokens:

- `beacon`: a `BeaconIndex` of the story and its query engine
- `beacon, bare`: the same, asked without the words "According to the text above"
- `summary`: LlamaIndex's `SummaryIndex` over the full text, with its own prompt
- `full`: the full text raw in front of our prompt, its cache kept from one question to the next
- `bm25`: the best chunks by BM25, as many KV entries as `beacon` has, raw in front of our prompt
- `none`: the bare question alone

A question and method is a line of --scores, and a run that was stopped goes on; --out gets a line for each method.
Seconds are of one question with the index at hand, the first of a story and later ones: the LLM keeps on the device
what stands in front of a question, raw text too. A story's fold is told apart; how long `full` reads it is not timed.

    python -m benchmarks.quality.query_engine --data fairytaleqa/val.jsonl --scores scores.jsonl \
        --out query_engine.jsonl
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from llama_index.core import SummaryIndex
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.llm import LLMChatStartEvent
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import Document
from llama_index.indices.managed.beacon import BeaconIndex
from llama_index.indices.managed.beacon.answers import QUESTION
from llama_index.llms.beacon import BeaconLLM
from llama_index.llms.beacon.messages import to_plain
from pydantic import Field

from beacon_memory import BeaconModel
from beacon_memory.evaluation.items import Question
from beacon_memory.evaluation.memories import read_raw
from beacon_memory.evaluation.reading import answer_losses, greedy
from beacon_memory.evaluation.retrieval import best_chunks
from beacon_memory.evaluation.scoring import f1
from beacon_memory.fold.prefix import Prefix
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.sessions.context import CONTEXT
from beacon_memory.talk.sources import read_lines
from benchmarks.quality.next_token_loss import interval
from benchmarks.quality.stories import Story, stories
from benchmarks.record import stamp

METHODS = ("beacon", "beacon, bare", "summary", "full", "bm25", "none")
BARE = PromptTemplate("{query_str}")
ANSWER = 32  # tokens of an answer, at most


@dataclass(frozen=True)
class Answered:
    """What a method gave to a question."""

    text: str
    seconds: float
    memory: Prefix  # what stood in front of the prompt
    prompt: Sequence[int]
    entries: int  # KV entries of the story
    bytes: int  # that are kept of it between questions


class Heard(BaseEventHandler):
    """The messages that reached the model."""

    said: list[Any] = Field(default_factory=list)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        if isinstance(event, LLMChatStartEvent):
            self.said.append(event.messages)


class Bench:
    """The methods on one model; what a method needs of a story is made when it is first asked of it."""

    def __init__(self, model: BeaconModel, *, ratio: int) -> None:
        self.model, self.ratio = model, ratio
        self.llm = BeaconLLM(engine=BeaconEngine(model, "memory://"), max_new_tokens=ANSWER, recall_tokens=0)
        self.heard = Heard()
        get_dispatcher().add_event_handler(self.heard)
        self.folding: dict[str, float] = {}  # story -> seconds
        self._indices: dict[str, BeaconIndex] = {}
        self._raws: dict[str, tuple[Sequence[int], Prefix]] = {}  # method -> the ids read last, and their KV

    def line(self, method: str, story: Story, number: int) -> dict[str, Any]:
        """What is kept of a method's answer to a question of a story."""
        self.index(story)  # not within the seconds of a question
        question = story.questions[number]
        given = self.ask(method, story, question)
        scored = replace(question, prompt=tuple(given.prompt))
        return {
            "story": story.name,
            "question": number,
            "method": method,
            "ratio": self.ratio,
            "tokens": len(story.item.context),
            "loss": float(answer_losses(self.model, given.memory, story.item, scored)[0].mean()),
            "f1": f1(given.text, question.gold),
            "seconds": given.seconds,
            "folding": self.folding[story.name] if method.startswith("beacon") else 0.0,
            "entries": given.entries,
            "bytes": given.bytes,
            "answer": given.text,
        }

    def ask(self, method: str, story: Story, question: Question) -> Answered:
        """A method's answer to a question of a story."""
        if method.startswith("beacon"):
            return self._beacon(story, question, bare=method != "beacon")
        if method == "summary":
            return self._summary(story, question)
        if method == "full":
            return self._full(story, question)
        return self._raw(story, question, self._chunks(story, question) if method == "bm25" else ())

    def index(self, story: Story) -> BeaconIndex:
        """The story, read."""
        if story.name not in self._indices:
            began = time.perf_counter()
            document = Document(text=story.text, id_=story.name)
            self._indices[story.name] = BeaconIndex.from_documents(
                [document], llm=self.llm, index_id=story.name, ratio=self.ratio
            )
            self.folding[story.name] = time.perf_counter() - began
        return self._indices[story.name]

    def _beacon(self, story: Story, question: Question, *, bare: bool) -> Answered:
        engine = self.index(story).as_query_engine(**({"text_qa_template": BARE} if bare else {}))
        began = time.perf_counter()
        said = str(engine.query(asked(question)))
        seconds = time.perf_counter() - began
        memory, session = self.llm.opened.memory, CONTEXT + story.name
        stored, _ = memory.store.load(session)
        kept = len(stored.body) + sum(map(len, memory.store.read(stored.digests)))
        past = self.model.empty.extend(memory.context(story.name).state().segments)
        return Answered(said, seconds, past, question.prompt if bare else told(story, question), past.slots, kept)

    def _summary(self, story: Story, question: Question) -> Answered:
        index = SummaryIndex.from_documents([Document(text=story.text, id_=story.name)])
        engine = index.as_query_engine(llm=self.llm)
        self.heard.said.clear()
        began = time.perf_counter()
        said = str(engine.query(asked(question)))
        seconds = time.perf_counter() - began
        assert len(self.heard.said) == 1, "the story went to the model in one prompt"
        plain, talk = to_plain(self.heard.said[0]), story.reader.transcript
        prompt = tuple(talk.prompt([], behind=False, opens=True, asked=plain.messages, system=plain.system))
        with tempfile.TemporaryDirectory() as folder:
            index.storage_context.persist(folder)
            kept = sum(file.stat().st_size for file in Path(folder).iterdir())
        past, rest = self._read("summary", story, prompt)
        return Answered(said, seconds, past, rest, len(prompt), kept)

    def _full(self, story: Story, question: Question) -> Answered:
        past, prompt = self._read("full", story, (*story.item.context, *told(story, question)))
        began = time.perf_counter()
        ask = replace(question, prompt=tuple(prompt))
        (ids,) = greedy(self.model, past, story.item, [ask], limit=ANSWER)
        seconds = time.perf_counter() - began
        kept = len(story.item.context) * self.model.raw_bytes_per_token
        return Answered(self.model.decode(ids), seconds, past, prompt, len(story.item.context), kept)

    def _raw(self, story: Story, question: Question, ids: Sequence[int]) -> Answered:
        """Some of the story, raw in front of the prompt."""
        prompt = told(story, question) if ids else question.prompt
        began = time.perf_counter()
        whole = [*(ids or story.item.start), *prompt]
        (said,) = self.model.generate([whole], max_new_tokens=ANSWER, stop=story.reader.transcript.stop)
        seconds = time.perf_counter() - began
        past = read_raw(self.model, self.model.empty, tuple(ids))
        return Answered(said, seconds, past, prompt, len(ids), len(story.text.encode()) if ids else 0)

    def _chunks(self, story: Story, question: Question) -> Sequence[int]:
        entries = self.llm.opened.memory.context(self.index(story).index_id).info().slots
        return best_chunks(self.model, story.item, question.query, entries, tail=0)

    def _read(self, method: str, story: Story, ids: Sequence[int]) -> tuple[Prefix, Sequence[int]]:
        """What is read already of these ids, and the rest: a story is read raw once for all of its questions."""
        known, past = self._raws.get(method, ((), self.model.empty))
        pairs = enumerate(zip(known, ids[:-1], strict=False))
        same = next((n for n, (one, other) in pairs if one != other), min(len(known), len(ids) - 1))
        if same < len(story.item.context):
            self._raws[method] = (ids, read_raw(self.model, self.model.empty, tuple(ids)))
            return self._read(method, story, ids)
        return past.leading(same), ids[same:]


def asked(question: Question) -> str:
    """A question as it is put to a query engine."""
    return f"{question.query} Answer in a few words."


def told(story: Story, question: Question) -> Sequence[int]:
    """The prompt that our query engine makes of it."""
    return story.reader.prompt(QUESTION.format(query_str=asked(question)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--ratio", type=int, default=4)
    parser.add_argument("--data", type=Path, required=True, help="a JSONL file of stories: sections and questions")
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=60, help="stop after so long; the same command goes on")
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    torch.manual_seed(0)
    model = BeaconModel.from_pretrained(args.model)
    weights, began = str(model.fingerprint), time.monotonic()
    lines = [line for _, line in read_lines(args.scores)] if args.scores.exists() else []
    lines = [line for line in lines if (line["weights"], line["ratio"]) == (weights, args.ratio)]
    done = {(line["story"], line["question"], line["method"]) for line in lines}
    bench = Bench(model, ratio=args.ratio)
    found = stories(model, args.data, questions=args.questions)
    asks = [(story, number, method) for story in found for number in range(len(story.questions)) for method in METHODS]
    for count, (story, number, method) in enumerate(asks):
        if (story.name, number, method) in done:
            continue
        if time.monotonic() - began > 60 * args.minutes:
            break
        line = bench.line(method, story, number) | {"weights": weights}
        lines.append(line)
        with args.scores.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{count + 1} of {len(asks)}", end="\r", file=sys.stderr, flush=True)
    report(lines, args, weights)


def report(lines: Sequence[dict[str, Any]], args: argparse.Namespace, weights: str) -> None:
    """A line for each method, on the questions that all have answered, and the table."""
    by_method = {m: {(li["story"], li["question"]): li for li in lines if li["method"] == m} for m in METHODS}
    common = sorted(set.intersection(*(set(found) for found in by_method.values())))
    if not common:
        return
    story_count = len({story for story, _ in common})
    head = f"{len(common)} questions, {story_count} stories"
    print(f"| {head} | log-likelihood, nats a token | F1 | seconds, first / later | fold | KV entries | KiB kept |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for method, found in by_method.items():
        of = {name: [found[key][name] for key in common] for name in ("loss", "f1", "seconds", "entries", "bytes")}
        folding = {story: found[story, number]["folding"] for story, number in common}
        row = {
            "method": method,
            "model": args.model,
            "ratio": args.ratio,
            "questions": len(common),
            "stories": story_count,
            "log_likelihood": -statistics.fmean(of["loss"]),
            "log_likelihood_interval": interval(of["loss"]),
            "f1": statistics.fmean(of["f1"]),
            "f1_interval": interval(of["f1"]),
            "seconds_first": statistics.median(found[key]["seconds"] for key in common if key[1] == 0),
            "seconds_later": statistics.median(found[key]["seconds"] for key in common if key[1]),
            "fold_seconds": statistics.median(folding.values()) or None,
            "entries": statistics.median(of["entries"]),
            "bytes": statistics.median(of["bytes"]),
            "tokens": statistics.median(found[key]["tokens"] for key in common),
            "weights": weights,
            **stamp(),
        }
        rows.append(row)
        print(
            f"| {method} | {row['log_likelihood']:.2f} ± {row['log_likelihood_interval']:.2f} "
            f"| {row['f1']:.2f} ± {row['f1_interval']:.2f} | {row['seconds_first']:.1f} / {row['seconds_later']:.1f} "
            f"| {'' if row['fold_seconds'] is None else format(row['fold_seconds'], '.1f')} "
            f"| {row['entries']:.0f} | {row['bytes'] / 1024:,.0f} |"
        )
    if args.out:
        args.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
