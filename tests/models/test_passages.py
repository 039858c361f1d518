"""Passages: all of a text, cut the same way each time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from beacon_memory.models.passages import Cutter

TEXT = st.text(alphabet="ab .!?<", max_size=200)


def spans(text: str, size: int) -> list[tuple[int, int]]:
    cutter = Cutter(lambda ids: "".join(map(chr, ids)), size=size, openings=[ord("<")])
    return cutter.spans([ord(letter) for letter in text])


@given(TEXT, st.integers(2, 40))
def test_passages_cover_a_text_in_order_and_none_is_too_long(text, size):
    found = spans(text, size)
    assert [begin for begin, _ in found] == [0, *(end for _, end in found)][: len(found)]
    assert (found[-1][1] if found else 0) == len(text)
    assert all(0 < end - begin <= size for begin, end in found)


@given(TEXT, TEXT, st.integers(2, 40))
def test_what_is_read_later_moves_no_cut_but_the_last(text, later, size):
    found, longer = spans(text, size), spans(text + later, size)
    assert longer[: max(len(found) - 1, 0)] == found[:-1]


def test_a_passage_ends_with_a_sentence_or_in_front_of_a_message():
    assert spans("aaa aa. bb", 8) == [(0, 7), (7, 10)]
    assert spans("aaa a. <.bb", 8) == [(0, 7), (7, 11)]
    assert spans("a. aaaaaaaaaa", 8) == [(0, 8), (8, 13)]
