"""Whether an answer says a value: awkward cases, and what must not matter for any value."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_memory.evaluation import scoring
from beacon_memory.evaluation.scoring import said

WORDS = st.text(st.sampled_from("bcdfghjklmnpqrstvwxz"), min_size=3, max_size=8).filter(
    lambda word: word not in scoring._NUMBERS and word not in scoring._ORDINALS
)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("Your dog's name is REX!", "Rex"),
        ("It is Rex’s bowl.", "rex"),
        ("She lives in Malmö.", "Malmo"),
        ("You paid $1,250 for it.", "1250"),
        ("twelve hundred? No: one thousand two hundred and fifty.", "1250"),
        ("On the twenty-first of June.", "21 June"),
        ("June 21st, I believe.", "June 21"),
        ("At 7.40 in the morning.", "7:40"),
        ("at 7:40pm", "7:40"),
        ("It's the Blue-Heron, isn't it?", "the Blue Heron"),
        ("Seven.", "7"),
        ("You have 3 cats", "three cats"),
        ("An apron, in blue.", "an apron"),
        ("Mrs. O'Neill is", "Mrs O’Neill"),
        ("first", "1st"),
    ],
)
def test_a_value_is_said_however_it_is_spelled(answer, gold):
    assert said(answer, [gold]) == 1


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("", "Rex"),
        ("Rexford", "Rex"),
        ("The heron is blue.", "Blue Heron"),
        ("It was 17:40.", "7:40"),
        ("48213", "4821"),
        ("seventy", "7"),
        ("seventy-one", "70"),
        ("June 2, and 1 more", "June 21"),
        ("I do not know.", "no"),
        ("Anything.", "..."),  # a value without words is never said
    ],
)
def test_what_is_only_like_a_value_is_not_it(answer, gold):
    assert said(answer, [gold]) == 0


def test_of_a_changed_value_only_the_new_one_counts():
    assert said("It was Tuesday.", ["Thursday"]) == 0
    assert said("Not Tuesday but Thursday.", ["Thursday"]) == 1


@settings(max_examples=200, deadline=None)
@given(
    before=st.lists(WORDS, max_size=4),
    value=st.lists(WORDS, min_size=1, max_size=3),
    after=st.lists(WORDS, max_size=4),
    joined=st.sampled_from([" ", ", ", " - ", "\n"]),
    changed=st.sampled_from([str.upper, str.title, str.lower]),
)
def test_a_value_among_other_words_is_said_whatever_its_case_and_punctuation(before, value, after, joined, changed):
    gold = " ".join(value)
    assert said(changed(joined.join([*before, *value, *after])) + "!", [gold]) == 1
    assert said(" ".join([*before, *after]), [f"{gold}qq"]) == 0


@settings(max_examples=200, deadline=None)
@given(number=st.integers(0, 9999), other=st.integers(0, 9999))
def test_a_number_in_words_is_the_same_in_digits_and_no_other(number, other):
    assert said(f"It is {_spelled(number)}.", [str(number)]) == 1
    assert said(f"It is {_spelled(number)}.", [str(other)]) == float(number == other)


def _spelled(number: int) -> str:
    if number >= 1000:
        rest = number % 1000
        return f"{_spelled(number // 1000)} thousand" + (f" {_spelled(rest)}" if rest else "")
    if number >= 100:
        rest = number % 100
        return f"{_spelled(number // 100)} hundred" + (f" and {_spelled(rest)}" if rest else "")
    if number < 20:
        return scoring._ONES[number]
    tens = scoring._TENS[number // 10 - 2]
    return f"{tens}-{scoring._ONES[number % 10]}" if number % 10 else tens


def test_the_examples_of_scoring_are_true():
    found = doctest.testmod(scoring)
    assert found.attempted > 8
    assert not found.failed
