"""Looking again by words: for any model, without a fit, without reading the question beforehand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from beacon_memory import BeaconConfig, BeaconMemory, BeaconModel
from beacon_memory.errors import ConfigError, MissingExtra
from beacon_memory.models import finder as finders
from beacon_memory.models.finder import Finder, finder_by
from beacon_memory.sessions.documents import Document, Documents
from beacon_memory.sessions.looking.plain import text_looked
from beacon_memory.testing import tiny_checkpoint, tiny_model

CONFIG = BeaconConfig(window=32, keep_last=8, sink=2, anchors="last")
HEADS = Finder(((1, 0), (0, 1)), (2.0, 1.0), threshold=3.0)
SAID = {
    "Lyon": "I live in Lyon, in a small house near the river, and I like to swim.",
    "Rex": "My dog is called Rex; he is old and sleeps all day under the table.",
    "4711": "The code of the garage is 4711, please tell nobody about it at all.",
    "Olga": "My sister Olga plays the violin in an orchestra and travels a lot.",
}
ASKED = {"Lyon": "Where do I live?", "Rex": "How is my dog called?", "4711": "What is the code of the garage?"}


@pytest.fixture(scope="module")
def model() -> BeaconModel:
    model = tiny_model(config=CONFIG)
    model.finder = finder_by("words", None)
    return model


@pytest.fixture
def memory(model: BeaconModel) -> BeaconMemory:
    memory = BeaconMemory.open(model)
    memory.session("ada").add([{"role": "user", "content": text, "id": name} for name, text in SAID.items()])
    memory.session("ada").add({"role": "user", "content": "And now something else, as long as what is kept raw."})
    return memory


@pytest.mark.parametrize(("right", "question"), ASKED.items())
def test_the_message_that_says_the_words_is_read_again(memory, right, question):
    prompt = memory.session("ada").prompt_for(question)
    assert right in memory.model.decode(prompt.part("recalled"))
    assert right in prompt.sources[0].text
    assert right in memory.session("ada").search(question, limit=1)[0].text


@pytest.mark.parametrize("question", ["Who was Napoleon's second wife?", "What is it?", "去哪里?"])
def test_a_question_in_no_words_of_the_memory_reads_nothing_again(memory, question):
    plain = memory.session("ada").prompt_for(question, recall_tokens=0)
    found = memory.session("ada").prompt_for(question)
    assert (found.ids, found.sources) == (plain.ids, ())


def test_the_question_is_not_read_to_find_what_it_is_about(memory, monkeypatch):
    """So another engine may answer it."""
    monkeypatch.setattr(finders, "read", lambda *_: pytest.fail("the model was asked"))
    assert memory.session("ada").prompt_for(ASKED["Rex"]).sources


def test_documents_and_bare_prompts_are_found_in_too(memory):
    text = "The shed is green. " * 3 + "Its lock has the number 7294. " + "It rained. " * 9
    Documents(memory, "house").put([Document("n", text)])
    ids = memory.model.encode("Which number has the lock of the shed?")
    prompt = text_looked(memory, ids, contexts=["context:house"], answer=8)
    assert prompt.sources[0].document == "n"
    assert "7294" in prompt.sources[0].text


def test_a_session_of_an_older_release_is_found_in_by_words(memory):
    """Words need no places: `repair(…, places=True)` is not asked for."""
    session = memory.session("ada")
    prompt = session.prompt_for(ASKED["Rex"], recall_tokens=0)
    old = [replace(segment, placed=None) for segment in prompt.segments]
    from beacon_memory.sessions.looking.again import look_again

    assert look_again(memory, replace(prompt, segments=tuple(old))).sources


def test_both_find_what_either_finds():
    model = tiny_model(config=CONFIG)
    memory = BeaconMemory.open(model)
    memory.session("ada").add([{"role": "user", "content": text} for text in (*SAID.values(), "Now be quiet. " * 3)])
    scores: dict[str, dict[str, float]] = {}
    for kind in ("attention", "words", "attention+words"):
        model.finder = finder_by(kind, HEADS)
        found = memory.session("ada").search(ASKED["4711"], limit=100)
        scores[kind] = {source.text: source.score for source in found}
    both = model.finder
    assert set(scores["attention+words"]) == set(scores["attention"]) | set(scores["words"])
    for text, score in scores["attention+words"].items():
        told = scores["attention"].get(text, 0) + both.words * scores["words"].get(text, 0)
        assert score == pytest.approx(told, abs=1e-4)


def test_a_model_is_opened_with_what_finds(tmp_path, monkeypatch):
    checkpoint = tiny_checkpoint(tmp_path / "model")
    for kind, heads in (("words", False), ("attention+words", False), ("attention", None)):
        finder = BeaconModel.from_pretrained(checkpoint, CONFIG, finder=kind).finder
        assert (None if finder is None else bool(finder.heads)) == heads
    with pytest.raises(ConfigError, match=r"attention, words, attention\+words, not 'bm25'"):
        BeaconModel.from_pretrained(tmp_path / "nowhere", finder="bm25")  # before anything is loaded
    monkeypatch.setattr("beacon_memory.config.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"beacon-memory\[words\]"):
        BeaconModel.from_pretrained(tmp_path / "nowhere", finder="words")


def test_a_model_without_a_finder_says_what_would_find():
    memory = BeaconMemory.open(tiny_model(config=CONFIG))
    memory.session("ada").add({"role": "user", "content": SAID["Rex"]})
    with pytest.raises(ConfigError, match="finder='words'"):
        memory.session("ada").search("Where?")


def test_hot_turns_and_batches_say_what_fresh_ones_say(memory, model):
    how: dict[str, Any] = {"max_new_tokens": 4, "temperature": 0}
    hot = [memory.session("ada").ask(question, **how) for question in ASKED.values()]
    fresh = [BeaconMemory(model, memory.store).session("ada").ask(question, **how) for question in ASKED.values()]
    assert hot == fresh == memory.ask_many([("ada", question) for question in ASKED.values()], **how)


def test_what_is_far_from_the_best_is_not_read_beside_it(memory):
    """Five passages with half of the words hid the one that had all of them."""
    session = memory.session("ada")
    session.add(
        [{"role": "user", "content": f"The {word} is old and has seen better days."} for word in ("garage", "code") * 2]
    )
    session.add({"role": "user", "content": "And now something else, as long as what is kept raw."})
    prompt = session.prompt_for(ASKED["4711"], recall_tokens=1000)
    best = prompt.sources[0].score
    assert all(source.score >= 0.6 * best for source in prompt.sources)
    far = [one for one in session.search(ASKED["4711"], limit=100) if one.score < 0.6 * best]
    assert any(one.score >= memory.model.finder.threshold for one in far)
