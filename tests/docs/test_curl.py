"""The lines with curl in README and docs/, run against a server as they stand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from snippets import ROOT, blocks

from beacon_memory.testing import beacon_server, scripted_engine

HERE = "localhost:8000"


def lines(path: Path) -> list[str]:
    """The commands with curl of a document, each in one line."""
    shell = [block.text.replace("\\\n", " ") for block in blocks(path.read_text()) if block.language == "sh"]
    return [line for text in shell for line in text.splitlines() if re.match(r"\s*curl\b", line)]


DOCUMENTS = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if lines(path)]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_line_answers(path: Path) -> None:
    script = lambda seen: "He is called Rex." if "called Rex" in seen else "I do not know."  # noqa: E731
    with beacon_server(scripted_engine(script), name="smollm2") as url:
        for line in lines(path):
            assert HERE in line
            command = line.replace(HERE, url.removeprefix("http://")).replace("curl ", "curl --fail --silent ", 1)
            done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
            assert done.returncode == 0, line
            assert done.stdout
            if "What is my dog called?" in line:
                assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "He is called Rex."
            if line.endswith("/messages"):
                assert len(json.loads(done.stdout)["data"]) == 4


def test_readme_has_some() -> None:
    assert [path.name for path in DOCUMENTS][:2] == ["README.md", "operations.md"]
