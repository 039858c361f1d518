"""Measuring: figures by hand, equal numbers of entries, controls that fail, runs that go on."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import folder_of

from beacon_memory import BeaconConfig, BeaconModel
from beacon_memory.errors import ConfigError, InputError
from beacon_memory.evaluation.data import Data
from beacon_memory.evaluation.items import Item, Question, Task
from beacon_memory.evaluation.memories import BASELINES, Memories, plan, read_raw
from beacon_memory.evaluation.methods import chosen
from beacon_memory.evaluation.reading import answer_losses, greedy
from beacon_memory.evaluation.reporting.figures import Score, figures
from beacon_memory.evaluation.reporting.results import Results
from beacon_memory.evaluation.reporting.tables import summarise, verdict
from beacon_memory.evaluation.retrieval import best_chunks, chunk_ends
from beacon_memory.evaluation.runner import measure
from beacon_memory.evaluation.scoring import f1, rank_right
from beacon_memory.evaluation.tasks import make_task
from beacon_memory.testing import tiny_model

CONFIG = BeaconConfig(window=16, sink=2, keep_last=5, anchors="last", slot_dtype="float32")
METHODS = ("full", "none", "last-window", "bm25", "kv-subsample", "eviction", "beacon-last", "control")


@pytest.fixture(scope="module")
def model() -> BeaconModel:
    return tiny_model(config=CONFIG)


def item(ids: list[int], *, start: tuple[int, ...] = (1,), source: str = "a", ask: int = 4, raw: int = 0) -> Item:
    """A context of these ids, to be said again from its `ask`th token on."""
    question = Question(tuple(ids[:1]), (tuple(ids[1:ask]), tuple(ids[2 : ask + 1])), query="the red door")
    return Item(source, start, (*start, *ids), (question,), raw=raw)


def drawn(seed: int, count: int) -> list[int]:
    return random.Random(seed).choices(range(3, 300), k=count)


def task_of(count: int) -> Task:
    items = [item(drawn(seed, 60 + 3 * seed), source=str(seed)) for seed in range(count)]
    return Task("copy", "ids again", "loss", tuple(items))


def test_the_first_answer_is_right_only_when_it_is_the_likeliest_alone():
    assert rank_right([0.1, 0.2, 0.3]) == 1
    assert rank_right([0.3, 0.2, 0.4]) == 0
    assert rank_right([0.2, 0.2]) == 0


def test_f1_is_that_of_hand_counted_words():
    assert f1("A well-to-do farmer.", ["a well-to-do farmer"]) == 1
    assert f1("the king", ["queen"]) == 0
    assert f1("The red old house", ["a red house", "nothing"]) == pytest.approx(0.8)
    assert f1("", ["a king"]) == 0


def test_what_is_kept_is_the_share_of_the_gap_on_the_same_items():
    full = {name: [Score(1.0, 1)] for name in "abc"}
    none = {name: [Score(3.0, 0)] for name in "abcd"}
    own = {"a": [Score(1.5, 1)], "b": [Score(2.5, 0)], "d": [Score(9.0, 0)]}
    found = figures(own, full=full, none=none)
    assert found["kept"].value == pytest.approx(0.5)
    assert found["share"].value == pytest.approx(0.5)
    assert found["loss"].value == pytest.approx(13 / 3)
    assert found["kept"].low <= 0.5 <= found["kept"].high
    assert "f1" not in found


def test_an_interval_is_that_of_a_mean():
    scores = {str(n): [Score(float(n % 2), 0)] for n in range(100)}
    found = figures(scores, full={}, none={})["loss"]
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / 10, rel=0.2)


@settings(max_examples=15, deadline=None)
@given(
    tokens=st.integers(1, 150),
    ratio=st.sampled_from([1, 2, 4, 8, 16]),
    raw=st.sampled_from([0, 7]),
    budget=st.sampled_from([30, 1000]),
    windows=st.integers(1, 3),
)
def test_a_plan_is_what_compress_keeps(tokens, ratio, raw, budget, windows):
    config = CONFIG.replace(document_windows=windows)
    model = _MADE.setdefault(f"{windows} windows", tiny_model(config=config))
    state = model.compress(drawn(1, max(tokens - raw, 0)), ratio=ratio, document=True, budget=budget)
    planned = plan(tokens, ratio=ratio, config=config, budget=budget, raw=raw)
    assert (planned.slots, planned.tail) == (state.slots, min(tokens, raw))


@settings(max_examples=10, deadline=None)
@given(
    tokens=st.integers(20, 200), ratio=st.sampled_from([2, 4, 8, 16]), raw=st.sampled_from([0, 9]), long=st.booleans()
)
def test_every_method_keeps_the_same_number_of_entries(tokens, ratio, raw, long):
    model = _short() if long else _model()  # in the short one, long texts are more than it has positions
    asked = item(drawn(2, tokens), raw=raw)
    memories = Memories(model, asked)
    kept = {
        kind: memory.slots
        for kind in (*BASELINES, "beacon")
        if kind not in ("full", "none") and (memory := memories.make(kind, ratio, asked.questions[0]))
    }
    planned = memories.plan(ratio).entries
    assert set(kept.values()) <= {planned}
    assert len(kept) == 5 or planned >= model.positions


_MADE: dict[str, BeaconModel] = {}


def _model() -> BeaconModel:
    return _MADE.setdefault("model", tiny_model(config=CONFIG))


def _short() -> BeaconModel:
    return _MADE.setdefault("short", tiny_model(config=CONFIG, max_position_embeddings=100))


def test_answers_read_side_by_side_are_worth_what_each_is_alone(model):
    asked = item(drawn(3, 30), raw=9)
    state = dataclasses.replace(model.compress(asked.context[:-9], ratio=2, document=True), tail=asked.context[-9:])
    memory = Memories(model, asked).make("beacon", 2)
    question = asked.questions[0]
    losses = answer_losses(model, memory, asked, question)
    for answer, found in zip(question.answers, losses, strict=True):
        logits = model.logits([*question.prompt, *answer[:-1]], state)
        alone = torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="none")
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)


def test_answers_written_side_by_side_are_those_of_generate(model):
    asked = item(drawn(4, 30))
    state = model.compress(asked.context, ratio=2, close=True)
    memory = Memories(model, asked).make("beacon", 2)
    questions = [Question(tuple(drawn(n, n)), ()) for n in (5, 2, 9)]
    written = greedy(model, memory, asked, questions, limit=6)
    alone = [model.generate([question.prompt], [state], max_new_tokens=6)[0] for question in questions]
    assert [model.decode(ids) for ids in written] == alone


SHARED = {"num_hidden_layers": 4, "num_kv_shared_layers": 2}  # the upper layers read the keys of the lower ones


@pytest.mark.parametrize(
    ("family", "changes"),
    [("gemma3_text", {}), ("gemma2", {}), ("gpt_oss", {}), ("gemma4_text", SHARED), ("qwen3_5_text", {}), ("lfm2", {})],
)
def test_answers_behind_layers_of_any_kind_are_those_of_the_model(family, changes):
    """Rows of sliding ones saw the whole memory: with contexts beyond the window, figures were of another model.
    Recurrent ones were refused.
    """
    model = tiny_model(family, config=CONFIG, **changes)  # its window has 24 entries
    asked = item(drawn(6, 70), ask=9)
    questions = [Question(tuple(drawn(n, n)), (tuple(drawn(n + 1, 30)), tuple(drawn(n + 2, 4)))) for n in (5, 2, 31)]
    memories = Memories(model, asked)
    for ratio, memory in ((1, memories.make("full", 1)), (2, memories.make("beacon", 2))):
        state = model.compress(asked.context, ratio=ratio, document=True)
        for question in questions:
            for answer, found in zip(question.answers, answer_losses(model, memory, asked, question), strict=True):
                logits = model.logits([*question.prompt, *answer[:-1]], state)[-len(answer) :]
                alone = torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="none")
                torch.testing.assert_close(found, alone, atol=1e-3, rtol=1e-3)
        written = greedy(model, memory, asked, questions, limit=9)
        alone = [model.generate([question.prompt], [state], max_new_tokens=9)[0] for question in questions]
        assert [model.decode(ids) for ids in written] == alone


def test_a_beacon_memory_of_every_token_is_the_full_context(model):
    task = task_of(3)
    for one in task.items:
        memories = Memories(model, one)
        full, all_of_it = memories.make("full", 1), memories.make("beacon", 1)
        losses = [answer_losses(model, memory, one, one.questions[0])[0] for memory in (full, all_of_it)]
        torch.testing.assert_close(*losses, atol=1e-3, rtol=1e-3)


def test_eviction_and_subsampling_keep_sinks_and_tail(model):
    asked = item(drawn(5, 80), raw=9)
    memories = Memories(model, asked)
    whole = read_raw(model, memories.empty, asked.context)
    planned = memories.plan(4)
    for kind in ("eviction", "kv-subsample"):
        memory = memories.make(kind, 4)
        assert torch.equal(memory.values[..., :2, :], whole.values[..., :2, :])
        assert torch.equal(memory.values[..., -planned.tail :, :], whole.values[..., -planned.tail :, :])


def test_eviction_block_by_block_in_one_block_is_eviction_at_once():
    short = tiny_model(config=CONFIG, max_position_embeddings=240)
    asked = item(drawn(6, 58))
    from beacon_memory.evaluation.eviction import Kept, evict, most_expected

    empty = Memories(short, asked).empty
    blocks = evict(short, empty, asked.context, 20, most_expected, sink=2, tail=7)
    once = Kept.read(short, empty, asked.context).keep(empty, 20, most_expected, sink=2, tail=7)
    assert blocks.slots == once.slots == 27
    assert torch.allclose(blocks.keys, once.keys)


@pytest.mark.parametrize("family", ["phi3", "smollm3", "olmo2", "gemma3_text", "gemma4_text"])
def test_eviction_expects_attention_in_any_family(family):
    """Fused projections, layers without RoPE, norms over all heads, angles by layer type, layers of several sizes."""
    from beacon_memory.evaluation.eviction import Kept, most_expected

    model = tiny_model(family, config=CONFIG, **(SHARED if family == "gemma4_text" else {}))
    asked = item(drawn(6, 58))
    kept = Kept.read(model, model.empty, asked.context)
    queries = model.compress(asked.context, ratio=1, close=True)
    assert torch.allclose(kept.values[:, 0], torch.cat([s.values for s in queries.segments], dim=2), atol=1e-4)
    assert kept.scores.isfinite().all()
    assert kept.keep(model.empty, 20, most_expected, sink=2, tail=7).slots == 27


def test_retrieval_finds_the_chunk_that_is_asked_for(model):
    filler = "Nothing of note was said that day. " * 30
    text = f"{filler}The red door opens in May. {filler}"
    ids = tuple(model.encode(text))
    found = best_chunks(model, Item("a", (), ids, ()), "When does the red door open?", 70, tail=0)
    assert len(found) == 70
    assert "red door opens in May" in model.decode(found)
    ends = chunk_ends(model, ids, size=64)
    assert ends[-1] == len(ids)
    assert max(b - a for a, b in zip([0, *ends], ends, strict=False)) <= 64


def run(folder, task, *, methods=METHODS, seconds: float = 1e9, ratios=(2, 4), family="llama"):
    lm = tiny_model(family, config=CONFIG).detach()
    tokenizer = _model().tokenizer
    seen: list[int] = []
    results = Results(folder)
    before = len(results.rows)
    cells = measure(
        lm,
        tokenizer,
        task,
        chosen(methods, {}),
        ratios,
        results=results,
        common=CONFIG,
        seconds=seconds,
        progress=lambda _, done: seen.append(done),
    )
    return cells, results, len(results.rows) - before


def test_a_run_goes_on_where_it_stood(tmp_path):
    task = task_of(4)
    half = dataclasses.replace(task, items=task.items[:2])
    cells, _, first = run(tmp_path, half)
    assert first == 2 * len(cells) == 2 * 13
    whole, results, second = run(tmp_path, task)
    assert (whole, second) == (cells, 2 * 13)
    lines = (tmp_path / "scores.jsonl").read_text()
    (tmp_path / "scores.jsonl").write_text(lines[:-20])  # interrupted within a line
    _, again, third = run(tmp_path, task)
    assert third == 1
    last = [dataclasses.replace(row, seconds=0) for row in (results.rows | {}).values()]
    assert last == [dataclasses.replace(again.rows[row.cell, row.item], seconds=0) for row in last]
    assert run(tmp_path, task)[2] == 0


def test_a_cell_stops_when_its_time_is_up(tmp_path):
    task = task_of(3)
    cells, results, _ = run(tmp_path, task, seconds=0.0)
    assert not results.rows
    cells, results, rows = run(tmp_path, task, seconds=1e-9)
    assert rows == len(cells)
    summaries = summarise(task, cells, results)
    assert {summary.questions for summary in summaries} == {1}
    assert all(summary.planned == 3 for summary in summaries)


def test_a_file_that_is_not_ours_is_refused(tmp_path):
    (tmp_path / "scores.jsonl").write_text('{"some": "thing"}\n')
    with pytest.raises(InputError, match="line 1"):
        Results(tmp_path)


def test_the_memory_of_another_document_is_worth_nothing_and_ones_own_is(tmp_path):
    """The likeliest continuation of a text is made its right answer: only who remembers the text can know it."""
    model = _model()
    items = []
    for seed in range(12):
        ids = drawn(seed, 60)
        bare = Item(str(seed), (1,), (1, *ids), ())
        memory = Memories(model, bare).make("full", 1)
        prompt = Question((5, 6), ())
        answer = tuple(greedy(model, memory, bare, [prompt], limit=3)[0])
        if len(answer) == 3:
            items.append(dataclasses.replace(bare, questions=(Question((5, 6), (answer, (7, 8, 9))),)))
    task = Task("told", "what follows", "kept", tuple(items))
    cells, results, _ = run(
        tmp_path, task, methods=("full", "none", "beacon-last", "control", "control-full"), ratios=(1,)
    )
    summaries = summarise(task, cells, results)
    kept = {summary.cell.method: summary.figures["kept"].value for summary in summaries}
    assert kept["control"] < 0.2
    assert kept["beacon-last"] == pytest.approx(1, abs=0.01)
    assert kept["control-full"] == pytest.approx(kept["control"], abs=0.01)  # at 1x it keeps all of it
    assert "fails, as it must. The whole of that document, raw: " in verdict(summaries)
    flattering = [dataclasses.replace(s, cell=dataclasses.replace(s.cell, method="control")) for s in summaries[:1]]
    assert "DOES NOT FAIL" in verdict([*flattering, *(s for s in summaries if s.cell.method == "none")])


def test_an_unknown_method_is_refused_by_name():
    with pytest.raises(ConfigError, match="magic"):
        chosen(["full", "magic"], {})


def test_tasks_ask_what_the_context_tells(model, tmp_path):
    data = Data(folder_of(tmp_path))
    prose = make_task("prose", model, data, items=3, seed=0)
    assert [len(one.context) for one in prose.items] == [256] * 3
    qa = make_task("qa", model, data, items=6, seed=0)
    for one in qa.items:
        for question in one.questions:
            assert question.gold[0].split()[0] in model.decode(one.context)
            assert model.decode(question.answers[0]) == question.gold[0]
            # Of equal length, so that the right answer is not told by its looks.
            assert len(set(question.answers)) == 8
            assert {len(answer) for answer in question.answers} == {len(question.answers[0])}
    talk = make_task("dialogue", model, data, items=3, seed=0)
    for one in talk.items:
        for question in one.questions:
            values = [model.decode(answer).strip(" .") for answer in question.answers]
            said = model.decode(one.context)
            assert values[0] in said
            assert not any(value in said.split() for value in values[1:])
            assert len(set(values)) == 8
    needle = make_task("needle", model, data, items=10, seed=0, lengths=(700, 900))
    assert [len(one.context) for one in needle.items] == [700, 900]
    for one in needle.items:
        assert all(model.decode(q.answers[0]).strip() in model.decode(one.context) for q in one.questions)
    long = make_task("long", model, data, items=4, seed=0, lengths=(300, 600))
    assert [len(one.context) for one in long.items] == [300, 600, 300, 600]
    assert long.items[0].questions[0].answers == long.items[1].questions[0].answers


def test_more_items_begin_with_the_fewer(model, tmp_path):
    data = Data(folder_of(tmp_path))
    for name, options in (("prose", {}), ("qa", {}), ("dialogue", {}), ("needle", {"lengths": (700, 900)})):
        few, many = (make_task(name, model, data, items=n, seed=3, **options).items for n in (3, 6))
        assert many[: len(few)] == few


def test_missing_data_is_named(model, tmp_path):
    for name, missing in (("prose", "novels"), ("qa", "val.jsonl"), ("dialogue", "sgd-train.jsonl")):
        with pytest.raises(InputError, match=missing):
            make_task(name, model, Data(tmp_path), items=1, seed=0)
    with pytest.raises(InputError, match="--data"):
        make_task("qa", model, Data(), items=1, seed=0)
    with pytest.raises(InputError, match="longest here"):
        make_task("needle", model, Data(), items=1, seed=0, lengths=(10**6,))
    (tmp_path / "fairytaleqa").mkdir()
    (tmp_path / "fairytaleqa" / "val.jsonl").write_text('{"sections": [], "questions": []}\n{"sections"\n')
    with pytest.raises(InputError, match="line 2"):
        make_task("qa", model, Data(tmp_path), items=1, seed=0)


def test_every_method_measures_a_model_with_recurrent_layers(tmp_path):
    cells, _, rows = run(tmp_path, task_of(2), family="qwen3_5_text", ratios=(4,))
    assert {cell.method for cell in cells} == {*METHODS}
    assert rows == 2 * len(METHODS)
