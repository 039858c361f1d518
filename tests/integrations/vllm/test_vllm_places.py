"""Placeholders, rows and heads: what vLLM's prefix cache and workers are told, for any sessions and any sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm_beacon.places import Piece, placeholders, rank_heads, slot_mapping, touched

from beacon_memory.errors import InputError, UnsupportedModel

NAMES = st.text(st.characters(codec="utf-8"), max_size=8)
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
PIECES = st.lists(st.builds(Piece, NAMES, DIGESTS, st.integers(16, 40)), min_size=1, max_size=4)


@given(PIECES, PIECES, st.integers(256, 200_000))
def test_two_memories_agree_as_far_as_their_pieces_do_and_in_no_block_behind(
    one: list[Piece], other: list[Piece], vocabulary: int
) -> None:
    common = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        common += a.slots
    first, second = (placeholders(pieces, vocabulary=vocabulary) for pieces in (one, other))
    assert first[:common] == second[:common]
    rest = min(len(first), len(second)) - common
    assert rest < 16 or first[common : common + 16] != second[common : common + 16]


@given(PIECES, PIECES, st.integers(2, 200_000))
def test_a_memory_that_grew_keeps_the_placeholders_it_had(one: list[Piece], more: list[Piece], vocabulary: int) -> None:
    before = placeholders(one, vocabulary=vocabulary)
    assert placeholders([*one, *more], vocabulary=vocabulary)[: len(before)] == before
    assert len(before) == sum(piece.slots for piece in one)
    assert all(0 <= one < vocabulary for one in before)


@given(NAMES, NAMES, DIGESTS, st.binary(max_size=8), st.binary(max_size=8))
def test_another_owner_or_another_salt_shares_no_placeholders(
    ada: str, bob: str, name: str, salt: bytes, other: bytes
) -> None:
    def drawn(owner: str, salt: bytes) -> list[int]:
        return placeholders([Piece(owner, name, 16)], vocabulary=49152, salt=salt)

    assert (drawn(ada, salt) == drawn(bob, salt)) == (ada == bob)
    assert (drawn(ada, salt) == drawn(ada, other)) == (salt == other)


@given(st.data(), st.integers(1, 32), st.lists(st.integers(0, 500), min_size=1, max_size=20, unique=True))
def test_every_position_has_a_row_of_its_own_in_its_block(data: st.DataObject, size: int, blocks: list[int]) -> None:
    end = data.draw(st.integers(0, len(blocks) * size))
    start = data.draw(st.integers(0, end))
    rows = slot_mapping(blocks, start=start, end=end, block_size=size)
    assert len(set(rows)) == end - start
    assert {row // size for row in rows} == touched(blocks, start=start, end=end, block_size=size)
    assert [row % size for row in rows] == [at % size for at in range(start, end)]


def test_a_position_without_a_block_is_refused() -> None:
    with pytest.raises(InputError, match="outside of 1 blocks of 4"):
        slot_mapping([3], start=2, end=5, block_size=4)


@given(st.integers(1, 64), st.integers(1, 8), st.booleans())
def test_ranks_hold_every_head_in_equal_shares(share: int, ranks: int, fewer: bool) -> None:
    heads, ranks = (ranks, ranks * share) if fewer else (share * ranks, ranks)
    dealt = [rank_heads(heads, rank=rank, ranks=ranks) for rank in range(ranks)]
    held = [list(range(heads)[one]) for one in dealt]
    assert {len(one) for one in held} == {max(1, heads // ranks)}
    assert sorted({head for one in held for head in one}) == list(range(heads))
    assert [one[0] for one in held] == sorted(one[0] for one in held)


def test_heads_that_cannot_be_dealt_out_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="3 KV heads cannot be dealt out to 2 ranks"):
        rank_heads(3, rank=0, ranks=2)
