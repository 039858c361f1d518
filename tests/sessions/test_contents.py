"""A session laid open: every token that was read is a message's or a document's, and is raw or folded at one ratio."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_memory import BeaconConfig, BeaconMemory
from beacon_memory.sessions.looking.contents import Held, contents_of, text_of
from beacon_memory.testing import tiny_model

MODEL = tiny_model(config=BeaconConfig(window=32, keep_last=8, sink=2, overlap=5))
WORDS = st.text(alphabet="ab où去. !?<|", min_size=1, max_size=150).filter(str.strip)
ACTS = st.lists(st.tuples(st.sampled_from(["say", "answer", "read"]), WORDS, st.sampled_from([2, 4, 8])), max_size=8)


@settings(max_examples=20, deadline=None)
@given(ACTS, st.sampled_from([64, 256]))
def test_all_that_was_read_is_told_once_with_its_ratio(acts: list[tuple[str, str, int]], budget: int) -> None:
    memory = BeaconMemory.open(MODEL)
    memory.session("ada", budget=budget).add("Hello.")
    texts = dict[str, str]()
    for act, text, ratio in acts:
        session = memory.session("ada", ratio=ratio)
        if act == "read":
            session.add_text(text, name=f"{text[:9]}.txt")
            texts[f"{text[:9]}.txt"] = text
        else:
            session.add({"role": "user" if act == "say" else "assistant", "content": text})
    info, messages = memory.session("ada").info(), memory.session("ada").messages()
    found = contents_of(memory, "ada")
    assert [one.place for one in found] == list(range(len(messages)))
    assert [one.document for one in found] == [m["content"] if m["role"] == "document" else None for m in messages]
    assert all(sum(part.tokens for part in one.held) == one.tokens for one in found)
    kept = Counter[int | None]()
    for one in found:
        for part in one.held:
            kept[part.ratio] += part.tokens
    opening = info.tokens - sum(kept.values())  # the stream's first token is no message's
    assert 0 <= opening <= len(memory.transcript.start)
    counted = {**info.ratios, **({None: info.tail} if info.tail else {})}
    assert kept.keys() == counted.keys()
    assert sum(counted[ratio] - kept[ratio] for ratio in counted) == opening
    assert all(counted[ratio] >= kept[ratio] for ratio in counted)
    assert {name: text_of(memory, "ada", name) for name in texts} == texts


def test_what_came_last_is_raw_and_what_came_first_is_folded() -> None:
    memory = BeaconMemory.open(MODEL)
    session = memory.session("ada", ratio=4)
    session.add([{"role": "user", "content": "I live in Lyon, in a small house. " * 6}])
    session.add([{"role": "assistant", "content": "Yes."}])
    first, last = contents_of(memory, "ada")
    assert first.held[0].ratio == 4
    assert last.held == (Held(last.tokens, None),)
    assert text_of(memory, "ada", "nothing") is None
