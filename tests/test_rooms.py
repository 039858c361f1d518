"""The rules that keep the house in order: small files, small folders, and rooms that say what they are for."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "beacon_memory"
SOURCES = [PACKAGE, ROOT / "integrations", ROOT / "benchmarks"]
ROOMS = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)


def modules() -> list[Path]:
    return [path for source in SOURCES for path in source.rglob("*.py")]


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules()}
    assert {path: lines for path, lines in lengths.items() if lines > 400} == {}


def test_no_folder_has_more_than_12_modules() -> None:
    folders = Counter(str(path.parent.relative_to(ROOT)) for path in modules())
    assert {folder: files for folder, files in folders.items() if files > 12} == {}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(PACKAGE)))
def test_a_room_says_what_lives_there_what_it_imports_what_it_hands_out_and_what_goes_there(room: Path) -> None:
    said = (ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or "").splitlines()
    assert len(said) == 4
    first, blank, imports, goes = said
    assert first.endswith(".")
    assert blank == ""
    assert imports.startswith("May import: ")
    assert " Hands out: " in imports
    assert re.search(r"\bA new .+ goes here", goes)


def test_importing_the_package_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, beacon_memory; print(*sorted({'torch', 'transformers', 'redis', 'numpy'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == ""


def test_the_tests_lie_in_the_same_rooms() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert rooms - {path.name for path in (ROOT / "tests").iterdir()} <= {"testing"}  # used by all of them
