"""Text from where a user has it: a path or the text itself."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator
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


def refuse(name: str, why: InputError) -> None:
    """What `read_texts` does by default with a document that cannot be read. Raises it."""
    raise why


def leave_out(name: str, why: InputError) -> None:
    """The other choice: warn, and go on with the next one."""
    warnings.warn(f"{why}; it is left out", stacklevel=2)


def read_texts(
    documents: Any,
    read: Callable[[Any], tuple[str, str] | None] = lambda one: None,
    *,
    bad: Callable[[str, InputError], None] = refuse,
) -> Iterator[tuple[str, str]]:
    """Names and texts of documents. A Path is a file, or all files of a folder under their paths in it, without hidden
    ones; a string is the text, without a name; what `read` knows is what it says; anything else is many of these.

    One that cannot be read is told to `bad`, which raises; where it does not, the text is "". Raises InputError.

    >>> list(read_texts(["It was dark.", ["And stormy."]]))
    [('', 'It was dark.'), ('', 'And stormy.')]
    """
    found: list[tuple[str, str | Path]] = []
    if (known := read(documents)) is not None:
        found.append(known)
    elif isinstance(documents, str):
        found.append(("", documents))
    elif isinstance(documents, Path):
        found += _files(documents.expanduser())
    elif isinstance(documents, Iterable) and not isinstance(documents, bytes):
        for one in documents:
            yield from read_texts(one, read, bad=bad)
    else:
        raise InputError(f"a document is a Path, text or a document of the framework's, not {documents!r:.80}")
    for name, source in found:
        try:
            what = f"document {name!r}" if name else "text"
            text = check_text(source, what=what) if isinstance(source, str) else read_source(source)[0]
        except InputError as exc:
            bad(name, exc)
            text = ""
        yield name, text


def _files(path: Path) -> list[tuple[str, Path]]:
    """A file by its name, or a folder's files by their paths in it. Raises InputError for a folder without any."""
    if not path.is_dir():
        return [(path.name, path)]
    found = [(file.relative_to(path), file) for file in sorted(path.rglob("*")) if file.is_file()]
    files = [(name.as_posix(), file) for name, file in found if not any(part.startswith(".") for part in name.parts)]
    if not files:
        raise InputError(f"folder {path} has no file to read")
    return files


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
