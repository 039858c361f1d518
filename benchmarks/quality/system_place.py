"""Where a system prompt is followed: in front of everything, the raw tail, its first whole message, or the question.

Behind each talk of ordinary rounds, folded 4x with a raw tail, a question that its system prompt alone answers; greedy
answers of at most 24 tokens. `loss` is of the talk's own next answer behind the same prompt, nats a token: a badly
placed prompt spoils it. `none` is without a system prompt of the caller's: it must follow none.

    python -m benchmarks.quality.system_place --data DATA --talks 4
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from pathlib import Path

import torch

from beacon_memory import BeaconMemory
from beacon_memory.evaluation.data import Data
from beacon_memory.evaluation.scoring import said
from beacon_memory.evaluation.tasks.chat import small_talk
from beacon_memory.sessions.prompt import Prompt
from beacon_memory.sessions.turn import stream_answer
from beacon_memory.state.state import BeaconState

PROMPTS = [  # what is told, what is asked, and what an answer that follows it says
    ("You are Captain Nemo, who talks to a guest.", "What is your name?", ["Nemo"]),
    ("The user's name is Olga Petrova.", "What is my name?", ["Olga"]),
    ("The secret code is 7391. Tell it to whoever asks.", "What is the secret code?", ["7391"]),
    ("Today is Friday, 3 March 2028.", "What day of the week is it today?", ["Friday"]),
    ("The shop closes at 19:40 on all days.", "When does the shop close?", ["19:40", "7:40"]),
    ("You sell only one product, the Lumex lamp.", "Which product do you sell?", ["Lumex"]),
    ("End every answer with the word banana.", "How are you today?", ["banana"]),
    ("Answer every question with the single word: pass.", "What do you like best?", ["pass"]),
]
PLACES = ("none", "first", "tail", "message", "question")


def placed(memory: BeaconMemory, prompt: Prompt, told: list[int], place: str) -> Prompt:
    """The prompt with its system prompt somewhere else."""
    parts = {part.name: list(prompt.part(part.name)) for part in prompt.parts}
    segments, tail, asked = list(prompt.segments), parts["tail"], parts["asked"]
    system: list[int] = []
    if place == "first":
        front = memory.model.compress([*memory.transcript.start, *told], ratio=1, close=True)
        segments = [*front.segments, *segments]
    elif place == "tail":
        system = told
    elif place == "message":
        at = tail.index(told[0]) if told[0] in tail else len(tail)  # a message begins as the system prompt does
        tail = [*tail[:at], *told, *tail[at:]]
    elif place == "question":
        asked = [*told, *asked]
    pieces = [
        ("start", parts["start"]),
        ("system", system),
        ("tail", tail),
        ("asked", asked),
        ("header", parts["header"]),
    ]
    return Prompt.of(segments, pieces, stop=prompt.stop)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--model", default="smollm2")
    options.add_argument("--talks", type=int, default=4)
    options.add_argument("--rounds", type=int, default=30)
    asked = options.parse_args()
    data = Data(asked.data)
    memory = BeaconMemory.open(asked.model, store="memory://")
    followed: dict[str, list[float]] = defaultdict(list)
    losses: dict[str, list[float]] = defaultdict(list)
    for n in range(asked.talks):
        talk = [{"role": role, "content": text} for role, text in small_talk(data, random.Random(n), asked.rounds)]
        session = memory.session(f"talk-{n}", ratio=4)
        session.add(talk[:-2])
        for place in PLACES:
            for m, (system, question, right) in enumerate(PROMPTS):
                told = memory.transcript.system(None if place == "none" else system)
                where = "tail" if place == "none" else place
                prompt = placed(memory, session.prompt_for(question, recall_tokens=0), told, where)
                stream = stream_answer(memory, prompt, max_new_tokens=24)
                followed[place].append(said("".join(stream), right))
                if m == 0:
                    next_turn = session.prompt_for(talk[-2]["content"], recall_tokens=0)
                    after = placed(memory, next_turn, told, where)
                    true = memory.model.encode(talk[-1]["content"])
                    logits = memory.model.logits([*after.ids, *true], BeaconState(after.segments))
                    rows = logits[-len(true) - 1 : -1].log_softmax(-1)
                    losses[place].append(-float(rows[torch.arange(len(true)), torch.tensor(true)].mean()))
            print(n, place, sum(followed[place]), len(followed[place]), losses[place][-1], file=sys.stderr, flush=True)
    print("| system prompt | followed | loss of the talk's next answer |\n|---|---|---|")
    for place in PLACES:
        kept, loss = followed[place], losses[place]
        print(f"| {place} | {sum(kept):.0f} of {len(kept)} | {sum(loss) / len(loss):.3f} |")


if __name__ == "__main__":
    main()
