"""Written answers, and the tasks chat and near: what they ask, and that memories are read as a session's are."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_data import folder_of

from beacon_memory import BeaconConfig, BeaconMemory, BeaconModel, BeaconState
from beacon_memory.errors import ConfigError, InputError
from beacon_memory.evaluation.data import Data
from beacon_memory.evaluation.items import Task
from beacon_memory.evaluation.memories import BASELINES, Memories
from beacon_memory.evaluation.methods import chosen
from beacon_memory.evaluation.reading import greedy
from beacon_memory.evaluation.reporting.results import Results
from beacon_memory.evaluation.reporting.tables import columns, markdown, summarise, verdict
from beacon_memory.evaluation.runner import measure
from beacon_memory.evaluation.scoring import said
from beacon_memory.evaluation.tasks import make_task, words
from beacon_memory.evaluation.tasks.chat import small_talk, talk_of
from beacon_memory.evaluation.tasks.reader import Reader
from beacon_memory.evaluation.tasks.sayings import SAYINGS
from beacon_memory.testing import tiny_model
from beacon_memory.training import chats, facts

CONFIG = BeaconConfig(window=256, sink=4, keep_last=64, anchors="last", slot_dtype="float32", overlap=8)
POSITIONS = 16384
METHODS = ("full", "none", "last-window", "bm25", "kv-subsample", "eviction", "beacon-last", "control")


@pytest.fixture(scope="module")
def model() -> BeaconModel:
    return tiny_model(config=CONFIG, max_position_embeddings=POSITIONS)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Data:
    return Data(folder_of(tmp_path_factory.mktemp("data")))


def chat_of(model: BeaconModel, data: Data, items: int = 20, seed: int = 0) -> Task:
    return make_task("chat", model, data, items=items, seed=seed)


@pytest.mark.parametrize(("name", "options"), [("chat", {}), ("near", {"lengths": (16, 32), "ratio": 8})])
def test_items_are_a_function_of_data_seed_and_number(model, data, name, options):
    @settings(max_examples=5, deadline=None)
    @given(seed=st.integers(0, 10**9), few=st.integers(1, 12), more=st.integers(0, 12))
    def same(seed, few, more):
        first, longer = (make_task(name, model, data, items=n, seed=seed, **options).items for n in (few, few + more))
        assert longer[: len(first)] == first
        other = make_task(name, model, data, items=few, seed=seed + 1, **options).items
        assert other != first

    same()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**9), rounds=st.integers(3, 40), count=st.integers(1, 8))
@example(seed=3575089, rounds=3, count=5)  # another fact's sentence said the value too
def test_a_talk_says_each_value_and_says_the_newest_last(shared, seed, rounds, count):
    import random

    draw = random.Random(seed)
    talk = talk_of(draw, small_talk(shared, draw, rounds), count)
    assert len(talk.messages) == 2 * rounds
    assert len({fact.about for fact in talk.facts}) == count
    for fact, place in zip(talk.facts, talk.places, strict=True):
        assert not said(fact.ask, fact.gold)
        told = [n for n, (_, text) in enumerate(talk.messages) if said(text, fact.gold)]
        assert told
        assert max(told) == place
        assert talk.messages[place][0] == fact.by
        if fact.changed:
            old = [n for n, (_, text) in enumerate(talk.messages) if said(text, [fact.wrong[0]])]
            assert min(old) <= place
            assert not said(fact.wrong[0], fact.gold)


@pytest.fixture(scope="module")
def shared(data) -> Data:
    return data


def test_most_of_what_is_asked_stands_in_slots_and_some_in_the_raw_tail(model, data):
    task = chat_of(model, data, items=60)
    groups = [question.group for item in task.items for question in item.questions]
    raw = [group for group in groups if group.startswith("in the raw tail; ")]
    assert 0 < len(raw) < len(groups) / 2
    assert {group.partition("; ")[2] for group in groups} >= {"own", "of others", "changed since"}
    for item in task.items:
        tail = model.decode(item.context[len(item.context) - item.raw :])
        for question in item.questions:
            if not question.group.startswith("in slots"):
                assert said(tail, question.gold)


def test_a_right_answer_stands_among_seven_wrong_ones_and_the_old_one_is_one_of_them(model, data):
    for item in chat_of(model, data, items=60).items:
        for question in item.questions:
            answers = [model.decode(answer) for answer in question.answers]
            assert len(set(answers)) == len(answers) <= 8
            assert [said(answer, question.gold) for answer in answers] == [1] + [0] * (len(answers) - 1)
            if question.group.endswith("changed since"):
                assert said(model.decode(item.context), [answers[1].rstrip(".")])


def test_a_chat_is_answered_as_a_session_answers(data):
    """The same ids behind the same slots: what is measured is what `Session.ask` says."""
    for overlap in (0, 8):
        config = CONFIG.replace(overlap=overlap)
        model = tiny_model(config=config, max_position_embeddings=POSITIONS)
        memory, reader = BeaconMemory.open(model), Reader(model)
        item = chat_of(model, data, items=4).items[0]
        told = _messages(model, item)
        memory.session("a").add(told)
        assert memory.session("a").info().slots
        made = Memories(model, item).make("beacon", config.ratio)
        written = greedy(model, made, item, item.questions[:2], limit=8)
        for question, ids in zip(item.questions, written, strict=False):
            asked = f"{question.query} Answer in a few words."
            assert reader.asked(asked) == question.asked
            prompt, state = memory.session("a").prompt(asked)
            assert made.slots == state.slots + len(prompt) - len(question.asked)
            assert model.decode(ids) == memory.session("a").ask(asked, max_new_tokens=8)


def _messages(model: BeaconModel, item) -> list[dict[str, str]]:
    """The messages of a chat, read back from its ids."""
    text = model.tokenizer.decode(list(item.context))
    found = []
    for part in text.split("<|im_start|>")[1:]:
        role, _, content = part.removesuffix("<|im_end|>\n").partition("\n")
        found.append({"role": role, "content": content})
    return found


def test_what_stands_near_is_read_raw_behind_slots_of_a_text(model, data):
    task = make_task("near", model, data, items=40, seed=0, lengths=(16, 32), ratio=8)
    assert task.ratio == 8
    kinds = set()
    for item in task.items:
        memories = Memories(model, item)
        slots, _, kind = item.questions[0].group.partition(" slots")
        kinds.add(kind.split("; ")[1])
        folded = memories.plan(8).slots
        assert folded == (int(slots) + CONFIG.sink if int(slots) else 0)
        tail = model.decode(item.context[len(item.context) - item.raw :])
        assert all(said(tail, question.gold) for question in item.questions)
    assert kinds >= {"novel", "talk", "document"}
    item = next(item for item in task.items if "32 slots; novel" in item.questions[0].group)
    end = len(item.context) - item.raw
    state = model.compress(item.context[:end], ratio=8, document=True)
    question = item.questions[0]
    prompt = [*item.system, *item.context[end:], *question.asked]
    written = greedy(model, Memories(model, item).make("beacon", 8), item, [question], limit=8)
    assert model.decode(written[0]) == model.generate([prompt], [BeaconState(state.segments)], max_new_tokens=8)[0]


def test_every_method_keeps_the_same_entries_beside_the_system_prompt(model, data):
    near = make_task("near", model, data, items=40, seed=0, lengths=(16, 32), ratio=8)
    for item in (*chat_of(model, data, items=12).items, *near.items):
        memories = Memories(model, item)
        kinds = [kind for kind in (*BASELINES, "beacon") if kind not in ("full", "none")]
        kept = {memories.make(kind, 8, item.questions[0]).slots for kind in kinds}
        assert kept == {memories.plan(8).entries + len(item.system)}
        assert memories.make("full", 1).slots == len(item.context) + len(item.system)


def test_a_raw_talk_is_read_as_a_session_that_has_folded_nothing(model, data):
    reader = Reader(model)
    item = chat_of(model, data, items=12).items[0]
    full = Memories(model, item).make("full", 1)
    question = item.questions[0]
    ids = model.tokenizer.apply_chat_template(
        [*_messages(model, item), {"role": "user", "content": f"{question.query} Answer in a few words."}],
        add_generation_prompt=True,
        return_dict=False,
    )
    written = greedy(model, full, item, [question], limit=8)[0]
    assert [*reader.system, *item.context, *question.asked] == ids
    assert model.decode(written) == model.generate([ids], max_new_tokens=8)[0]


def run(folder, task, model, *, answers, methods=METHODS):
    lm, tokenizer = tiny_model(config=CONFIG, max_position_embeddings=POSITIONS).detach(), model.tokenizer
    results = Results(folder)
    settings = {"results": results, "common": CONFIG, "seconds": 1e9, "answers": answers}
    return measure(lm, tokenizer, task, chosen(methods, {}), (8,), **settings), results


def test_written_answers_are_added_to_ranked_ones(model, data, tmp_path):
    task = chat_of(model, data, items=12)
    short = dataclasses.replace(task, items=task.items[1:2])
    cells, ranked = run(tmp_path, short, model, answers=("ranked",))
    before = dict(ranked.rows)
    assert len(before) == len(cells) - 1  # there is no other talk for the control
    assert all(score.said is None and score.loss is not None for row in before.values() for score in row.scores)
    again, both = run(tmp_path, short, model, answers=("written", "ranked"))
    assert again == cells
    for key, row in Results(tmp_path).rows.items():
        assert both.rows[key] == row
        assert row.seconds > before[key].seconds
        for old, new in zip(before[key].scores, row.scores, strict=True):
            assert (new.loss, new.right, new.group) == (old.loss, old.right, old.group)
            assert new.said in (0, 1)
            assert new.f1 is not None
            assert new.answer is not None
    lines = (tmp_path / "scores.jsonl").read_text()
    run(tmp_path, short, model, answers=("written",))
    assert (tmp_path / "scores.jsonl").read_text() == lines


def test_reports_begin_with_what_is_said(model, data, tmp_path):
    task = make_task("near", model, data, items=6, seed=0, lengths=(16,), ratio=8)
    cells, results = run(tmp_path, task, model, answers=("written", "ranked"), methods=("full", "none", "beacon-last"))
    summaries = summarise(task, cells, results)
    assert columns(task, summaries) == ["said", "said_share", "f1", "accuracy", "share"]
    assert {summary.metric for summary in summaries} == {"said"}
    assert set(summaries[0].groups) >= {"0 slots", "16 slots", "novel"}
    assert verdict(summaries) == "None: said 0.00 [0.00, 0.00], fails, as it must."
    report = markdown([(task, summaries)], command="eval", about={})
    assert report.index("| said |") < report.index("| accuracy |")
    assert "| said | 0 slots |" in report
    only = summarise(task, *run(tmp_path / "ranked", task, model, answers=("ranked",), methods=("full", "none")))
    assert columns(task, only) == ["accuracy", "share"]


def test_a_question_that_gives_itself_away_is_told_of(model, data, tmp_path):
    task = make_task("near", model, data, items=4, seed=0, lengths=(16,), ratio=8)
    item = task.items[0]
    none = Memories(model, item).make("none", 0)
    word = model.decode(greedy(model, none, item, item.questions[:1], limit=40)[0]).split()
    leaky = dataclasses.replace(item.questions[0], gold=(next(w for w in word if said(w, [w])),))
    leaking = dataclasses.replace(task, items=(dataclasses.replace(item, questions=(leaky,)),))
    summaries = summarise(leaking, *run(tmp_path, leaking, model, answers=("written",), methods=("none",)))
    assert "DOES NOT FAIL: the questions give it away" in verdict(summaries)


def test_what_has_no_questions_has_no_written_answers(model, data, tmp_path):
    prose = make_task("prose", model, data, items=1, seed=0)
    with pytest.raises(ConfigError, match="ranked answers only"):
        run(tmp_path, prose, model, answers=("written",))


def test_dialogues_and_needles_are_asked_as_a_person_asks(model, data):
    reader = Reader(model)
    for name, options in (("dialogue", {}), ("needle", {"lengths": (700,)}), ("qa", {})):
        for item in make_task(name, model, data, items=6, seed=0, **options).items:
            for question in item.questions:
                briefly = " Answer in a few words." if name == "qa" else ""
                assert question.asked == reader.prompt(f"{question.query}{briefly}")
                assert said(model.decode(item.context), question.gold)


def test_sayings_share_neither_words_nor_wording_with_what_is_trained_on():
    trained = {value for module in (facts, chats) for value in _strings(vars(module))}
    common = {*words.MONTHS, *words.DAYS, *words.KIN}
    ours = {value for name in vars(words) if name.isupper() for value in getattr(words, name)} - common
    assert not ours & trained
    plain = {" ".join(text.replace("{}", "").split()).casefold() for text in trained}
    for saying in SAYINGS:
        for text in (*saying.told, *saying.changed):
            for word in ("{v}", "{x}", "{who}", "{name}", "{old}"):
                text = text.replace(word, "")
            assert " ".join(text.split()).casefold() not in plain


def _strings(found) -> set[str]:
    """All texts in the constants of a module."""
    texts: set[str] = set()
    left = [value for name, value in found.items() if name.isupper() or (name.startswith("_") and name[1:].isupper())]
    while left:
        one = left.pop()
        if isinstance(one, str):
            texts.add(one)
        elif isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, tuple | list):
            left += one
    return texts


def test_too_little_small_talk_is_told_of(model, tmp_path):
    (tmp_path / "dialogues").mkdir()
    talk = tmp_path / "dialogues" / "topical-chat.jsonl"
    talk.write_text('{"turns": [{"content": "Hi"}, {"content": "Hello"}]}\n')
    with pytest.raises(InputError, match="rounds of small talk"):
        chat_of(model, Data(tmp_path))
    talk.write_text('{"say": []}\n')
    with pytest.raises(InputError, match="expected 'turns'"):
        chat_of(model, Data(tmp_path))
    with pytest.raises(InputError, match="--data"):
        chat_of(model, Data())


def test_greedy_leaves_a_memory_as_it_was(model, data):
    item = chat_of(model, data, items=12).items[1]
    memory = Memories(model, item).make("beacon", 8)
    keys = memory.keys.clone()
    first = greedy(model, memory, item, item.questions, limit=5)
    assert torch.equal(memory.keys, keys)
    assert greedy(model, memory, item, item.questions, limit=5) == first
