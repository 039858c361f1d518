"""The fenced blocks of a document, run in order as its reader would, and what they print.

`python` and `sh` blocks are run; a `text` block right behind one is what it prints. A block is left out only where the
line above it says `<!-- not run: why -->`. Run as a script, this module writes what is printed into the documents:

    python tests/docs/snippets.py README.md docs/langchain.md
"""

from __future__ import annotations

import gc
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from beacon_memory.testing import redis_server

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^(?:<!-- not run: ([^\n]+) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
REDIS = "redis://localhost:6379"  # as documents say it; a server of the run's own stands in for it
RUN = ("python", "sh")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    language: str
    text: str
    why_not: str | None  # it is not run
    span: tuple[int, int]  # of the fence, without its mark
    output: Block | None = None  # the `text` block right behind it


def blocks(document: str) -> list[Block]:
    """The blocks of a document; what a block prints belongs to it."""
    found: list[Block] = []
    for fence in FENCE.finditer(document):
        start = fence.start() if fence[1] is None else fence.start() + document[fence.start() :].index("\n") + 1
        block = Block(fence[2], fence[3], fence[1], (start, fence.end()))
        last = found[-1] if found else None
        if block.language == "text" and last and last.language in RUN and document[last.span[1] : start].isspace():
            found[-1] = Block(last.language, last.text, last.why_not, last.span, block)
        else:
            found.append(block)
    return found


def run(document: str, folder: Path) -> Iterator[tuple[Block, str]]:
    """Each block that is run, with what it printed; Python blocks share their names, all of them the folder."""
    names: dict[str, Any] = {"__name__": "snippet"}
    todo = [block for block in blocks(document) if block.language in RUN and block.why_not is None]
    if any(REDIS in block.text for block in todo):
        with redis_server() as url:
            yield from _run(todo, names, folder, url.removesuffix("/0"))
    else:
        yield from _run(todo, names, folder, REDIS)
    names.clear()
    gc.collect()


def _run(todo: Sequence[Block], names: dict[str, Any], folder: Path, redis: str) -> Iterator[tuple[Block, str]]:
    for block in todo:
        text, out = block.text.replace(REDIS, redis), io.StringIO()
        with chdir(folder), redirect_stdout(out):
            if block.language == "python":
                exec(compile(text, f"<snippet: {text.strip().splitlines()[0]}>", "exec"), names)
            else:
                out.write(_shell(text))
        yield block, out.getvalue()


def _shell(commands: str) -> str:
    path = [str(ROOT), *(str(ROOT / "integrations" / name) for name in ("langchain", "llama_index"))]
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(path),
        "NO_COLOR": "1",
    }
    command = ["bash", "-euo", "pipefail", "-c", commands]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"{commands}\nended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def record(path: Path) -> None:
    """Write what the blocks of a document print behind them."""
    document = path.read_text(encoding="utf-8")
    with TemporaryDirectory() as folder:
        printed = list(run(document, Path(folder)))
    for block, said in reversed(printed):
        start, end = block.span[1], (block.output or block).span[1]
        shown = f"\n\n```text\n{said.rstrip()}\n```" if said.strip() else ""
        document = document[:start] + shown + document[end:]
    path.write_text(document, encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        record(Path(name))
