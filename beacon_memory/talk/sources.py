"""Text from where a user has it: a path or the text itself."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from beacon_memory.errors import InputError
from beacon_memory.state.info import Document
from beacon_memory.talk.messages import whole

# Control characters but white space, halves of letters, and what stands for what could not be decoded.
_UNREADABLE = re.compile("[\0-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffd]")


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
    documents: Any, read: Callable[[Any], tuple[str, str] | None] = lambda one: None, *, skip_bad: bool = True
) -> Iterator[tuple[str, str]]:
    """Names and texts of documents. A Path is a file, or all files of a folder under their paths in it, without hidden
    ones; a string is the text, without a name; what `read` knows is what it says; anything else is many of these.

    Text is cleaned (`clean_text`). A document that is empty, binary or not UTF-8 has the text "", and a warning names
    it at the end. It is refused where `skip_bad` is off, and where no document is good. Raises InputError.

    >>> list(read_texts(["It was dark.", ["And stormy."]]))
    [('', 'It was dark.'), ('', 'And stormy.')]
    """
    good, bad, parts = False, [], Counter[str]()
    for given, source in _sources(documents, read):
        name = whole(given)
        parts[name] += 1
        what = f"document {name!r}" + (f", part {parts[name]}" if parts[name] > 1 else "") if name else "text"
        try:
            text = clean_text(source, what=what) if isinstance(source, str) else read_source(source)[0]
        except InputError as exc:
            if not skip_bad:
                raise
            bad.append(exc)
            text = ""
        good = good or bool(text)
        yield name, text
    leave_out(bad, good=good)


def leave_out(bad: Sequence[InputError], *, good: bool) -> None:
    """Warn of each document that is left out among good ones. Where none is good, raises the first one's InputError."""
    if bad and not good:
        raise InputError(f"there is no document to read: {bad[0]}") from bad[0]
    for why in bad:
        warnings.warn(f"{why}; it is left out", stacklevel=3)


def _sources(documents: Any, read: Callable[[Any], tuple[str, str] | None]) -> Iterator[tuple[str, str | Path]]:
    """The name of each document, and its text or its file. Raises InputError for what is none, or is not there."""
    if (known := read(documents)) is not None:
        yield known
    elif isinstance(documents, str):
        yield "", documents
    elif isinstance(documents, Path):
        yield from _files(documents.expanduser())
    elif isinstance(documents, Iterable) and not isinstance(documents, bytes | bytearray | Mapping):
        for one in documents:
            yield from _sources(one, read)
    else:
        raise InputError(f"a document is a Path, text or a document of the framework's, not {documents!r:.80}")


def _files(path: Path) -> list[tuple[str, Path]]:
    """A file by its name, or a folder's files by their paths in it. Raises InputError for a folder without any."""
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"no text can be read at {path}: there is no such file")
        return [(path.name, path)]
    found = [(file.relative_to(path), file) for file in sorted(path.rglob("*")) if file.is_file()]
    files = [(name.as_posix(), file) for name, file in found if not any(part.startswith(".") for part in name.parts)]
    if not files:
        raise InputError(f"folder {path} has no file to read")
    return files


def as_documents(texts: Iterable[tuple[str, str]], context_id: str | None) -> tuple[str, list[Document], list[str]]:
    """Texts with their names as documents: the id they are kept under, made of them where none is given; the
    documents; and the names of those that could not be read, whose text is "".

    Texts of one name (the pages of a file) are one document; those without a name are "text 1", "text 2", ….
    """
    parts: dict[str, list[str]] = {}
    unnamed = 0
    for name, text in texts:
        unnamed += not name
        parts.setdefault(name or f"text {unnamed}", []).extend([text] if text else [])
    documents = [Document(name, "\n\n".join(given)) for name, given in parts.items() if given]
    if context_id is None:
        said = "\0".join(text for given in parts.values() for text in given)
        context_id = hashlib.sha256(said.encode()).hexdigest()[:16]
    return context_id, documents, [name for name, given in parts.items() if not given]


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


def clean_text(text: str, *, what: str = "text") -> str:
    """The text that a document reader gave, so that it can be read: NULs, which readers of PDFs leave in, are taken
    out, and half a letter becomes U+FFFD. Raises InputError for what is empty, or not text at all.

    >>> clean_text("The lease\\0 ends in May.")
    'The lease ends in May.'
    """
    if isinstance(text, str):
        if len(_UNREADABLE.findall(text)) > max(8, len(text) // 10):
            raise InputError(f"{what} is binary: give text")
        text = whole(text.replace("\0", ""))
    return check_text(text, what=what)


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
