"""The texts, stories and dialogues that tasks are made from, all held out from training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beacon_memory.errors import InputError
from beacon_memory.talk.sources import read_lines, read_source

NOVELS = 10  # held out: the last by name
DIALOGUES = 500  # held out: the last of the file
SHIPPED = "kjv_stories.txt"


@dataclass(frozen=True)
class Data:
    """A folder with `novels/*.txt`, `fairytaleqa/val.jsonl`, `dialogues/sgd-train.jsonl` and
    `dialogues/topical-chat.jsonl`; None has one short text.

    Each task reads what it needs. Raises InputError that names the file.
    """

    folder: Path | None = None

    def texts(self) -> dict[str, str]:
        """Long texts by name."""
        if self.folder is None:
            here = Path(__file__).parent
            beside = here / SHIPPED  # in an installed package; in a checkout it is the examples' text
            path = beside if beside.is_file() else here.parents[1] / "examples" / SHIPPED
            return _books(read_source(path)[0])
        files = sorted((self.folder / "novels").glob("*.txt"))[-NOVELS:]
        if not files:
            raise InputError(f"no text in {self.folder / 'novels'}: put .txt files there, or leave the task out")
        return {file.stem: read_source(file)[0] for file in files}

    def stories(self) -> list[dict[str, Any]]:
        """Stories with `sections` and `questions`."""
        return self._lines("fairytaleqa/val.jsonl", needs=("sections", "questions"))

    def dialogues(self) -> list[dict[str, Any]]:
        """Dialogues with `turns`: role, content, slots."""
        return self._lines("dialogues/sgd-train.jsonl", needs=("turns",))[-DIALOGUES:]

    def talks(self) -> list[list[str]]:
        """What two people say in turn, of nothing in particular."""
        lines = self._lines("dialogues/topical-chat.jsonl", needs=("turns",))[-DIALOGUES:]
        return [[" ".join(str(turn["content"]).split()) for turn in line["turns"]] for line in lines]

    def _lines(self, name: str, *, needs: tuple[str, ...]) -> list[dict[str, Any]]:
        if self.folder is None:
            raise InputError(f"this task needs {name}: give the folder it is in with --data, or leave the task out")
        path = self.folder / name
        found = []
        for where, entry in read_lines(path):
            if not isinstance(entry, dict) or (missing := [key for key in needs if key not in entry]):
                what = "an object" if not isinstance(entry, dict) else repr(missing[0])
                raise InputError(f"{where}: expected {what}")
            found.append(entry)
        return found


def _books(text: str) -> dict[str, str]:
    """The shipped text by book, so that one can be another's foreign document."""
    books: dict[str, str] = {}
    for part in text.split("\n\n"):
        first = part.split("\n", 1)[0]
        name, found, _ = first.partition(", chapter ")
        if found or not books:
            current = name if found else "front"
        books[current] = f"{books.get(current, '')}{part}\n\n"
    return {name: book for name, book in books.items() if len(book) > 4000}
