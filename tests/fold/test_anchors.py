from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from beacon_memory.config import BeaconConfig, slot_count
from beacon_memory.fold.anchors import LOGIT_ROWS, Spread, pick, shared, surprise
from beacon_memory.fold.layout import unit_ends

CPU = torch.device("cpu")


def test_last_takes_the_last_token_of_each_unit() -> None:
    picked = pick((("last", 1.0),), {}, tokens=10, ratio=4, device=CPU)
    assert picked.tolist() == [[[3, 7, 9]]]


def test_a_scored_rule_takes_the_best_tokens_of_each_head_in_order() -> None:
    scores = torch.tensor([[[0.1, 0.9, 0.3, 0.8], [0.5, 0.1, 0.7, 0.2]]])
    picked = pick((("reconstruct", 1.0),), {"reconstruct": scores}, tokens=4, ratio=2, device=CPU)
    assert picked.tolist() == [[[1, 3], [0, 2]]]


def test_of_equal_scores_the_older_token_is_taken() -> None:
    picked = pick((("surprise", 1.0),), {"surprise": torch.zeros(1, 1, 8)}, tokens=8, ratio=4, device=CPU)
    assert picked.tolist() == [[[0, 1]]]


@given(
    st.sampled_from(
        ["last", "surprise", "reconstruct+last", "surprise:3+last:1", "learned+surprise+last", "last:5+learned"]
    ),
    st.integers(1, 40),
    st.sampled_from([2, 4, 8]),
    st.integers(0, 99),
)
def test_a_mix_takes_as_many_tokens_as_there_are_slots_and_none_twice(
    anchors: str, tokens: int, ratio: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    shares = BeaconConfig(anchors=anchors).shares
    scores = {
        rule: torch.rand(2, 1 if rule == "surprise" else 3, tokens, generator=random)
        for rule, _ in shares
        if rule != "last"
    }
    picked = pick(shares, scores, tokens=tokens, ratio=ratio, device=CPU)
    assert picked.shape[-1] == slot_count(tokens, ratio)
    for row in picked.flatten(0, 1).tolist():
        assert row == sorted(set(row))
        assert row[0] >= 0
        assert row[-1] < tokens


def test_the_newest_token_is_taken_whenever_last_has_a_share() -> None:
    scores = {"surprise": torch.arange(16.0).flip(0).view(1, 1, 16)}
    picked = pick(BeaconConfig(anchors="surprise+last").shares, scores, tokens=16, ratio=4, device=CPU)
    assert picked.tolist() == [[[0, 1, 7, 15]]]


@pytest.mark.parametrize("tokens", [1, 2, LOGIT_ROWS, LOGIT_ROWS + 1, LOGIT_ROWS + 2, 3 * LOGIT_ROWS])
def test_a_token_is_as_surprising_as_its_loss_and_the_first_most(tokens: int) -> None:
    random = torch.Generator().manual_seed(1)
    hidden, table = torch.randn(2, tokens, 4, generator=random), torch.randn(4, 11, generator=random)
    ids = torch.randint(11, (2, tokens), generator=random)
    scores = surprise(lambda rows: rows @ table, hidden, ids)
    losses = torch.nn.functional.cross_entropy((hidden @ table)[:, :-1].mT, ids[:, 1:], reduction="none")
    torch.testing.assert_close(scores[:, 0, 1:], losses)
    assert bool((scores[:, 0, :1] > 1e30).all())


def test_heads_share_their_scores_by_rank_so_that_none_drowns_the_others() -> None:
    loud = torch.tensor([1000.0, 0.0, 500.0])
    soft = torch.tensor([0.1, 0.3, 0.2])
    scores = torch.stack([loud, soft, soft]).view(3, 1, 1, 3)
    assert shared(scores).argsort().tolist() == [[[0, 2, 1]]]


def test_units_end_where_last_takes_them_at_every_length() -> None:
    for tokens in range(1, 20):
        picked = pick((("last", 1.0),), {}, tokens=tokens, ratio=8, device=CPU)
        assert picked[0, 0].tolist() == unit_ends(tokens, 8).tolist()


def test_spread_heads_keep_other_tokens_where_their_scores_differ_little() -> None:
    close = torch.tensor([1.3, 1.2, 1.1, 1.0, -9.0, -9.0, -9.0, -9.0]).expand(1, 2, 8)
    picked = Spread().pick((("spread", 1.0),), {"spread": close}, tokens=8, ratio=4, device=CPU)
    assert picked.tolist() == [[[0, 1], [2, 3]]]


def test_spread_heads_keep_the_same_tokens_where_no_others_will_do() -> None:
    apart = torch.tensor([9.0, 9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).expand(1, 2, 8)
    picked = Spread().pick((("spread", 1.0),), {"spread": apart}, tokens=8, ratio=4, device=CPU)
    assert picked.tolist() == [[[0, 1], [0, 1]]]


def test_spread_reaches_over_layers_and_fades() -> None:
    scores = {"spread": torch.tensor([[[1.01, 1.0, -9.0, -9.0]]])}
    spread = Spread()
    picked = [spread.pick((("spread", 1.0),), scores, tokens=4, ratio=4, device=CPU).item() for _ in range(6)]
    assert picked == [0, 1, 0, 1, 0, 1]  # what a newer layer kept counts more


@given(st.sampled_from(["spread", "spread:3+last:1", "surprise+spread"]), st.integers(2, 40), st.integers(0, 99))
def test_spread_takes_as_many_tokens_as_there_are_slots_and_a_batch_as_each_alone(
    anchors: str, tokens: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    shares = BeaconConfig(anchors=anchors).shares
    layers = [
        {"spread": torch.randn(2, 3, tokens, generator=random), "surprise": torch.rand(2, 1, tokens, generator=random)}
        for _ in range(3)
    ]
    together, alone = Spread(), [Spread(), Spread()]
    for scores in layers:
        picked = together.pick(shares, scores, tokens=tokens, ratio=2, device=CPU)
        assert picked.shape == (2, 3, slot_count(tokens, 2))
        for row in picked.flatten(0, 1).tolist():
            assert row == sorted(set(row))
        for index, spread in enumerate(alone):
            own = {rule: score[index : index + 1] for rule, score in scores.items()}
            assert spread.pick(shares, own, tokens=tokens, ratio=2, device=CPU).equal(picked[index : index + 1])


def test_spread_alone_is_spread_in_a_mix_with_next_to_nothing() -> None:
    random = torch.Generator().manual_seed(4)
    alone, mixed = Spread(), Spread()
    for _ in range(4):
        scores = {"spread": torch.randn(2, 3, 64, generator=random), "surprise": torch.zeros(2, 1, 64)}
        shares = (("spread", 1.0), ("surprise", 0.0))
        picked = alone.pick(shares[:1], scores, tokens=64, ratio=4, device=CPU)
        assert picked.equal(mixed.pick(shares, scores, tokens=64, ratio=4, device=CPU))
