"""A memory that looks again, measured: at as many entries as every other method, or beside what `beacon` keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import folder_of

from beacon_memory import BeaconConfig, BeaconModel
from beacon_memory.config import RECALL_TOKENS
from beacon_memory.evaluation.data import Data
from beacon_memory.evaluation.items import Item, Question
from beacon_memory.evaluation.looking import looking
from beacon_memory.evaluation.memories import Memories
from beacon_memory.evaluation.methods import chosen, common_settings
from beacon_memory.evaluation.reporting.results import Results
from beacon_memory.evaluation.runner import cells, measure
from beacon_memory.evaluation.tasks import make_task
from beacon_memory.evaluation.tasks.reader import Reader
from beacon_memory.models.adapter import save_adapter
from beacon_memory.models.finder import FILE, Finder, finder_by
from beacon_memory.sessions.memory import BeaconMemory
from beacon_memory.testing import tiny_model

CONFIG = BeaconConfig(window=32, sink=2, keep_last=8, overlap=4, anchors="last", slot_dtype="float32")
FINDER = Finder(((1, 0), (0, 1)), (2.0, 1.0), 0.0)  # finds something, whatever is asked
TALK = [
    ("user", "I live in Lyon, in a small house near the river. "),
    ("assistant", "That is a lovely town, I like it a lot. "),
] * 5


def finding() -> BeaconModel:
    model = tiny_model(config=CONFIG)
    model.finder = FINDER
    return model


_MADE = finding()


def item_of(model: BeaconModel, talk: list[tuple[str, str]], *, raw: int, talking: bool) -> Item:
    reader = Reader(model)
    ids = (*reader.start, *(i for message in talk for i in reader.turn(*message)))
    prompt = reader.asked("Where do I live?") if talking else reader.prompt("Where do I live?")
    question = Question(prompt, (reader.answer("Lyon."), reader.answer("Paris.")), query="Where?", gold=("Lyon",))
    system = reader.system if talking else ()
    return Item("talk", reader.start, ids, (question,), raw=raw, system=system, talk=talking)


@settings(max_examples=12, deadline=None)
@given(
    rounds=st.integers(1, 8),
    ratio=st.sampled_from([2, 4, 8, 16, 32]),
    raw=st.sampled_from([0, 40]),
    talking=st.booleans(),
)
def test_what_is_read_again_is_counted(rounds, ratio, raw, talking):
    item = item_of(_MADE, TALK[:rounds], raw=raw, talking=talking)
    memories = Memories(_MADE, item)
    planned = memories.plan(ratio)
    found = looking(memories, "beacon+look", ratio)
    if found is None:
        assert ratio == 32
        return
    asked, again = found.asked(item.questions[0])
    assert found.past.slots + again <= planned.entries + len(item.system)
    assert len(asked.asked) == len(item.questions[0].asked) + again
    whole = looking(memories, "beacon+recall", ratio)
    beacon = memories.make("beacon", ratio)
    assert whole.past.slots == beacon.slots
    assert whole.asked(item.questions[0])[1] <= RECALL_TOKENS


@pytest.mark.parametrize("talking", [True, False])
def test_a_question_reads_again_what_a_session_would(talking):
    """The prompt of `beacon+recall` is the one that the product makes of the same memory."""
    model = _MADE
    memory = BeaconMemory.open(model, recall_tokens=RECALL_TOKENS)
    session = memory.session("ada")
    for role, text in TALK:
        session.add({"role": role, "content": text})
    state = session.state()
    raw = len(state.tail)
    item = item_of(model, TALK, raw=raw if talking else 0, talking=True)
    if not talking:
        # the system prompt stands in the question, as `needle` has it
        system = item.system
        (question,) = item.questions
        item = replace(item, system=(), questions=(replace(question, prompt=(*system, *question.prompt)),), raw=0)
        asked, again = looking(Memories(model, item), "beacon+recall", 4).asked(item.questions[0])
        assert again
        assert asked.prompt[: len(system)] == system
        assert asked.prompt[len(system) + again :] == question.prompt
        return
    (question,) = item.questions
    asked, again = looking(Memories(model, item), "beacon+recall", 4).asked(question)
    prompt = session.prompt_for("Where do I live?")
    assert again == len(prompt.part("recalled")) > 0
    assert asked.prompt == (*prompt.part("recalled"), *prompt.part("asked"), *prompt.part("header"))


def test_it_is_measured_beside_the_others_where_somebody_asks(tmp_path):
    model = finding()
    adapter = tmp_path / "adapter"
    save_adapter(model.beacons, adapter, config=CONFIG, model=model.fingerprint.model)
    adapters = {"beacon": adapter}
    assert [method.name for method in chosen(["beacon", "beacon+look"], adapters)] == ["beacon"]  # no finder
    FINDER.write(adapter, model=model.fingerprint.model)
    assert (Path(adapter) / FILE).exists()
    methods = chosen(["bm25", "beacon", "beacon+look", "beacon+recall"], adapters)
    assert [method.name for method in methods] == ["bm25", "beacon", "beacon+look", "beacon+recall"]
    (tmp_path / "data").mkdir()
    data = Data(folder_of(tmp_path / "data"))
    task = make_task("needle", model, data, items=5, seed=0, lengths=(400,))
    tokenizer, lm = model.tokenizer, model.detach()
    results, common = Results(tmp_path / "out"), common_settings(adapters)
    found = measure(lm, tokenizer, task, methods, [4], results=results, common=common, seconds=60)
    assert len(found) == cells(task, methods, [4]) == 4
    rows = {cell.method: results.rows[cell, task.items[0].digest] for cell in found}
    assert rows["beacon+look"].entries <= rows["beacon"].entries == rows["bm25"].entries
    assert rows["beacon"].entries < rows["beacon+recall"].entries <= rows["beacon"].entries + RECALL_TOKENS
    assert all(score.said is not None and score.right is not None for row in rows.values() for score in row.scores)
    weights = {cell.method: cell.weights for cell in found}
    assert weights["beacon+look"].startswith(weights["beacon"])
    assert weights["beacon+look"] != weights["beacon"]  # another finder gives other figures
    prose = make_task("prose", BeaconModel(lm, tokenizer, CONFIG), data, items=1, seed=0)
    assert cells(prose, methods, [4]) == 2


def test_words_need_no_fit(tmp_path):
    """Whatever adapters there are, and without one."""
    model = finding()
    adapter = tmp_path / "adapter"
    save_adapter(model.beacons, adapter, config=CONFIG, model=model.fingerprint.model)
    names = [one.name for one in chosen(["beacon+recall"], {"mine": adapter}, finder="attention+words")]
    assert names == ["mine+recall"]
    (method,) = chosen(["beacon+recall"], {}, finder="words")
    (tmp_path / "data").mkdir()
    task = make_task("needle", model, Data(folder_of(tmp_path / "data")), items=3, seed=0, lengths=(400,))
    tokenizer, lm = model.tokenizer, model.detach()
    results = Results(tmp_path / "out")
    (cell,) = measure(lm, tokenizer, task, [method], [16], results=results, common=CONFIG, seconds=60)
    assert cell.method == "beacon-reconstruct+recall"
    assert all(results.rows[cell, item.digest].entries > 400 / 16 for item in task.items)


@pytest.mark.parametrize("kind", ["words", "attention+words"])
def test_by_words_too_a_question_reads_again_what_a_session_would(kind):
    model = finding()
    model.finder = finder_by(kind, replace(FINDER, threshold=3.0))
    memory = BeaconMemory.open(model, recall_tokens=RECALL_TOKENS)
    session = memory.session("ada")
    for role, text in TALK:
        session.add({"role": role, "content": text})
    item = item_of(model, TALK, raw=len(session.state().tail), talking=True)
    asked, again = looking(Memories(model, item), "beacon+recall", 4).asked(item.questions[0])
    prompt = session.prompt_for("Where do I live?")
    assert again == len(prompt.part("recalled")) > 0
    assert asked.prompt == (*prompt.part("recalled"), *prompt.part("asked"), *prompt.part("header"))
