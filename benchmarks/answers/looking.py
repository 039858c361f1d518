"""What looking again costs a hot turn, from the question to the first word, by whether a passage is found.

A document with made-up facts in it is folded, and two messages stand raw behind it. Questions for the facts, and
questions about nothing that was read, are asked in turn with and without looking again.

    python -m benchmarks.answers.looking
"""

from __future__ import annotations

import argparse
import random
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

from beacon_memory import BeaconMemory, BeaconModel
from beacon_memory.config import FINDERS
from beacon_memory.sessions.session import Session
from beacon_memory.training.facts import draw_facts
from benchmarks.timing import Act, times

TEXT = Path(__file__).parents[2] / "examples" / "kjv_stories.txt"
TALK = [
    {"role": "user", "content": "Hi, I have a few questions about what you have read."},
    {"role": "assistant", "content": "Of course, go ahead."},
]
ELSEWHERE = ("Hello there, and a good morning to you.", "Thank you very much, that was kind of you.", "What is 17 + 5?")
FACTS = 8


def told(memory: BeaconMemory, tokens: int, draw: random.Random) -> list[str]:
    """Fold a text of so many tokens with facts in it as session `flat`; gives the questions for them."""
    facts = draw_facts(draw, FACTS)
    ids = memory.model.encode(TEXT.read_text())[:tokens]
    step = len(ids) // FACTS
    parts = [memory.model.decode(ids[n * step : (n + 1) * step]) for n in range(FACTS)]
    session = memory.session("flat")
    session.add_text(" ".join(f"{part} {fact.told}" for part, fact in zip(parts, facts, strict=True)), name="text")
    session.add(TALK)
    return [fact.ask for fact in facts]


def first_word(session: Session, question: str, *, recall_tokens: int) -> object:
    """Ask, up to the first piece of the answer."""
    return next(session.ask(question, stream=True, max_new_tokens=1, recall_tokens=recall_tokens), None)


def measured(model: BeaconModel, tokens: int, *, repeats: int, recall: int) -> list[str]:
    """The cells of a row."""
    with BeaconMemory.open(model) as memory:
        questions = told(memory, tokens, random.Random(5))
        session = memory.session("flat")
        found = {ask: len(session.prompt_for(ask, recall_tokens=recall).part("recalled")) for ask in questions}
        asked = {"found": [ask for ask in questions if found[ask]], "nothing": list(ELSEWHERE)}
        nothing = [ask for ask in ELSEWHERE if session.prompt_for(ask, recall_tokens=recall).part("recalled")]
        if not asked["found"] or nothing:
            raise SystemExit(f"these questions do not tell the two apart: {found}, {nothing}")
        cells = [str(session.info().slots)]
        for kind in ("nothing", "found"):
            acts = {
                f"{tokens} tokens, {kind}, {recall_tokens} read again, {number}": Act(
                    lambda _, ask=ask, much=recall_tokens: first_word(session, ask, recall_tokens=much)
                )
                for number, ask in enumerate(asked[kind])
                for recall_tokens in (0, recall)
            }
            taken = times(acts, repeats=repeats, told=lambda _: None)
            without, looking = (
                statistics.median(
                    seconds for act, all_of in taken.items() if f" {much} read again" in act for seconds in all_of
                )
                for much in (0, recall)
            )
            cells.append(f"{1000 * without:.0f} ms, {1000 * looking:.0f} ms: {looking / without:.2f}x")
        cells.append(f"{statistics.mean(n for n in found.values() if n):.0f}")
    return cells


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--recall", type=int, default=256)
    parser.add_argument("--finder", default="attention", choices=FINDERS)
    args = parser.parse_args()
    console = Console()
    table = Table("tokens", "slots", "nothing is found", "something is", "tokens read again, mean")
    with console.status("measuring"):
        model = BeaconModel.from_pretrained(args.model, finder=args.finder)
        for tokens in args.tokens:
            table.add_row(str(tokens), *measured(model, tokens, repeats=args.repeats, recall=args.recall))
    console.print(table)


if __name__ == "__main__":
    main()
