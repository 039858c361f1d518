"""LlamaIndex's own `Memory` with our block: what its queue has no room for is folded, where it would be dropped.

    python examples/09_llama_index_memory_block.py [--model MODEL] [--redis URL]

The queue is in Redis too (`BeaconRedisChatStore`). Without a URL a Valkey server is started for the example. SmolLM2
is small: a talk that repeats itself makes it repeat itself, whatever stands in its memory.
"""

from __future__ import annotations

import asyncio

from command_line import options, server
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import Memory
from llama_index.llms.beacon import BeaconLLM
from llama_index.memory.beacon import BeaconMemoryBlock, BeaconRedisChatStore

TALK = [
    ("Hello! My name is Ada, and my dog is called Rex.", "Nice to meet you, Ada, and Rex."),
    *((f"Today I made chair number {n} of oak, and sanded its legs.", "That is good work.") for n in range(1, 30)),
]


async def run(model: str, url: str) -> None:
    """A talk that is longer than the queue, and a question about how it began."""
    llm = BeaconLLM(model=model, redis_url=url, max_new_tokens=32)
    memory = Memory.from_defaults(
        session_id="ada",
        token_limit=600,
        token_flush_size=200,
        tokenizer_fn=llm.tokenize,
        chat_store=BeaconRedisChatStore(url),
        memory_blocks=[BeaconMemoryBlock(llm)],
    )
    for asked, said in TALK:
        await memory.aput_messages([ChatMessage(asked), ChatMessage(role="assistant", content=said)])

    question = "What is the name of my dog?"
    await memory.aput(ChatMessage(question))
    queue = await memory.aget()
    response = await llm.achat(queue)
    await memory.aput(response.message)
    folded, slots = llm.engine.session("ada").info(), response.raw["beacon"]["beacon_tokens"]
    print(
        f"{len(queue) - 1} messages in the queue, {folded.messages} in the block: {slots} slots in front of the answer"
    )
    print(f"{question}\n  {response.message.content}")


if __name__ == "__main__":
    args = options(__doc__, redis=None)
    with server(args.redis) as url:
        asyncio.run(run(args.model, url))
