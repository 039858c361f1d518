"""What was measured, on disk: a line per item and cell as it comes, and a line per cell once they are summed up.

`scores.jsonl` is only ever appended to, so an interrupted run loses the item it was at. `cells.jsonl` is made from it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from beacon_memory.errors import InputError
from beacon_memory.evaluation.reporting.figures import Score


@dataclass(frozen=True)
class Cell:
    """A task measured with a method at a ratio, by a model with these weights."""

    task: str
    method: str
    ratio: int
    weights: str  # fingerprint of base model, beacons, tokenizer and layout, and a document's window


@dataclass(frozen=True)
class Row:
    """What one item gave in one cell; no scores where the memory does not fit the model's window."""

    cell: Cell
    item: str  # the item's digest
    entries: int  # KV entries of the memory, the mean over questions
    seconds: float
    scores: tuple[Score, ...]


class Results:
    """The rows of a folder, read once and added to."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError for a folder that cannot be written or a line that is not ours."""
        self.folder = folder
        self._path = folder / "scores.jsonl"
        self.rows: dict[tuple[Cell, str], Row] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            data = self._path.read_bytes() if self._path.exists() else b""
            whole = data[: data.rfind(b"\n") + 1]
            if whole != data:  # the run was interrupted within a line
                self._path.write_bytes(whole)
        except OSError as exc:
            raise InputError(f"no results can be kept in {folder}: {exc.strerror or exc}") from exc
        for number, line in enumerate(whole.decode(errors="replace").splitlines(), 1):
            try:
                row = _row(json.loads(line))
            except (ValueError, KeyError, TypeError) as exc:
                raise InputError(f"{self._path}, line {number} is not a result: choose another folder") from exc
            self.rows[row.cell, row.item] = row

    def add(self, row: Row) -> None:
        """Keep a row. Raises InputError when it cannot be written."""
        self.rows[row.cell, row.item] = row
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row)) + "\n")
        except OSError as exc:
            raise InputError(f"a result cannot be written to {self._path}: {exc.strerror or exc}") from exc

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder whole or not at all. Raises InputError."""
        try:
            new = self.folder / f".{name}.new"
            new.write_text(text, encoding="utf-8")
            os.replace(new, self.folder / name)
        except OSError as exc:
            raise InputError(f"{self.folder / name} cannot be written: {exc.strerror or exc}") from exc


def _row(found: dict[str, Any]) -> Row:
    cell, scores = Cell(**found["cell"]), tuple(Score(**score) for score in found["scores"])
    return Row(cell, found["item"], found["entries"], found["seconds"], scores)
