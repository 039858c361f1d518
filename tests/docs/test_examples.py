"""Every example runs, as a user would run it, on a tiny model."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from beacon_memory.testing import tiny_checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(example: str, *args: str) -> str:
    done = subprocess.run([sys.executable, str(EXAMPLES / example), *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_main_job_comes_back_in_a_second_process(tmp_path):
    model = tiny_checkpoint(tmp_path / "model", max_position_embeddings=4096)
    (tmp_path / "book.txt").write_text("The door is green and the lease ends in May. " * 150)
    said = run("01_come_back.py", "--model", str(model), "--book", str(tmp_path / "book.txt"))
    assert "process two: recall" in said
    assert "KV entries kept" in said


def test_a_newcomer_trains_an_adapter_and_sees_what_it_gained(tmp_path):
    said = run("02_train_an_adapter.py", "--steps", "40", "--out", str(tmp_path / "adapter"))
    before, fitted, after = (float(line.split("│")[2]) for line in said.splitlines() if line.startswith("│"))
    assert after < fitted
    assert after < before
    assert (tmp_path / "adapter" / "adapter.safetensors").exists()
    assert (tmp_path / "adapter" / "loss.png").exists()


def test_a_langchain_chat_goes_on_in_a_second_process(tmp_path):
    model = tiny_checkpoint(tmp_path / "model", max_position_embeddings=4096)
    said = run("03_langchain_chat_over_redis.py", "--model", str(model))
    read = [int(line.partition("from memory: ")[2].split(",")[0]) for line in said.splitlines() if "seen:" in line]
    assert len(read) == 5
    assert read[3:] == [read[2]] * 2
    assert read[2] > 1000


def test_a_document_longer_than_the_window_stands_in_a_chain(tmp_path):
    model = tiny_checkpoint(tmp_path / "model", max_position_embeddings=4096)
    (tmp_path / "book.txt").write_text("The door is green and the lease ends in May. " * 200)
    said = run("04_langchain_long_document.py", "--model", str(model), "--document", str(tmp_path / "book.txt"))
    read = [int(line.split("from memory: ")[1].split(",")[0]) for line in said.splitlines() if "from memory" in line]
    assert len(read) == 2
    assert min(read) > 4096


def test_an_agents_memory_never_exceeds_its_budget(tmp_path):
    model = tiny_checkpoint(tmp_path / "model", max_position_embeddings=4096)
    said = run("05_langchain_agent_of_many_turns.py", "--model", str(model), "--turns", "24", "--budget", "500")
    assert "24 calls of the tool" in said
    assert "slots of 500" in said
    assert "turn 24: 72 messages" in said


def test_a_query_engine_over_a_folder_folds_nothing_in_the_second_process(tmp_path):
    model, folder = tiny_checkpoint(tmp_path / "model", max_position_embeddings=4096), tmp_path / "texts"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.txt").write_text(f"In book {name} the door is green. " * 40)
    said = run("06_llama_index_query_engine.py", "--model", str(model), "--folder", str(folder))
    windows = [int(line.split()[-1]) for line in said.splitlines() if "windows folded" in line]
    assert windows[0] > 1
    assert windows[1:] == [0, 1]
    assert "2 source nodes" in said


def test_a_chat_engine_goes_on_in_a_second_process(tmp_path):
    model = tiny_checkpoint(tmp_path / "model", max_position_embeddings=4096)
    said = run("07_llama_index_chat_over_redis.py", "--model", str(model))
    held = [line for line in said.splitlines() if line.startswith("in memory")]
    assert held[0].startswith("in memory: 0 messages")
    assert held[1].startswith("in memory: 4 messages")


def test_an_agents_calls_are_in_its_memory(tmp_path):
    model = tiny_checkpoint(tmp_path / "model", max_position_embeddings=4096)
    said = run("08_llama_index_agent.py", "--model", str(model))
    assert said.count("calls: [{'item': ") == said.count("Ordered: ") == 3
    assert "14 messages in memory" in said


def test_what_the_stock_memory_has_no_room_for_is_in_the_block(tmp_path):
    model = tiny_checkpoint(tmp_path / "model", max_position_embeddings=4096)
    said = run("09_llama_index_memory_block.py", "--model", str(model))
    queue, folded = (int(part.split()[0]) for part in said.split(", ", 1)[:2])
    assert queue + folded == 61
    assert folded > 40


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
def test_the_pictures_of_the_page_are_small(tmp_path):
    model = tiny_checkpoint(tmp_path / "model", max_position_embeddings=4096)
    said = run("page_screenshots.py", "--model", str(model), "--out", str(tmp_path))
    sizes = [int(line.split()[-2]) for line in said.splitlines()]
    assert len(sizes) == 3
    assert all(1000 < size < 150_000 for size in sizes)
