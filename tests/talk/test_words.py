"""A passage's share of a question's words: rare ones count more, stop words and a template's not at all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_memory.talk.words import shares, words_of

HOUSE = ["Ada lives in Lyon.", "Her dog is called Rex.", "The code of the door is 4711.", "The door is red."]


@pytest.mark.parametrize(
    ("question", "best"),
    [
        ("What is the dog called?", 1),
        ("Where does ADA live, in which town?", 0),
        ("code?", 2),
        ("Which colour has the red door?", 3),
    ],
)
def test_the_passage_with_the_rarest_words_is_first(question, best):
    found = shares(HOUSE, question)
    assert found.index(max(found)) == best
    assert max(found) > 0


@pytest.mark.parametrize("question", ["", "?!", "What is it, and who was that?", "Napoleon"])
def test_what_no_passage_says_finds_nothing(question):
    assert shares(HOUSE, question) == [0.0] * 4
    assert shares([], question) == []


def test_words_that_nobody_said_make_the_others_count_less():
    alone, beside = shares(HOUSE, "the code"), shares(HOUSE, "the code of Napoleon's Egyptian pyramid")
    assert beside[2] < alone[2] / 2


def test_the_words_of_a_template_are_not_the_questions():
    turns = ["user\nHello.", "assistant\nGood morning."]
    assert shares(turns, "user\nAnd good night?\nassistant\n", frame="user\n.\nassistant\n")[0] == 0


@pytest.mark.parametrize(
    ("passages", "question"),
    [
        (["東京都に住んでいます。", "犬の名前はレックスです。"], "犬の名前は何ですか？"),
        (["Я живу в Лионе.", "Мою собаку зовут Рекс."], "Как зовут собаку?"),
        (["ฉันอาศัยอยู่ในเมืองลียง", "สุนัขของฉันชื่อเร็กซ์"], "สุนัขชื่ออะไร"),
        (["Ich wohne in Köln.", "Die Größe der Tür ist 80."], "Welche GRÖSSE? Größe!"),
    ],
)
def test_other_scripts_have_words_too(passages, question):
    first, second = shares(passages, question)
    assert second > first


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=6), st.text(max_size=60))
def test_a_share_is_a_share_whatever_is_said(passages, question):
    found = shares(passages, question)
    assert len(found) == len(passages)
    assert all(0 <= share < 2.6 for share in found)
    asked = set(words_of(question))
    assert all(share == 0 or asked & set(words_of(text)) for share, text in zip(found, passages, strict=True))
