"""A thin client is thin: whoever asks a server loads neither torch nor transformers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from puppets import wise

from beacon_memory.testing import beacon_server, scripted_engine

ROOT = Path(__file__).parents[2]
HEAVY = "print(*sorted({'torch', 'transformers', 'safetensors', 'fastapi'} & set(sys.modules)))"
ASKED = {
    "langchain": """
from langchain_beacon import BeaconChatMessageHistory, BeaconLLM, BeaconMemoryMiddleware, ChatBeacon
llm = ChatBeacon(base_url=url)
llm.invoke("My dog is called Rex.", session_id="ada")
assert llm.invoke("What is he called?", session_id="ada").text == "Rex!"
assert "".join(chunk.text for chunk in llm.stream("And now?", session_id="ada")) == "Rex!"
assert BeaconLLM(base_url=url).invoke("called Rex") == "Rex!"
assert len(BeaconChatMessageHistory("ada", base_url=url).messages) == 6
assert llm.with_context("He is called Rex.", context_id="dogs").invoke("Who?").text == "Rex!"
""",
    "llama_index": """
from llama_index.core import Document
from llama_index.core.base.llms.types import ChatMessage
from llama_index.indices.managed.beacon import BeaconIndex
from llama_index.llms.beacon import BeaconLLM
from llama_index.memory.beacon import BeaconMemory, BeaconMemoryBlock
llm = BeaconLLM(base_url=url)
memory = BeaconMemory.from_defaults(session_id="bob", llm=llm)
memory.put(ChatMessage("My dog is called Rex."))
memory.put(ChatMessage("What is he called?"))
assert llm.chat(memory.get()).message.content == "Rex!"
index = BeaconIndex.from_documents([Document(text="He is called Rex.", id_="dog")], llm=llm, index_id="pets")
assert str(index.as_query_engine().query("Who?")) == "Rex!"
""",
    "core": """
from beacon_memory.client.engine import RemoteEngine
engine = RemoteEngine(url)
engine.session("eve").add("My dog is called Rex.")
assert "".join(engine.reply([{"role": "user", "content": "Who?"}], session_id="eve")) == "Rex!"
assert engine.documents("none").version == 0
engine.close()
""",
    "command": """
from beacon_memory import cli
sys.argv = ["beacon-memory", "ask", "zoe", "Who?", "--server", url]
cli.main()
""",
}


@pytest.mark.parametrize("asked", ASKED)
def test_after_an_answer_neither_torch_nor_transformers_is_there(asked: str) -> None:
    engine = scripted_engine(wise)
    engine.session("zoe").add("My dog is called Rex.")
    with beacon_server(engine) as url:
        code = f"import sys\nurl = {url!r}\ntry:\n"
        code += "".join(f"    {line}\n" for line in ASKED[asked].splitlines())
        code += f"except SystemExit as done:\n    assert not done.code\n{HEAVY}\n"
        paths = [str(ROOT), *(str(ROOT / "integrations" / name) for name in ("langchain", "llama_index"))]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("Rex!\n\n" if asked == "command" else "\n")
