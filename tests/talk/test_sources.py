"""Text from where a user has it."""

from __future__ import annotations

import contextlib
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beacon_memory.errors import InputError
from beacon_memory.talk.sources import clean_text, read_source, read_texts


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
def test_one_bad_document_among_good_ones_is_left_out_with_a_warning_or_refused_by_name(tmp_path, kind):
    book = folder(tmp_path, good="Good.", it=BAD[kind], other="Other.")
    with pytest.raises(InputError, match=r"it\.txt"):
        list(read_texts(book, skip_bad=False))
    with pytest.warns(match=r"it\.txt.*left out"):
        assert list(read_texts(book)) == [("good.txt", "Good."), ("it.txt", ""), ("other.txt", "Other.")]
    for bad in (book / "it.txt", [book / "it.txt"] * 2):
        with pytest.raises(InputError, match=r"no document to read.*it\.txt"):
            list(read_texts(bad))


def test_a_file_that_is_not_there_is_never_left_out(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        list(read_texts(["Good.", tmp_path / "nowhere.txt"]))


def test_what_is_no_document_is_refused():
    for bad in (3, None, b"bytes", ["Good.", 4.5], [{"text": "Good."}]):
        with pytest.raises(InputError, match="a document is"):
            list(read_texts(bad))


def test_a_bad_page_is_told_by_its_part():
    pages = {1: ("book.pdf", "One."), 2: ("book.pdf", " "), 3: ("book.pdf", "Three.")}
    with pytest.warns(match=r"document 'book\.pdf', part 2 is empty"):
        texts = [text for _, text in read_texts([1, 2, 3], lambda n: pages.get(n) if isinstance(n, int) else None)]
    assert texts == ["One.", "", "Three."]


LETTERS = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\ufffd")


@given(st.lists(st.text(LETTERS, min_size=1), min_size=1), st.sampled_from(["\0", "\ud835", "\udc00\0", ""]))
def test_a_stray_nul_or_half_a_letter_leaves_every_other_letter_in_place(words, stray):
    """Readers of PDFs leave them in: a whole folder was refused for one of them."""
    text = ". ".join(word * 20 for word in words)
    if not text.strip():
        return
    half = "\ufffd" * sum("\ud800" <= letter <= "\udfff" for letter in stray)
    assert clean_text(text[:9] + stray + text[9:]) == text[:9] + half + text[9:]
    assert clean_text(text) == text


@given(st.binary(min_size=200), st.sampled_from(["latin-1", "utf-8", "utf-16-le"]))
def test_a_text_is_cleaned_or_refused_and_what_comes_can_be_read(data, codec):
    with contextlib.suppress(InputError):
        found = clean_text(data.decode(codec, "replace"))
        assert found.encode()
        assert "\0" not in found


@pytest.mark.parametrize("errors", ["replace", "surrogateescape"])
def test_a_picture_that_was_read_as_text_is_binary(errors):
    picture = zlib.compress(bytes(range(256)) * 40, 0)
    for text in (
        picture.decode("utf-8", errors),
        picture.decode("latin-1"),
        "The lease ends in May. ".encode("utf-16-le").decode() * 9,
    ):
        with pytest.raises(InputError, match="binary"):
            clean_text(text)
