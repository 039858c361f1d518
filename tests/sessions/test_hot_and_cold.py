"""What turns leave on the device changes nothing: a busy memory and a fresh one over the same store agree."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from beacon_memory import BeaconConfig, BeaconMemory, BeaconModel
from beacon_memory.models.finder import Finder
from beacon_memory.testing import tiny_model

GREEDY: dict[str, Any] = {"max_new_tokens": 4, "temperature": 0}
FINDER = Finder(((1, 0), (0, 1)), (2.0, 1.0), 0.5, baseline=0.5)
SAID = ["I live in Lyon.", "My dog is called Rex. " * 4, "The door is green, and the roof is red. " * 6]
READ = ["The lease ends in May, and the rent is due on the first. " * 4, "Whoever comes late stands at the door. " * 3]
ASKED = ["Where do I live?", "What is green, and who is Rex? " * 4, "When?"]
NAMES = st.sampled_from(["ada", "bob"])
WORD = st.sampled_from(range(3))
RECALL = st.sampled_from([0, 40, 256])
CALLS = st.one_of(
    st.tuples(st.sampled_from(["search", "ask", "chat", "batch", "stream"]), NAMES, WORD, RECALL),
    st.tuples(st.sampled_from(["add", "read", "edit", "rewind", "fork", "elsewhere"]), NAMES, WORD),
)


@pytest.fixture(scope="module")
def model() -> BeaconModel:
    model = tiny_model(config=BeaconConfig(window=32, keep_last=8, sink=2, overlap=5))
    model.finder = FINDER
    return model


@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
# A question about nothing, asked where a tail stood raw, wrote over it.
@example([("ask", "ada", 1, 0), ("search", "ada", 1, 0)])
@given(st.lists(CALLS, min_size=1, max_size=10))
def test_whatever_was_called_before_a_hot_memory_gives_what_a_fresh_one_gives(model, calls):
    hot = BeaconMemory.open(model)
    for name in ("ada", "bob"):  # both share a document
        hot.session(name).add_text(READ[0], name="lease")
        hot.session(name).add({"role": "user", "content": f"I am {name}. {SAID[1]}"})
    for call in calls:
        done(hot, *call)
    for name in ("ada", "bob"):
        agree(hot, name, ASKED[0], 256)


def done(hot: BeaconMemory, act: str, name: str, n: int, recall: int = 0) -> None:
    """Do one thing; what it answers is what a fresh memory answers."""
    session, model = hot.session(name), hot.model
    if act in ("search", "ask"):
        agree(hot, name, ASKED[n], recall, search=act == "search", ask=act == "ask")
    elif act == "chat":
        told = BeaconMemory(model, hot.store).session(name).ask(ASKED[n], recall_tokens=recall, **GREEDY)
        assert session.chat(ASKED[n], recall_tokens=recall, **GREEDY) == told
    elif act == "batch":
        asked = [("ada", ASKED[n]), ("bob", ASKED[n - 1]), ("ada", ASKED[n - 2])]
        fresh = BeaconMemory(model, hot.store)
        told = [fresh.session(name).ask(text, recall_tokens=recall, **GREEDY) for name, text in asked]
        assert hot.ask_many(asked, recall_tokens=recall, **GREEDY) == told
    elif act == "stream":  # cut off
        pieces = session.chat(ASKED[n], recall_tokens=recall, stream=True, max_new_tokens=30, temperature=0)
        next(iter(pieces), None)
        pieces.close()
    elif act in ("add", "elsewhere"):
        memory = hot if act == "add" else BeaconMemory(model, hot.store)
        memory.session(name).add({"role": ("user", "assistant")[n % 2], "content": SAID[n]})
    elif act == "read":
        session.add_text(READ[n % 2], name=("lease", "rules")[n % 2])
    elif act == "edit":
        said = [i for i, message in enumerate(session.messages()) if message["role"] in ("user", "assistant")]
        if said:
            session.edit(said[n % len(said)], SAID[n])
    elif act == "rewind":
        session.rewind(max(len(session.messages()) - n, 1))
    else:
        other = "bob" if name == "ada" else "ada"
        hot.session(other).forget()
        session.fork(other)


def agree(hot: BeaconMemory, name: str, question: str, recall: int, *, search: bool = True, ask: bool = True) -> None:
    """The same prompt, passages, scores and answer."""
    one, other = (memory.session(name) for memory in (hot, BeaconMemory(hot.model, hot.store)))
    how: dict[str, Any] = {"recall_tokens": recall}
    if search:
        found = [session.search(question, limit=100) for session in (one, other)]
        assert [source.score for source in found[0]] == pytest.approx([s.score for s in found[1]], abs=1e-4)
        places = [sorted((s.document or "", s.message or 0, s.start, s.end, s.text) for s in each) for each in found]
        assert places[0] == places[1]
    if ask:
        prompts = [session.prompt_for(question, **how) for session in (one, other)]
        assert prompts[0].ids == prompts[1].ids
        assert one.ask(question, **how, **GREEDY) == other.ask(question, **how, **GREEDY)
