"""Training: the objective against the authors' figures, the data, and runs that can be stopped anywhere."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from beacon_memory import BeaconConfig
from beacon_memory.errors import AdapterError, ConfigError, InputError, TrainingError
from beacon_memory.evaluation.tasks import words as evaluation_words
from beacon_memory.models.adapter import published_config
from beacon_memory.models.model import BeaconModel
from beacon_memory.testing import tiny_model
from beacon_memory.testing.models import tiny_tokenizer
from beacon_memory.training import chats, facts, gates
from beacon_memory.training import trainer as trainer_module
from beacon_memory.training.data import Corpus, Dialogue, read_corpus
from beacon_memory.training.examples import Examples, Mixture
from beacon_memory.training.facts import draw_facts, draw_own
from beacon_memory.training.fit import fit_anchors
from beacon_memory.training.objective import Example, Objective, Weights
from beacon_memory.training.trainer import Plan, train, trained

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = BeaconConfig(window=32, sink=2, keep_last=8, anchors="last")
TEXT = " ".join(f"The {i}th door is {('red', 'green', 'blue')[i * i % 3]} and opens {i % 7} times." for i in range(300))
DIALOGUE = {
    "messages": [
        {"role": "user", "content": "A table in Lyon, please.", "slots": {"city": "Lyon", "day": "never said"}},
        {"role": "assistant", "content": "For how many?"},
        {"role": "user", "content": "Four of us.", "slots": {"party_size": "four"}},
        {"role": "assistant", "content": "It is done."},
    ]
}
STORY = {
    "sections": ["Once there was a fox.", "It lived in a red house.", "It went away."],
    "questions": [{"section": "2", "question": "What colour was the house?", "answer": ["red", "it was red"]}],
}
MIXTURE = Mixture(text=0.5, question=0.25, dialogue=0.25, windows=(16, 32), depth=2, tail=12, ratios=(2, 4))


def corpus(folder: Path) -> Corpus:
    (folder / "a.txt").write_text(TEXT)
    (folder / "b.jsonl").write_text(json.dumps(DIALOGUE) + "\n" + json.dumps(STORY) + "\n\n")
    return read_corpus([folder])


# The objective


@pytest.mark.parametrize("name", ["llama-ratio4", "qwen2-ratio8"])
def test_the_papers_objective_is_the_authors_training_loss(name: str) -> None:
    expected = load_file(GOLDEN / name / "expected.safetensors")
    lm = AutoModelForCausalLM.from_pretrained(GOLDEN / name, dtype=torch.float32)
    config = published_config(AutoConfig.from_pretrained(GOLDEN / name))
    model = BeaconModel(lm, tiny_tokenizer(), config, published=[str(GOLDEN / name / "model.safetensors")])
    ids, window = expected["train_input_ids"], model.config.window
    count = ids.shape[1] // window
    tail = ids[:, count * window :][:, None]
    example = Example(
        ids[:, : count * window].split(window, dim=1), (model.config.ratio,) * count, tail, torch.ones_like(tail).bool()
    )
    weights = Weights(next_token=1, teacher=0, hidden=0, context=None, first_window=True)
    loss = Objective(model.beacons, config=model.config, weights=weights)(example)
    torch.testing.assert_close(loss, expected["train_loss"][0], rtol=1e-6, atol=1e-6)


def objective(config: BeaconConfig, weights: Weights, **changes: Any) -> tuple[BeaconModel, Objective]:
    model = tiny_model(config=config, num_hidden_layers=3, **changes)
    for parameter in model.lm.parameters():
        parameter.requires_grad_(False)
    return model, Objective(model.beacons, config=config, weights=weights)


def scored_model(anchors: str) -> BeaconModel:
    """Beacons and a scorer, all of random weights."""
    model = tiny_model(config=CONFIG.replace(anchors="last"), num_hidden_layers=3)
    random = torch.Generator().manual_seed(5)
    for wrapped in model.beacons.layers:
        wrapped["k"].make_scorer(2)
        wrapped["k"].make_low_rank(4, reach=1)
        wrapped["v"].make_full()
    for name, parameter in model.beacons.parameters().items():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * (1 if ".scorer." in name else 0.1))
        parameter.requires_grad_(False)
    model.adapted(model.config.replace(anchors=anchors))
    return model


def example(ratio: int, *, batch: int = 2, tails: int = 2) -> Example:
    draw = torch.Generator().manual_seed(3)
    rows = torch.randint(3, 200, (batch, 34), generator=draw)
    read = torch.randint(3, 200, (batch, tails, 9), generator=draw)
    scored = torch.ones_like(read, dtype=torch.bool)
    scored[:, :, 0] = False
    scored[0, 0, 6:] = False
    return Example((rows[:, :18], rows[:, 18:]), (ratio, ratio), read, scored)


def test_nothing_folded_is_nothing_to_learn() -> None:
    weights = Weights(next_token=0, teacher=1, hidden=1)
    _, loss = objective(CONFIG, weights)
    assert float(loss(example(1))) == pytest.approx(0, abs=1e-5)
    assert float(loss(example(4))) > 0.01


def test_the_next_token_loss_at_ratio_1_is_the_models_own() -> None:
    one = example(1, batch=1, tails=1)
    ids = torch.cat([*one.windows, one.tails[:, 0]], dim=1)
    for context in (None, 0.25):
        model, loss = objective(CONFIG, Weights(next_token=1, teacher=0, hidden=0, context=context))
        losses = torch.nn.functional.cross_entropy(model.lm(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        window, tail = losses[17:33], losses[34:39]  # the second window, and what the tail scores
        counted = torch.cat([window, tail]).mean() if context is None else tail.mean() + context * window.mean()
        assert float(loss(one)) == pytest.approx(float(counted), rel=1e-5)


@pytest.mark.parametrize("overlap", [0, 5])
@pytest.mark.parametrize("anchors", ["learned", "spread"])
def test_what_is_read_through_gates_is_the_fold_where_nothing_leaks(
    anchors: str, overlap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = scored_model(anchors)
    model.adapted(model.config.replace(overlap=overlap))
    one, weights = example(4), Weights()
    hard, soft = (
        Objective(model.beacons, config=model.config, weights=weights, gated=gated) for gated in (False, True)
    )
    with torch.no_grad():
        assert abs(float(hard(one)) - float(soft(one))) > 1e-4
        monkeypatch.setattr(gates, "LEAK", 1e4)
        assert float(hard(one)) == pytest.approx(float(soft(one)), rel=1e-5)


@pytest.mark.parametrize("learn", ["beacons", "anchors"])
def test_a_run_learns_what_it_is_asked_to_and_nothing_else(learn: str) -> None:
    model = scored_model("spread")
    with trained(model, Plan(learn=learn)):
        Objective(model.beacons, config=model.config, weights=Weights(), gated=learn == "anchors")(
            example(4)
        ).backward()
        for name, parameter in model.lm.named_parameters():
            part = "anchors" if name.endswith(".scorer.weight") else "beacons" if ".base." not in name else ""
            wanted = any(end in name for end in (".scorer.weight", ".down.", ".up.", ".full.weight"))
            if wanted and learn == part:
                assert parameter.grad is not None, name
                assert parameter.grad.abs().max() > 0, name
            else:
                assert parameter.grad is None, name


def test_a_token_that_is_missed_is_scored_higher() -> None:
    """One token is asked for and not kept: going down the gradient of the scorer alone must bring it in."""
    model = scored_model("learned")
    one = example(4)
    with trained(model, Plan(learn="anchors")) as scorers:
        loss = Objective(model.beacons, config=model.config, weights=Weights(), gated=True)
        hard = Objective(model.beacons, config=model.config, weights=Weights())
        before = hard(one).item()
        steps = torch.optim.Adam(scorers, lr=0.03)
        for _ in range(60):
            steps.zero_grad()
            loss(one).backward()
            steps.step()
        assert hard(one).item() < before - 0.05


def test_anchors_that_no_scorer_chooses_cannot_be_learned() -> None:
    with pytest.raises(ConfigError, match="fit one"), trained(tiny_model(config=CONFIG), Plan(learn="anchors")):
        pass
    model = scored_model("learned+last")
    with pytest.raises(ConfigError, match="only anchors 'learned' and 'spread'"):
        Objective(model.beacons, config=model.config, weights=Weights(), gated=True)(example(4))
    with pytest.raises(ConfigError, match="beacons, anchors"):
        Plan(learn="both")


def test_anchors_of_layers_with_a_window_are_fitted_not_trained() -> None:
    model = tiny_model("gemma3_text", config=CONFIG)
    fit_anchors(model, [TEXT], tokens=800)
    with pytest.raises(ConfigError, match="every layer attends fully"):
        Objective(model.beacons, config=model.config, weights=Weights(), gated=True)(example(4))


@pytest.mark.parametrize("weights", [Weights(1, 0, 0), Weights(0, 1, 0), Weights(0, 0, 1)])
@pytest.mark.parametrize(("layout", "names"), [("select", "kv"), ("shadow", "qkv"), ("interleave", "qkv")])
def test_each_loss_reaches_every_beacon_weight_through_all_windows(layout: str, names: str, weights: Weights) -> None:
    config = CONFIG.replace(layout=layout)
    model = tiny_model(config=config, num_hidden_layers=3)
    plan = Plan(rank=0, reach=0)
    with trained(model, plan):
        Objective(model.beacons, config=config, weights=weights)(example(4)).backward()
        for name, parameter in model.beacons.parameters().items():
            # The last layer's beacons are read by later text, but what they themselves read goes nowhere.
            if not name.startswith("layers.2.q"):
                assert parameter.grad is not None, name
                assert parameter.grad.abs().max() > 0, name
        assert all(p.grad is None for n, p in model.lm.named_parameters() if ".base." in n or "_proj" not in n)


@pytest.mark.parametrize("layout", ["select", "shadow", "interleave"])
def test_older_windows_teach_by_the_slots_they_leave_and_not_by_how_they_were_read(layout: str) -> None:
    config = CONFIG.replace(layout=layout)
    model = tiny_model(config=config, num_hidden_layers=3)
    told = example(4)
    losses, slopes = {}, {}
    for through in (None, 1, 0):
        with trained(model, Plan(rank=0, reach=0)) as found:
            loss = Objective(model.beacons, config=config, weights=Weights(context=0), through=through)(told)
            slopes[through] = torch.autograd.grad(loss, found)[0]
            losses[through] = loss.item()
    assert losses[None] == losses[1] == losses[0]  # tails read the same slots
    assert torch.equal(slopes[None], slopes[1])  # the first window is read behind nothing
    assert slopes[0].abs().max() > 0
    assert not torch.equal(slopes[None], slopes[0])


def test_windows_are_read_in_training_as_a_session_reads_them() -> None:
    config = CONFIG.replace(window=16, overlap=5, slot_dtype="float32")
    model, one = tiny_model(config=config), example(4, batch=1, tails=1)
    ids = torch.cat(one.windows, dim=1)[0].tolist()
    slots: list[torch.Tensor] = []
    loss = Objective(model.beacons, config=config, weights=Weights(next_token=1, teacher=0, context=0))
    read = loss._read
    loss._read = lambda past, tails: (slots.append(past.values), read(past, tails))[1]  # type: ignore[method-assign]
    loss(one)
    state = model.compress(ids, close=True, ratio=4)
    assert [segment.overlap for segment in state.segments] == [0, 5]
    torch.testing.assert_close(slots[0][:, 0], torch.cat([segment.values for segment in state.segments], dim=2))


def test_scored_tokens_alone_count_in_the_next_token_loss() -> None:
    _, loss = objective(CONFIG, Weights(next_token=1, teacher=0, hidden=0))
    one, other = example(4), example(4)
    other.tails[0, 0, 6:] = 7  # behind what is scored
    assert float(loss(one)) == float(loss(other))
    other.tails[0, 0, 3] = 7
    assert float(loss(one)) != float(loss(other))


# Data


def test_a_corpus_holds_what_its_files_say(tmp_path: Path) -> None:
    found = corpus(tmp_path)
    assert str(found) == "1 texts, 1 dialogues, 1 questions"
    assert [(q.answer, q.part) for q in found.dialogues[0].questions] == [("Lyon", 0), ("four", 2)]
    assert "city" in found.dialogues[0].questions[0].ask
    assert "party size" in found.dialogues[0].questions[1].ask
    assert found.documents[0].questions[0].answer == "red"
    assert found.documents[0].questions[0].part == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "line 2: not JSON"),
        ("[1, 2]", "line 2: expected"),
        ('{"turns": [{"content": "hi"}]}', "line 2: 'speaker' is missing"),
        ('{"messages": [{"role": "user", "content": " "}]}', "line 2: a dialogue without a word"),
        ('{"text": "a b", "question": "why?"}', "line 2: .* has no answer"),
        ('{"sections": ["a"], "questions": [{"question": "q", "answer": "a", "section": "4"}]}', "section 4 of 1"),
        ('{"question": "why?", "answer": "a"}', "line 2: 'context' is missing"),
    ],
)
def test_a_line_that_does_not_parse_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "b.jsonl"
    file.write_text(json.dumps(STORY) + "\n" + line + "\n")
    with pytest.raises(InputError, match=message):
        read_corpus([file])


def test_files_with_nothing_in_them_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no"):
        read_corpus([tmp_path])
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(InputError, match="empty"):
        read_corpus([tmp_path])


def test_a_kind_that_the_files_do_not_have_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Too short.")
    model = tiny_model(config=CONFIG)
    with pytest.raises(InputError, match=r"no text of more than 78 tokens"):
        Examples(read_corpus([tmp_path]), model, config=CONFIG, mixture=MIXTURE, seed=0, count=1)
    (tmp_path / "a.txt").write_text(TEXT)
    with pytest.raises(InputError, match="no question"):
        Examples(read_corpus([tmp_path]), model, config=CONFIG, mixture=MIXTURE, seed=0, count=1)


def test_an_example_is_a_function_of_its_number(tmp_path: Path) -> None:
    def made(seed: int) -> Examples:
        return Examples(
            corpus(tmp_path), tiny_model(config=CONFIG), config=CONFIG, mixture=MIXTURE, seed=seed, count=60
        )

    first, again, other = made(0), made(0), made(1)
    for number in range(len(first)):
        one, two = first[number], again[number]
        assert one.ratios == two.ratios
        assert torch.equal(one.tails, two.tails)
        assert all(torch.equal(a, b) for a, b in zip(one.windows, two.windows, strict=True))
        assert one.windows[0].shape[1] in (18, 34)
        assert one.scored.any()
    assert any(first[n].tails.shape != other[n].tails.shape for n in range(20))


def test_answers_alone_are_scored_and_are_told_by_their_context(tmp_path: Path) -> None:
    model = tiny_model(config=CONFIG)
    mixture = Mixture(text=0, question=1, dialogue=0, windows=(32,), depth=3, ratios=(2,))
    examples = Examples(corpus(tmp_path), model, config=CONFIG, mixture=mixture, seed=0, count=20)
    for number in range(20):
        one = examples[number]
        answer = one.tails[0, 0][one.scored[0, 0]].tolist()
        assert model.tokenizer.decode(answer).startswith("red<|im_end|>")
        context = model.decode([i for window in one.windows for i in window[0].tolist()])
        if one.scored.shape[2] and len(one.windows) == 3:
            assert "red house" in context


def test_a_text_is_followed_and_said_again(tmp_path: Path) -> None:
    model = tiny_model(config=CONFIG)
    mixture = Mixture(text=1, question=0, dialogue=0, windows=(32,), depth=1, tail=12, ratios=(2,))
    examples = Examples(corpus(tmp_path), model, config=CONFIG, mixture=mixture, seed=0, count=10)
    text = model.encode(TEXT)
    for number in range(10):
        one = examples[number]
        context = one.windows[0][0].tolist()
        follow, again = one.tails[0].tolist()
        assert any(text[i : i + 46] == context + follow for i in range(len(text)))
        assert any(context[i : i + 12] == again for i in range(len(context)))


def test_a_made_up_fact_stands_in_a_text_that_does_not_tell_it(tmp_path: Path) -> None:
    model = tiny_model(config=CONFIG)
    mixture = Mixture(text=0, question=0, dialogue=0, fact=1, windows=(256,), depth=1, ratios=(2,))
    examples = Examples(corpus(tmp_path), model, config=CONFIG, mixture=mixture, seed=0, count=10)
    kinds: set[bool] = set()
    for number in range(10):
        one = examples[number]
        assert one.windows[0].shape == (1, 256 + CONFIG.sink)
        context = model.decode(one.windows[0][0].tolist())
        said = "user\n" in context  # of oneself: an answer in full says "you" for "I"
        for tail, scored in zip(one.tails[0], one.scored[0], strict=True):
            answer = model.decode(tail[scored].tolist()).strip().removesuffix(".")
            assert (answer.split()[-1] if said else answer).lower() in context.lower()
        assert said or "'s " in context or " of " in context
        kinds |= {said}
    assert kinds == {True, False}
    assert "'s " not in TEXT
    assert " of " not in TEXT


def test_facts_told_in_passing_are_asked_for_in_free_words_and_only_where_they_were_folded_whole():
    model = tiny_model()
    corpus = Corpus([TEXT * 40], read_corpus_of(DIALOGUE))
    mixture = Mixture(text=0, question=0, dialogue=0, chat=1, windows=(512,), depth=1, ratios=(2,))
    examples = Examples(corpus, model, config=CONFIG, mixture=mixture, seed=1, count=20)
    asked = 0
    for example in (examples[number] for number in range(20)):
        context = model.decode(example.windows[0][0].tolist())
        for tail, scored, answers in zip(example.tails[0], example.scored[0], example.answers[0], strict=True):
            answer = model.decode(tail[scored].tolist()).strip()
            assert torch.equal(answers, scored & (not scored[1]))
            if scored.any() and not scored[1]:  # asked; else a stretch of the talk again
                asked += 1
                assert answer.endswith(".")
                assert answer.rstrip(".").split()[-1].lower() in context.lower()
    assert asked > 10


def test_no_word_of_the_evaluation_is_one_that_beacons_are_trained_on():
    def words(module: Any) -> set[str]:
        lists = [
            value for name, value in vars(module).items() if name.lstrip("_").isupper() and isinstance(value, tuple)
        ]
        return {word.lower() for found in lists for word in found if isinstance(word, str)}

    days = {word.lower() for word in (*evaluation_words.DAYS, *evaluation_words.MONTHS)}
    assert len(words(chats)) > 100
    assert (words(evaluation_words) - days) & words(chats) == set()
    names = {word.lower() for word in (*facts._OWNERS, *facts._NAMES, *facts._CITIES, *facts._FOODS)}
    assert words(evaluation_words) & names == set()


def test_near_reads_talks_and_prose_behind_a_text_that_has_nothing_to_do_with_them():
    model = tiny_model()
    mixture = Mixture(text=0, question=0, dialogue=0, near=1, windows=(64,), depth=1, tail=24, ratios=(2,))
    example = Examples(Corpus([TEXT * 40]), model, config=CONFIG, mixture=mixture, seed=1, count=1)[0]
    told = [model.decode(tail.tolist()) for tail in example.tails[0]]
    assert len(told) == 3
    assert all("?" in one for one in told[:2])
    assert "door" in told[2]
    assert "door" in model.decode(example.windows[0][0].tolist())


def read_corpus_of(dialogue: dict[str, Any]) -> list[Any]:
    messages = tuple({"role": m["role"], "content": m["content"]} for m in dialogue["messages"])
    return [Dialogue(messages)]


def test_what_people_tell_of_themselves_answers_the_question() -> None:
    draw = random.Random(0)
    for fact in draw_own(draw, 99) + draw_own(draw, 99):
        value = fact.answer.removesuffix(".").split()[-1]
        assert value.lower() in fact.told.lower()
        assert value.lower() not in fact.ask.lower()
    assert len(draw_own(draw, 5)) == 5


def owner_and_thing(told: str) -> tuple[str, str]:
    what = told.split(" is ")[0].removeprefix("The ").removeprefix("the ")
    if "'s " in what:
        owner, thing = what.split("'s ")
    else:
        thing, owner = what.rsplit(" of ", 1)
    return owner, thing


def test_facts_of_many_owners_are_of_many_things_or_of_one() -> None:
    """Of one, so that a question is not answered by the kind of its answer."""
    kinds, owners = [], set()
    for seed in range(40):
        facts = draw_facts(random.Random(seed), 8)
        told = [owner_and_thing(fact.told) for fact in facts]
        assert len(set(told)) == 8
        kinds.append(len({thing for _, thing in told}))
        owners |= {owner.lower() for owner, _ in told}
    assert 10 < kinds.count(1) < 30
    assert len(owners) > 150  # of 320: besides forty people there are thousands of things, hardly one met twice
    assert max(kinds) > 4
    assert len(draw_facts(random.Random(1), 999)) >= 30


# Runs

PLAN = Plan(steps=6, learning_rate=0.01, rank=4, reach=1, save_every=2, warmup=1)


def run(folder: Path, data: Path, *, plan: Plan = PLAN, resume: bool = False, **changes: Any) -> BeaconModel:
    model = tiny_model(config=CONFIG, num_hidden_layers=3)
    train(model, corpus(data), folder, plan=plan, mixture=MIXTURE, resume=resume, **changes)
    return model


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "losses.jsonl").read_text().splitlines()]


def test_a_run_leaves_an_adapter_that_folds_as_the_trained_model_does(tmp_path: Path) -> None:
    moments: list[Any] = []
    model = run(tmp_path / "out", tmp_path, progress=moments.append)
    assert [moment.step for moment in moments] == [1, 2, 3, 4, 5, 6]
    assert moments[-1].tokens == sum(
        Examples(corpus(tmp_path), model, config=CONFIG, mixture=MIXTURE, seed=0, count=6)[n].tokens for n in range(6)
    )
    plain = tiny_model(config=CONFIG, num_hidden_layers=3)
    ids = plain.encode(TEXT)[:200]
    before = plain.compress(ids)
    untrained = plain.logits([5, 6, 7])
    loaded = BeaconModel(plain.detach(), plain.tokenizer, adapter=tmp_path / "out")
    assert loaded.fingerprint == model.fingerprint
    assert loaded.compress(ids).equals(model.compress(ids))
    assert not loaded.compress(ids).equals(before)
    assert torch.equal(loaded.logits([5, 6, 7]), untrained)
    assert (tmp_path / "out" / "loss.png").stat().st_size > 1000


def test_training_lowers_the_loss_on_what_it_sees(tmp_path: Path) -> None:
    weights = Weights(next_token=0, teacher=1, hidden=0)
    plan = Plan(steps=40, learning_rate=0.02, rank=4, reach=1, warmup=1)
    model = run(tmp_path / "out", tmp_path, plan=plan, weights=weights)
    plain = tiny_model(config=CONFIG, num_hidden_layers=3)
    examples = Examples(corpus(tmp_path), plain, config=CONFIG, mixture=MIXTURE, seed=0, count=40)

    def mean(model: BeaconModel) -> float:
        loss = Objective(model.beacons, config=CONFIG, weights=weights)
        with torch.no_grad():
            return sum(float(loss(examples[n])) for n in range(40)) / 40

    assert mean(model) < 0.95 * mean(plain)


@pytest.mark.parametrize("stop", [2, 3])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, stop: int) -> None:
    whole = run(tmp_path / "whole", tmp_path)

    def interrupt(moment: Any) -> None:
        if moment.step == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", tmp_path, progress=interrupt)
    resumed = run(tmp_path / "parts", tmp_path, resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 6
    assert resumed.fingerprint == whole.fingerprint


def test_a_run_is_not_begun_over_and_not_gone_on_with_as_another(tmp_path: Path) -> None:
    run(tmp_path / "out", tmp_path)
    with pytest.raises(TrainingError, match="resume it"):
        run(tmp_path / "out", tmp_path)
    with pytest.raises(TrainingError, match="another plan"):
        run(tmp_path / "out", tmp_path, plan=Plan(steps=8, rank=8), resume=True)
    other = tiny_model(config=CONFIG, seed=1, num_hidden_layers=3)
    with pytest.raises(TrainingError, match="another model"):
        train(other, corpus(tmp_path), tmp_path / "out", plan=PLAN, mixture=MIXTURE, resume=True)


def test_a_checkpoint_of_another_base_model_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "out", tmp_path)
    other = tiny_model(config=CONFIG, seed=1, num_hidden_layers=3)
    with pytest.raises(AdapterError, match="made for base model"):
        BeaconModel(other.detach(), other.tokenizer, adapter=tmp_path / "out")


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(tmp_path: Path) -> None:
    run(tmp_path / "whole", tmp_path)
    run(tmp_path / "out", tmp_path)
    newest = tmp_path / "out" / "checkpoints" / "checkpoint-6"
    (newest / "trainer_state.json").unlink()
    run(tmp_path / "out", tmp_path, resume=True)
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")


def test_a_full_disk_loses_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    real = trainer_module.save_adapter

    def full(beacons: Any, folder: Path, **settings: Any) -> None:
        if Path(folder).name == "checkpoint-4":
            Path(folder).mkdir(parents=True)
            raise OSError(28, "No space left on device")
        real(beacons, folder, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(trainer_module, "save_adapter", full)
        with pytest.raises(TrainingError, match="No space left"):
            run(out, tmp_path)
    assert [folder.name for folder in (out / "checkpoints").iterdir()] == ["checkpoint-2"]
    run(out, tmp_path, resume=True)
    run(tmp_path / "whole", tmp_path)
    assert losses(out) == losses(tmp_path / "whole")


def test_a_folder_is_one_runs_at_a_time(tmp_path: Path) -> None:
    other = FileLock(tmp_path / "out" / ".lock", timeout=0)  # as another process would ask for it
    held = []

    def watch(moment: Any) -> None:
        with pytest.raises(Timeout):
            other.acquire()
        held.append(moment.step)

    run(tmp_path / "out", tmp_path, progress=watch)
    assert held == [1, 2, 3, 4, 5, 6]
    before = (tmp_path / "out" / "run.json").read_bytes()
    fresh = tiny_model(config=CONFIG, num_hidden_layers=3)
    with pytest.raises(TrainingError, match="holds a run"):
        train(fresh, corpus(tmp_path), tmp_path / "out", plan=PLAN, mixture=MIXTURE)
    assert not fresh.beacons.parameters()  # a run that is refused has changed nothing
    with other, pytest.raises(TrainingError, match="another run is writing"):
        run(tmp_path / "out", tmp_path, resume=True, plan=Plan(**{**PLAN.__dict__, "steps": 8}))
    assert (tmp_path / "out" / "run.json").read_bytes() == before


def test_less_memory_gives_the_same_losses(tmp_path: Path) -> None:
    run(tmp_path / "whole", tmp_path)
    run(tmp_path / "less", tmp_path, plan=Plan(**{**PLAN.__dict__, "checkpointing": True}))
    assert losses(tmp_path / "less") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


@pytest.mark.parametrize("layout", ["shadow", "interleave"])
def test_layouts_with_beacon_rows_are_trained_too(tmp_path: Path, layout: str) -> None:
    model = tiny_model(config=CONFIG.replace(layout=layout), num_hidden_layers=3)
    before = {name: p.clone() for name, p in model.beacons.parameters().items()}
    train(model, corpus(tmp_path), tmp_path / "out", plan=Plan(steps=3, rank=0, reach=0, warmup=1), mixture=MIXTURE)
    after = model.beacons.parameters()
    assert ("offset" if layout == "shadow" else "embedding") in after
    assert "layers.0.q.full.weight" in after
    assert not before
    with pytest.raises(ConfigError, match="set reach to 0"):
        train(model, corpus(tmp_path), tmp_path / "new", plan=Plan(steps=3), mixture=MIXTURE)


def test_training_goes_on_from_an_adapter(tmp_path: Path) -> None:
    run(tmp_path / "first", tmp_path)
    plain = tiny_model(config=CONFIG, num_hidden_layers=3)
    model = BeaconModel(plain.detach(), plain.tokenizer, adapter=tmp_path / "first")
    started = model.fingerprint.adapter
    train(model, corpus(tmp_path), tmp_path / "second", plan=PLAN, mixture=MIXTURE)
    assert json.loads((tmp_path / "second" / "run.json").read_text())["start"] == started
    assert losses(tmp_path / "second")[0] != losses(tmp_path / "first")[0]
    assert {p.name for p in (tmp_path / "second").iterdir()} >= {"adapter.safetensors", "run.json"}
    shutil.rmtree(tmp_path / "first")


def test_settings_that_cannot_work_are_refused() -> None:
    for wrong in ({"steps": 0}, {"rank": -1}, {"rank": 0, "reach": 1}, {"learning_rate": 0}):
        with pytest.raises(ConfigError):
            Plan(**wrong)
    for wrong in ({"text": 0, "question": 0, "dialogue": 0}, {"windows": (30,)}, {"follow": False, "again": False}):
        with pytest.raises(ConfigError):
            Mixture(**wrong)
    with pytest.raises(ConfigError):
        Weights(next_token=0, teacher=0, hidden=0)
