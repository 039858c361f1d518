"""Scores of one answer: whether a value is said in it, its overlap with a right one, and its rank among wrong ones.

>>> said("It's called the Blue Heron, I think.", ["blue heron"])
1.0
>>> said("You paid three hundred and twenty-five euros.", ["325 euros"])
1.0
>>> said("Your appointment is on the 3rd of May.", ["May 3", "3 May"])
1.0
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NUMBERS = {word: number for number, word in enumerate(_ONES)} | {
    word: number for number, word in zip(range(20, 100, 10), _TENS, strict=True)
}
_ORDINALS = {
    **{"first": 1, "second": 2, "third": 3, "fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12},
    **{f"{word}th": number for number, word in enumerate(_ONES) if number not in (1, 2, 3, 5, 8, 9, 12)},
    **{f"{word[:-1]}ieth": number for number, word in zip(range(20, 100, 10), _TENS, strict=True)},
}
_FILLERS = {"a", "an", "the", "of"}


def said(answer: str, gold: Sequence[str]) -> float:
    """1 where one of the right values stands in the answer, word for word, else 0.

    Case, accents, punctuation, articles, "of" and a possessive "'s" do not count; numbers are the same in words and
    in digits, and so are "3rd" and "3". A word counts as a whole only.

    >>> said("Anna's", ["Anna"]), said("Annabel", ["Anna"]), said("", ["Anna"])
    (1.0, 0.0, 0.0)
    >>> said("The code is 48,213.", ["48213"]), said("It begins at half past 7.", ["7:30"])
    (1.0, 0.0)
    >>> said("At 9:55pm.", ["9:55"]), said("on Mondays", ["Monday"])
    (1.0, 0.0)
    >>> said("twenty-four, Mill Lane", ["24 Mill Lane"]), said("a café", ["Cafe"])
    (1.0, 1.0)
    """
    words = f" {' '.join(_plain(answer))} "
    return float(any(f" {' '.join(value)} " in words for right in gold if (value := _plain(right))))


def f1(answer: str, gold: Sequence[str]) -> float:
    """The best word overlap with a right answer (SQuAD's: no case, punctuation or articles).

    >>> f1("The old king!", ["an old man", "king"])
    0.6666666666666666
    """
    return max(_f1(_words(answer), _words(right)) for right in gold)


def rank_right(losses: Sequence[float]) -> float:
    """1 where the first answer has the lowest loss of all, else 0; a tie is no hit.

    >>> rank_right([0.5, 0.7, 0.6]), rank_right([0.5, 0.5])
    (1.0, 0.0)
    """
    return float(all(losses[0] < other for other in losses[1:]))


def _f1(answer: list[str], right: list[str]) -> float:
    common = sum((Counter(answer) & Counter(right)).values())
    if not common:
        return float(answer == right)
    return 2 * common / (len(answer) + len(right))


def _words(text: str) -> list[str]:
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _plain(text: str) -> list[str]:
    """The words of a text in one spelling.

    >>> _plain("On the twenty-first of June, at Mrs. O'Neill's: 1,200 people!")
    ['on', '21', 'june', 'at', 'mrs', 'oneill', '1200', 'people']
    """
    text = unicodedata.normalize("NFKD", text.replace("’", "'")).casefold()
    text = "".join(letter for letter in text if not unicodedata.combining(letter))
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"\b(\d+)(st|nd|rd|th)\b", r"\1", text)
    text = re.sub(r"(?<=\d)(am|pm)\b", r" \1", text)
    text = re.sub(r"'s\b", "", text).replace("'", "")
    return [word for word in _counted(re.findall(r"[^\W_]+", text)) if word not in _FILLERS]


def _counted(words: Sequence[str]) -> list[str]:
    """Number words as digits: "two hundred and five" is 205, "twenty first" 21.

    >>> _counted(["two", "hundred", "and", "five", "and", "ninety", "nine", "twelve"])
    ['205', 'and', '99', '12']
    """
    found: list[str] = []
    at = 0
    while at < len(words):
        value, end = _number(words, at)
        found.append(words[at] if value is None else str(value))
        at = end
    return found


def _number(words: Sequence[str], at: int) -> tuple[int | None, int]:
    """The number that is spelled out from a word on, if one is, and where it ends."""
    value, end = _below_hundred(words, at)
    if value is None or words[end - 1] in _ORDINALS:
        return value, max(end, at + 1)
    for name, factor in (("hundred", 100), ("thousand", 1000)):
        if end < len(words) and words[end] == name:
            value, end = value * factor, end + 1
            skip = end + 1 if end < len(words) and words[end] == "and" else end
            more, after = _number(words, skip)
            if more is not None and more < factor:
                value, end = value + more, after
    return value, end


def _below_hundred(words: Sequence[str], at: int) -> tuple[int | None, int]:
    word = words[at] if at < len(words) else ""
    if word in _ORDINALS:
        return _ORDINALS[word], at + 1
    if word not in _NUMBERS:
        return None, at
    value = _NUMBERS[word]
    if value >= 20 and at + 1 < len(words):
        after = _NUMBERS.get(words[at + 1], _ORDINALS.get(words[at + 1], 0))
        if 0 < after < 10:
            return value + after, at + 2
    return value, at + 1
