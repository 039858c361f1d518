"""LlamaIndex: an agent with tools, and a memory that holds every call and result, folded.

    python examples/08_llama_index_agent.py [--model MODEL] [--store URL]

The agent is asked three times to order something; each time it is made to call a tool, whose arguments are of the
tool's schema whatever the model says. Then a new agent with the same session answers from memory. SmolLM2 has 135M
parameters: its arguments are valid, and often not what was asked for.
"""

from __future__ import annotations

import asyncio

from command_line import options
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.tools import FunctionTool
from llama_index.llms.beacon import BeaconLLM
from llama_index.memory.beacon import BeaconMemory

ORDERS: list[str] = []


def order(item: str) -> str:
    """Order an item for the workshop."""
    ORDERS.append(item)
    return f"Ordered: {item}. It comes in {len(ORDERS)} days."


async def run(model: str, store: str) -> None:
    """Three runs of one agent, and one of another."""
    llm = BeaconLLM(model=model, store=store, max_new_tokens=64)
    memory = BeaconMemory.from_defaults(session_id="workshop", llm=llm)
    how = {"llm": llm, "system_prompt": "You keep a workshop. Answer in one short sentence."}
    tool = FunctionTool.from_defaults(order, return_direct=True)
    agent = FunctionAgent(tools=[tool], initial_tool_choice="order", **how)
    for asked in ("Please order ten oak boards.", "Please order green paint.", "Please order two steel hinges."):
        said = await agent.run(asked, memory=memory)
        print(f"\n{asked}\n  calls: {[call.tool_kwargs for call in said.tool_calls]}\n  {said}")

    again = BeaconMemory.from_defaults(session_id="workshop", llm=llm)  # as another process would
    said = await FunctionAgent(**how).run("Which paint did I order?", memory=again)
    print(f"\nWhich paint did I order?\n  {said}")
    session, usage = again.engine.session("workshop").info(), said.raw["usage"]
    print(
        f"\n{session.messages} messages in memory: {session.tokens - session.tail} tokens folded into {session.slots} "
        f"slots, {session.tail} raw; the last answer had {usage['prompt_tokens']} tokens in front"
    )


if __name__ == "__main__":
    args = options(__doc__, store="memory://")
    asyncio.run(run(args.model, args.store))
