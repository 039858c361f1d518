"""LangChain: a chat whose memory is in Redis; a second process goes on where the first ended.

    python examples/03_langchain_chat_over_redis.py [--model MODEL] [--redis URL]

Without a URL a Valkey server is started for the example. The second process is sent nothing of what was said before: it
opens the session by its id. The same questions are then asked without memory, to see what the model knows by itself.
"""

from __future__ import annotations

from pathlib import Path

from command_line import processes
from langchain_beacon import ChatBeacon
from langchain_core.messages import SystemMessage

ADA = {"configurable": {"session_id": "ada"}}
BRIEF = SystemMessage("Answer in one short sentence.")
STORY = Path(__file__).with_name("kjv_stories.txt").read_text(encoding="utf-8")[:3000]
TALKS = {
    "one": [
        "Hello! My name is Ada. I live in Lyon, and I have a dog called Rex. I am a carpenter.",
        f"This is what I read to Rex tonight:\n\n{STORY}",
        "My favourite colour is green, and every Friday I swim.",
    ],
    "two": ["What is the name of my dog?", "Where do I live?"],
}


def talk(model: str, url: str, stage: str) -> None:
    """One process: a model, and a few turns."""
    llm = ChatBeacon(model=model, redis_url=url, ttl=86400, max_tokens=32)
    for words in TALKS[stage]:
        print(f"\nAda: {words[:90]}\n  ", end="")
        whole = None
        for chunk in llm.stream([BRIEF, ("human", words)], ADA):
            print(chunk.text, end="", flush=True)
            whole = chunk if whole is None else whole + chunk
        usage = whole.usage_metadata
        read = usage["input_token_details"]["cache_read"]
        raw = whole.response_metadata["beacon"]["raw_tokens"]
        print(f"\n  (seen: {usage['input_tokens']} tokens, from memory: {read}, computed: {raw})")
    if stage == "two":
        print(f"\nWithout memory: {llm.invoke([BRIEF, ('human', TALKS['two'][0])], session_id=None).text}")


if __name__ == "__main__":
    processes(__doc__, __file__, TALKS, talk)
