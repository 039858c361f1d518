"""Text from where a user has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from beacon_memory.errors import InputError
from beacon_memory.talk.sources import leave_out, read_source, read_texts


def test_a_string_is_a_file_where_there_is_one(tmp_path):
    file = tmp_path / "lease.txt"
    file.write_text("The lease ends in May.", encoding="utf-8")
    assert read_source(str(file)) == read_source(file) == ("The lease ends in May.", "lease.txt")


def test_a_string_that_names_no_file_is_text():
    assert read_source("The lease ends in May.")[0] == "The lease ends in May."


def test_a_long_text_is_not_looked_for_as_a_file():
    assert read_source("word " * 100_000)[0].startswith("word word")


def test_a_byte_order_mark_is_not_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert read_source(tmp_path / "a.txt")[0] == "hello"


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "empty"), (b" \n\t", "empty"), (b"\x7fELF\0\0\x01", "binary"), (b"caf\xe9 au lait", "UTF-8")],
)
def test_a_file_that_is_not_text_is_refused_by_name(tmp_path, content, says):
    (tmp_path / "it.txt").write_bytes(content)
    with pytest.raises(InputError, match=f"it.txt.*{says}"):
        read_source(tmp_path / "it.txt")


@pytest.mark.parametrize("source", [Path("nowhere"), "nowhere.txt", "./nowhere", Path("/")])
def test_a_file_that_is_not_there_is_refused(source):
    with pytest.raises(InputError, match="no text can be read"):
        read_source(source)


@pytest.mark.parametrize("text", ["", "  ", "a\0b", "bad \ud800 surrogate"])
def test_text_that_cannot_be_read_is_refused(text):
    with pytest.raises(InputError):
        read_source(text)


def folder(tmp_path: Path, **files: str | bytes) -> Path:
    """A folder of these files; `__` in a name is a folder's end."""
    for name, content in files.items():
        path = tmp_path / "book" / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return tmp_path / "book"


def test_a_folders_files_are_read_under_their_paths_in_it(tmp_path):
    book = folder(tmp_path, b="Second.", a__b="First.", a__c="Of a.")
    (book / ".hidden").write_text("Not this.")
    (book / ".git").mkdir()
    (book / ".git" / "head").write_text("Nor this.")
    assert list(read_texts(book)) == [("a/b.txt", "First."), ("a/c.txt", "Of a."), ("b.txt", "Second.")]
    assert list(read_texts([book / "b.txt", "Text."])) == [("b.txt", "Second."), ("", "Text.")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no file to read"):
        list(read_texts(tmp_path / "empty"))


BAD = {"blank": " \n", "nul": "a\0b", "latin": b"caf\xe9"}


@pytest.mark.parametrize("kind", BAD)
def test_one_bad_document_among_good_ones_is_refused_by_name_or_left_out(tmp_path, kind):
    book = folder(tmp_path, good="Good.", it=BAD[kind], other="Other.")
    with pytest.raises(InputError, match=r"it\.txt"):
        list(read_texts(book))
    with pytest.warns(match=r"it\.txt.*left out"):
        assert list(read_texts(book, bad=leave_out)) == [("good.txt", "Good."), ("it.txt", ""), ("other.txt", "Other.")]


def test_what_is_no_document_is_refused():
    for bad in (3, None, b"bytes", ["Good.", 4.5]):
        with pytest.raises(InputError, match="a document is"):
            list(read_texts(bad))
    with pytest.warns(match="left out"):
        assert list(read_texts(["half \ud83d", "Good."], bad=leave_out)) == [("", ""), ("", "Good.")]
