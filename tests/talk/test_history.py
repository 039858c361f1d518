"""What a message list is to a session: never read twice, never lost by a greeting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beacon_memory.errors import ConfigError
from beacon_memory.talk.history import Match, match


def talk(text: str, *, named: bool = False) -> list[dict[str, str]]:
    """Lower case letters are the user's messages, upper case the assistant's."""
    roles = {False: "user", True: "assistant"}
    found = [{"role": roles[c.isupper()], "content": c} for c in text]
    return [m | {"id": f"{n}"} for n, m in enumerate(found)] if named else found


@pytest.mark.parametrize(
    ("stored", "given_", "expected"),
    [
        ("", "a", (0, 0)),
        ("aBcD", "aBcDe", (4, 4)),  # the whole conversation
        ("aBcD", "e", (4, 0)),  # the newest message alone
        ("aBcD", "a", (4, 0)),  # said again, not gone back to
        ("aBcD", "aBc", (3, 3)),  # the last answer again
        ("aBcD", "aBx", (4, 2)),  # edited, or a new window with the same greeting: nothing tells, so it is new
        ("aBcDeF", "aBcDx", (4, 4)),  # edited
        ("aBcDeF", "aBxDy", (2, 2)),
        ("aBcDeFgH", "aBgHi", (8, 4)),  # its first messages and its newest ones
        ("aBcDeFgH", "aBHi", (8, 3)),
        ("aBcBeB", "aBxBy", (2, 2)),  # the same words again and again tell nothing
        ("aBcD", "aXcDe", (1, 1)),
        ("aBcD", "xBcDe", (0, 0)),  # its first message edited
        ("aBcD", "cDe", (4, 2)),  # trimmed
        ("aBcDeF", "cDx", (4, 2)),  # trimmed, then edited
        ("aBcDeF", "DeFg", (6, 3)),
        ("aBcD", "xYz", (4, 0)),  # another conversation
    ],
)
def test_auto(stored, given_, expected):
    assert match(talk(stored), talk(given_)) == Match(*expected)


def test_ids_tell_a_message_said_again_from_an_answer_asked_again():
    stored = talk("aBaB", named=True)
    assert match(stored, stored[:1]) == Match(1, 1)
    assert match(stored, [{"role": "user", "content": "a", "id": "new"}]) == Match(4, 0)
    assert match(stored, [stored[0] | {"content": "edited"}]) == Match(0, 0)


def test_ids_tell_a_trimmed_talk_from_its_beginning():
    """A talk cut to its newest messages, which began in the same words, was taken for an edit of its beginning."""
    stored = talk("aBaBaC", named=True)
    new = {"role": "user", "content": "d", "id": "new"}
    assert match(stored, [*stored[2:], new]) == Match(6, 4)
    assert match(stored, [*stored[4:], new]) == Match(6, 2)
    nameless = [{key: value for key, value in m.items() if key != "id" or m["role"] != "user"} for m in stored]
    assert match(nameless, [*nameless[2:], new]) == Match(6, 4)  # the model's answers have ids of themselves
    assert match(stored, [stored[2] | {"content": "edited"}]) == Match(2, 0)
    assert match(stored, [new, *stored[:2]]) == Match(0, 0)  # something was put in front


@pytest.mark.parametrize(
    ("stored", "given_", "kept", "known", "late"),
    [
        ("aBcDeF", "xeFg", 6, 3, (0,)),  # a summary in the place of the front
        ("aBcDeF", "xYeFg", 6, 4, (0, 1)),  # examples
        ("aBcDeF", "xaBcDeFg", 6, 7, (0,)),  # a summary in front of everything
        ("aBcDeF", "xBcDeFg", 0, 0, ()),  # the first message edited
        ("aBcDeF", "xFg", 0, 0, ()),  # one message may be chance
    ],
)
def test_what_is_put_in_front_of_the_newest_messages_is_read_behind_them(stored, given_, kept, known, late):
    assert match(talk(stored), talk(given_)) == Match(kept, known, late)


def test_a_message_that_is_redacted_is_that_message_whatever_was_left_out_beside_it():
    stored = talk("aBcdE", named=True)
    asked = {"role": "user", "content": "f", "id": "new"}
    assert match(stored, [*stored[:2], stored[3] | {"content": "gone"}, stored[4], asked]) == Match(5, 4)


def test_full_and_append_are_forced():
    assert match(talk("aBcD"), talk("a"), "full") == Match(1, 1)
    assert match(talk("aBcD"), talk("aBcDe"), "append") == Match(4, 0)
    with pytest.raises(ConfigError, match="history"):
        match([], [], "some")


LETTERS = st.text("abAB", max_size=8)


@given(LETTERS, LETTERS, st.sampled_from(["auto", "append", "full"]))
def test_what_is_known_is_the_end_of_what_is_kept(stored, new, history):
    """Behind its first messages, if it begins with them, or behind what is late."""
    found = match(talk(stored), talk(new), history)
    assert 0 <= found.kept <= len(stored)
    assert found.late == tuple(range(len(found.late)))
    fronts = [n for n in range(found.known + 1) if stored.startswith(new[:n])] + [len(found.late)]
    assert any(stored[: found.kept].endswith(new[n : found.known]) for n in fronts)


@given(LETTERS, LETTERS)
def test_the_whole_conversation_and_more_adds_the_rest_alone(stored, more):
    whole = "aB" + stored
    assert match(talk(whole), talk(whole + more)) == Match(len(whole), len(whole))
