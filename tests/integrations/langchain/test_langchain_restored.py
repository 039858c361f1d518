"""Memory that was written by one process is really used in another: it is in the logits, and is not computed again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from langchain_beacon import ChatBeacon

from beacon_memory.testing import redis_server, tiny_checkpoint

FACT = "My dog is called Rex. Rex sleeps on my coat, and every morning Rex and I walk along the river. " * 8
TALE = "The harbour was quiet that night, and the lamps along the quay burned low. " * 60
QUESTION = {"role": "user", "content": "What is my dog called?"}
BEGUN = "Your dog is called"

# Process one: is told, answers, and writes down what it would say next.
TELL = """
import json, sys
sys.path[:0] = json.loads(sys.argv[3])
from langchain_beacon import ChatBeacon
sys.path.insert(0, sys.argv[4])
from test_langchain_restored import FACT, TALE, next_logits
llm = ChatBeacon(model=sys.argv[1], redis_url=sys.argv[2], max_tokens=8, session_id="ada")
llm.invoke(FACT)
llm.invoke(TALE)
print(json.dumps(next_logits(llm, "ada").tolist()))
"""


def next_logits(llm: ChatBeacon, session: str | None) -> torch.Tensor:
    """What may follow the beginning of an answer, read behind a session's slots.  # (vocabulary,)"""
    memory = llm.opened.memory
    model, transcript = memory.model, memory.transcript
    state = memory.session(session).state() if session else None
    ids = [*transcript.turn(QUESTION), *transcript.header(), *model.encode(BEGUN)]
    return model.logits(ids, state)[-1]


def told(model: str, url: str) -> torch.Tensor:
    """The first process, from its start to its end."""
    root = Path(__file__).parents[3]
    paths = json.dumps([str(root), str(root / "integrations/langchain")])
    done = subprocess.run(
        [sys.executable, "-c", TELL, model, url, paths, str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return torch.tensor(json.loads(done.stdout.splitlines()[-1]))


def asked(llm: ChatBeacon, **how: Any) -> tuple[int, int, int]:
    """Tokens seen, tokens read from memory, and tokens computed, of one question."""
    said = llm.invoke(QUESTION["content"], **how)
    usage, beacon = said.usage_metadata, said.response_metadata["beacon"]
    return usage["input_tokens"], usage["input_token_details"]["cache_read"], beacon["raw_tokens"]


def test_a_second_process_has_the_very_logits_of_the_first(tmp_path):
    name = str(tiny_checkpoint(tmp_path, max_position_embeddings=8192))
    with redis_server("valkey") as url:
        first = told(name, url)
        llm = ChatBeacon(model=name, redis_url=url, max_tokens=8)
        assert torch.equal(next_logits(llm, "ada"), first)
        assert not torch.allclose(next_logits(llm, None), first, atol=1e-2)
        seen, read, computed = asked(llm, session_id="ada")
        assert read > 2000
        assert computed == seen - read < 1000
        seen, read, computed = asked(llm)  # the control, with memory off
        assert (read, computed) == (0, seen)
        assert seen < 100
        llm.opened.close()
