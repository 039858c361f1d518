"""LangChain: a chat whose memory is in Redis; a second process goes on where the first ended.

    python examples/03_langchain_chat_over_redis.py [--model MODEL] [--redis URL]

Without a URL a Valkey server is started for the example. The second process is sent nothing of what was said before: it
opens the session by its id. The same questions are then asked without memory, to see what the model knows by itself.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

from langchain_beacon import ChatBeacon
from langchain_core.messages import SystemMessage
from transformers.utils import logging

from beacon_memory.testing import redis_server

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
    logging.disable_progress_bar()
    logging.set_verbosity_error()
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--redis", help="URL of a Redis or Valkey server")
    parser.add_argument("--stage", choices=tuple(TALKS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        talk(args.model, args.redis, args.stage)
        return
    with nullcontext(args.redis) if args.redis else redis_server("valkey") as url:
        for stage in TALKS:
            print(f"\n---- process {stage} ----", flush=True)
            how = ["--stage", stage, "--redis", url, "--model", args.model]
            subprocess.run([sys.executable, __file__, *how], check=True)


if __name__ == "__main__":
    main()
