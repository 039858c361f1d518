"""LlamaIndex: a chat engine whose memory is in Redis; a second process goes on where the first ended.

    python examples/07_llama_index_chat_over_redis.py [--model MODEL] [--redis URL]

Without a URL a Valkey server is started for the example. The memory is made anew in each process of a session's id and
the server: what was said stands there, and is not sent again. SmolLM2 has 135M parameters: it forgets and invents.
"""

from __future__ import annotations

from command_line import processes
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.llms.beacon import BeaconLLM
from llama_index.memory.beacon import BeaconMemory

TALKS = {
    "one": ["My name is Ada, and I have a dog called Rex.", "I am a carpenter, and my favourite colour is green."],
    "two": ["What is the name of my dog?", "What is my favourite colour?"],
}


def talk(model: str, url: str, stage: str) -> None:
    """One process: a memory, a chat engine, and a few turns."""
    llm = BeaconLLM(model=model, redis_url=url, ttl=86400, max_new_tokens=32)
    memory = BeaconMemory.from_defaults(session_id="ada", llm=llm)
    print(f"in memory: {len(memory.get_all())} messages; given to the engine: {len(memory.get())}")
    chat = SimpleChatEngine.from_defaults(llm=llm, memory=memory)
    for words in TALKS[stage]:
        print(f"\nAda: {words}\n  ", end="")
        for piece in chat.stream_chat(words).response_gen:
            print(piece, end="", flush=True)
        print()


if __name__ == "__main__":
    processes(__doc__, __file__, TALKS, talk)
