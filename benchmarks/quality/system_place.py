"""Where the system prompt stands behind a folded talk: how well it is followed, and what the talk's answers lose.

A long talk is folded; behind it stand a raw tail that begins within a sentence, and a question. The system prompt
stands in front of the tail, at the tail's first whole message, or right in front of the question. Measured are answers
that do what the system prompt says (in French, "OK" at the end, a tool called), beside those of a model that has no
talk to read, and the loss, in nats a token, of the talk's own next answer.

    python -m benchmarks.quality.system_place --questions 20
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence

import torch

from beacon_memory import BeaconMemory, BeaconModel, BeaconState
from benchmarks.record import stamp

PLACES = ("front", "message", "question")
FRENCH = re.compile(r"\b(le|la|les|un|une|des|est|et|je|vous|dans|pour|que|qui|du|de|il|elle|ce|ne|pas)\b", re.I)
TOOL = (
    "To answer a question about the weather, write only <tool_call>weather(city)</tool_call>, nothing else. "
    "To any other question, write only <tool_call>search(words)</tool_call>."
)
PROMPTS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "French": ("You speak French. Answer every question in French, never in English.", lambda a: _french(a)),
    "OK": ("End every answer with the word OK.", lambda a: a.rstrip(" .!\n\"'").endswith("OK")),
    "tool": (TOOL, lambda a: "<tool_call>" in a),
    "pirate": ("You are a pirate. Begin every answer with 'Arr!'", lambda a: a.lstrip().lower().startswith("arr")),
}
QUESTIONS = (
    "Where is my workshop?", "What wood is the chair made of?", "What is a lathe?", "How is the weather in Lyon?",
    "What did I do on the first day?", "Who is Rex?", "How do I oil a seat?", "What should I cook tonight?",
    "What is the capital of Italy?", "How many legs has a stool?", "Why is the sky blue?", "Tell me about oak.",
    "What is glue made of?", "How is the weather in Paris?", "What is a good name for a cat?",
    "What is seven plus two?",
    "How do I sharpen a chisel?", "What is the moon?", "Who wrote Hamlet?", "What did I do today?",
)  # fmt: skip


NEXT = (
    "Day 19. I worked in my workshop in Lyon on chair number 19, and walked with my dog Rex along the river. "
    "How does that sound?"
)
REPLY = "That sounds like a good day in the workshop. Chair 19 is coming on."


def talk() -> list[dict[str, str]]:
    """A talk of about 2,300 tokens."""
    messages = []
    for day in range(1, 19):
        note = (
            f"Day {day}. I worked in my workshop in Lyon on chair number {day}, sanded its oak legs, oiled the seat "
            f"twice before lunch, and walked with my dog Rex along the river until the lamps were lit. " * 2
        )
        messages += [
            {"role": "user", "content": note + "How does that sound?"},
            {"role": "assistant", "content": f"That sounds like a good day in the workshop. Chair {day} is coming on."},
        ]
    return messages


def turn(memory: BeaconMemory, question: str) -> list[int]:
    """The ids of a question, and of what asks for its answer."""
    return [*memory.transcript.turn({"role": "user", "content": question}), *memory.transcript.header()]


def prompt(memory: BeaconMemory, tail: Sequence[int], question: str, system: str, place: str) -> list[int]:
    """The ids that ask the question behind the slots."""
    transcript = memory.transcript
    told = transcript.system(system)
    begin = transcript.turn({"role": "user", "content": "x"})[:3]
    starts = [n for n in range(len(tail)) if list(tail[n : n + 3]) == begin]
    at = {"front": 0, "message": starts[0] if starts else len(tail), "question": len(tail)}[place]
    return [*tail[:at], *told, *tail[at:], *turn(memory, question)]


def _french(answer: str) -> bool:
    return len(FRENCH.findall(answer)) >= max(2, len(answer.split()) // 8)


def loss(model: BeaconModel, ids: Sequence[int], answer: Sequence[int], state: BeaconState) -> float:
    """The loss of an answer behind ids and slots, in nats a token."""
    with torch.inference_mode():
        logits = model.logits([*ids, *answer], state)[len(ids) - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits.float(), torch.tensor(answer)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--ratio", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    args = parser.parse_args()
    model = BeaconModel.from_pretrained(args.model)
    memory = BeaconMemory.open(model)
    session = memory.session("talk", ratio=args.ratio)
    session.add(talk())
    state = session.state()
    tail, slots = model.tail(state), BeaconState(state.segments)
    read = sum(len(memory.transcript.turn(message)) for message in talk())
    row = stamp() | {"ratio": args.ratio, "read": read, "slots": slots.slots, "tail": len(tail)}
    print(json.dumps(row), file=sys.stderr)
    asked = QUESTIONS[: args.questions]
    for name, (system, does) in PROMPTS.items():
        followed, lost = {}, {}
        fresh = [[*memory.transcript.system(system), *turn(memory, question)] for question in asked]
        alone = model.answers(fresh, max_new_tokens=args.tokens)
        followed["no talk at all"] = sum(does(one.text) for one in alone)
        for place in PLACES:
            prompts = [prompt(memory, tail, question, system, place) for question in asked]
            said = model.answers(prompts, [slots] * len(prompts), max_new_tokens=args.tokens)
            followed[place] = sum(does(one.text) for one in said)
            lost[place] = round(loss(model, prompt(memory, tail, NEXT, system, place), model.encode(REPLY), slots), 4)
        print(json.dumps({"prompt": name, "of": len(asked), "followed": followed, "loss": lost}), flush=True)


if __name__ == "__main__":
    main()
