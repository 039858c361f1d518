"""Text from where a user has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from beacon_memory.errors import InputError
from beacon_memory.talk.sources import read_source


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
