"""Documents folded apart and joined, or the same text folded in sequence: what right answers are worth behind each.

The documents are a story's sections, its quarters, or whole stories that stand behind it. Gold answers are scored, in
nats a token. Where a document stands behind another, its first slots are sinks: all of them are kept, the first is
left out (as the product does), or all. A story is a line of --out; a run that was stopped goes on.

    python -m benchmarks.quality.joined_documents --data fairytaleqa/val.jsonl --out benchmarks/results/joined.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from beacon_memory import BeaconModel, Segment
from beacon_memory.evaluation.memories import read_raw
from beacon_memory.evaluation.reading import answer_losses
from beacon_memory.fold.prefix import Prefix
from beacon_memory.talk.sources import read_lines
from benchmarks.quality.next_token_loss import interval
from benchmarks.quality.stories import Story, stories
from benchmarks.record import stamp

SINKS = {"all sinks kept": 0, "first tokens left out": 1, "sinks left out": 4}  # of later documents
BASE = "in sequence"


def memories(model: BeaconModel, story: Story, others: Sequence[str]) -> Iterator[tuple[str, Prefix]]:
    """Memories of a story by label; `others` are stories that stand behind it."""
    sections, whole, count = story.sections, story.text, len(story.sections)
    quarters = ["\n\n".join(sections[i * count // 4 : (i + 1) * count // 4]) for i in range(4)]
    yield "none", model.empty
    yield "full", read_raw(model, model.empty, story.item.context)
    yield BASE, model.empty.extend(folded(model, story, whole))
    yield f"stories {BASE}", model.empty.extend(folded(model, story, "\n\n".join([whole, *others])))
    for what, texts in (("sections", sections), ("quarters", quarters), ("stories", [whole, *others])):
        documents = [folded(model, story, text) for text in texts if text]
        for how, left_out in SINKS.items():
            yield f"{what} apart, {how}", joined(model, documents, left_out=left_out)


def folded(model: BeaconModel, story: Story, text: str) -> Sequence[Segment]:
    """A text's segments, folded by itself."""
    return model.compress([*story.reader.start, *model.encode(text)], document=True).segments


def joined(model: BeaconModel, documents: Sequence[Sequence[Segment]], *, left_out: int) -> Prefix:
    """Documents behind one another, later ones less so many of their sinks."""
    first, *others = documents
    memory = model.empty.extend(first)
    for segment in (segment for one in others for segment in one):
        start = min(left_out, segment.sink)
        memory = memory.append(*(t[:, None, :, start:] for t in (segment.keys, segment.values)))
    return memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", type=Path, required=True, help="a JSONL file of stories: sections and questions")
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--stories", type=int, default=3, help="whole stories that stand in one memory")
    parser.add_argument("--minutes", type=float, default=60, help="stop after so long; the same command goes on")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    torch.manual_seed(0)
    model = BeaconModel.from_pretrained(args.model)
    weights, began = str(model.fingerprint), time.monotonic()
    lines = [line for _, line in read_lines(args.out)] if args.out.exists() else []
    done = {line["story"]: line for line in lines if line["weights"] == weights}
    found = stories(model, args.data, questions=args.questions)
    for number, story in enumerate(found):
        if story.name in done:
            continue
        if time.monotonic() - began > 60 * args.minutes:
            break
        others = [found[(number + k) % len(found)].text for k in range(1, args.stories)]
        losses, entries = {}, {}
        for label, memory in memories(model, story, others):
            entries[label] = memory.slots
            losses[label] = [float(answer_losses(model, memory, story.item, q)[0].mean()) for q in story.questions]
        line = {"story": story.name, "tokens": len(story.item.context), "losses": losses, "entries": entries}
        done[story.name] = line | {"weights": weights, **stamp()}
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(done[story.name]) + "\n")
        print(f"{number + 1} of {len(found)}", file=sys.stderr, flush=True)
    if done:
        report(list(done.values()))


def report(lines: Sequence[dict]) -> None:  # type: ignore[type-arg]
    """The table."""
    count = sum(len(line["losses"][BASE]) for line in lines)
    print(f"| {count} questions, {len(lines)} stories | nats a token | to {BASE} | KV entries |\n|---|---|---|---|")
    for label in lines[0]["losses"]:
        values = [value for line in lines for value in line["losses"][label]]
        pairs = [pair for line in lines for pair in zip(line["losses"][label], line["losses"][BASE], strict=True)]
        change = [own - base for own, base in pairs]
        entries = sum(line["entries"][label] for line in lines) / len(lines)
        mean, apart = sum(values) / count, sum(change) / count
        print(f"| {label} | {mean:.3f} | {apart:+.3f} ± {interval(change):.3f} | {entries:.0f} |")


if __name__ == "__main__":
    main()
