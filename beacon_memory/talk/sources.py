"""Text from where a user has it: a path or the text itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from beacon_memory.errors import InputError


def read_source(source: str | Path) -> tuple[str, str]:
    """A document's text and a name for it. Raises InputError for what is missing, empty, binary or not UTF-8.

    A Path is a file; a string is a file where one of that name exists, or where it looks like nothing else.

    >>> read_source("It was a dark and stormy night.")
    ('It was a dark and stormy night.', 'It was a dark and stormy night.')
    """
    if not isinstance(source, str | Path):
        raise InputError(f"a document is a path or text, not {source!r:.80}")
    if isinstance(source, Path) or _names_file(source):
        path = Path(source).expanduser()
        return check_text(_read(path), what=f"file {path}"), path.name
    text = check_text(source)
    return text, " ".join(text.split())[:60]


def read_texts(
    documents: Any, read: Callable[[Any], tuple[str, str] | None] = lambda one: None
) -> Iterator[tuple[str, str]]:
    """Names and texts of documents: a Path is a file's, a string is the text itself, what `read` knows is what it says,
    anything else is many of these. Raises InputError.

    >>> list(read_texts(["It was dark.", ["And stormy."]]))
    [('It was dark.', 'It was dark.'), ('And stormy.', 'And stormy.')]
    """
    if (known := read(documents)) is not None:
        yield known
    elif isinstance(documents, Path):
        text, name = read_source(documents)
        yield name, text
    elif isinstance(documents, str):
        yield " ".join(documents.split())[:60], documents
    else:
        for one in documents:
            yield from read_texts(one, read)


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """The values of a JSONL file, each with where it stands; blank lines are left out. Raises InputError by line."""
    for number, line in enumerate(read_source(path)[0].splitlines(), 1):
        where = f"{path}, line {number}"
        if line.strip():
            try:
                yield where, json.loads(line)
            except json.JSONDecodeError as exc:
                raise InputError(f"{where}: not JSON ({exc})") from exc


def _names_file(source: str) -> bool:
    try:
        if Path(source).expanduser().exists():
            return True
    except (OSError, ValueError, RuntimeError):  # too long, or no path at all
        return False
    return len(source.split()) == 1 and ("/" in source or Path(source).suffix.lower() in (".txt", ".md", ".rst"))


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise InputError(f"no text can be read at {path}: {exc.strerror or exc}") from exc
    if b"\0" in data:
        raise InputError(f"file {path} is binary: give a UTF-8 text file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InputError(f"file {path} is not UTF-8 (byte {exc.start}): convert it first") from exc


def check_text(text: str, *, what: str = "text") -> str:
    """The text, when there is something to read in it. Raises InputError."""
    if not isinstance(text, str):
        raise InputError(f"{what} is {type(text).__name__}: give text")
    if not text.strip():
        raise InputError(f"{what} is empty: there is nothing to read")
    if "\0" in text:
        raise InputError(f"{what} is binary: give text")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise InputError(f"{what} is not valid unicode (character {exc.start}): clean it first") from exc
    return text
