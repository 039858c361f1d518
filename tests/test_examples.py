"""Every example runs, as a user would run it, on a tiny model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from beacon_memory.testing import tiny_checkpoint

EXAMPLES = Path(__file__).parent.parent / "examples"


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
