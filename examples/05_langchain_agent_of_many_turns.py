"""LangChain: an agent with tools and memory over many turns, whose memory never exceeds its budget.

    python examples/05_langchain_agent_of_many_turns.py [--model MODEL] [--turns N] [--budget SLOTS]

Each turn asks the agent to note something by a tool. `BeaconMemoryMiddleware` folds what is older than the newest
messages into the thread's memory; the graph's state keeps every message. When the budget is full, old memories are
folded again, coarser: none is dropped.
"""

from __future__ import annotations

import argparse
import time

from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain_beacon import BeaconMemoryMiddleware, ChatBeacon
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from transformers.utils import logging

NOTES: list[str] = []
THREAD = {"configurable": {"thread_id": "workshop"}}


@tool(return_direct=True)
def note(fact: str) -> str:
    """Write a fact down."""
    NOTES.append(fact)
    return f"Noted, number {len(NOTES)}."


@wrap_model_call
def must_note(request, handler):
    """The tool is called in every turn, so that a small model has something to remember."""
    return handler(request.override(tool_choice="note"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--budget", type=int, default=600, help="the most slots that memory may take")
    parser.add_argument("--keep", type=int, default=6, help="messages that stay raw")
    parser.add_argument("--ratio", type=int, help="raw tokens a slot stands for at first")
    args = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    llm = ChatBeacon(model=args.model, store="memory://", max_tokens=80, beacon_ratio=args.ratio)
    memory = BeaconMemoryMiddleware(trigger=("messages", 12), keep=("messages", args.keep), budget=args.budget)
    agent = create_agent(
        llm, [note], system_prompt="You keep notes.", checkpointer=InMemorySaver(), middleware=[must_note, memory]
    )
    began, most = time.perf_counter(), 0
    for n in range(args.turns):
        state = agent.invoke({"messages": [("human", f"Note that chair {n} is made of oak.")]}, THREAD)
        answer = next(m for m in reversed(state["messages"]) if m.type == "ai")
        beacon, usage = answer.response_metadata["beacon"], answer.usage_metadata
        most = max(most, beacon["beacon_tokens"])
        assert beacon["beacon_tokens"] <= args.budget
        if n % 20 == 19 or n + 1 == args.turns:
            print(
                f"turn {n + 1}: {len(state['messages'])} messages, {usage['input_tokens']} tokens seen, "
                f"{beacon['beacon_tokens']} slots + {beacon['raw_tokens']} raw, {time.perf_counter() - began:.0f} s",
                flush=True,
            )
    info = llm.opened.session("workshop").info()
    print(f"{len(NOTES)} calls of the tool; {info.messages} messages in memory, at ratios {info.ratios}")
    print(f"never more than {most} slots of {args.budget}")


if __name__ == "__main__":
    main()
