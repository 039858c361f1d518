"""Fitting a finder: heads that look at what answers are chosen, and a command writes them beside an adapter."""

from __future__ import annotations

import random

import pytest
import torch
from typer.testing import CliRunner

from beacon_memory.cli import app
from beacon_memory.config import BeaconConfig
from beacon_memory.errors import InputError
from beacon_memory.models.finder import levelled
from beacon_memory.models.model import BeaconModel
from beacon_memory.testing import tiny_checkpoint, tiny_model
from beacon_memory.training.data import Corpus, Dialogue, Document, Question
from beacon_memory.training.finder import BASELINE, Looked, _Maker, fit_finder, fitted

CONFIG = BeaconConfig(window=64, sink=2, keep_last=8, overlap=4)
TEXT = "The old mill stood by the river. Nobody had lived in it for years! Who would? " * 60
CORPUS = Corpus(
    [TEXT],
    [Dialogue(({"role": "user", "content": "I live in Lyon."},), (Question("Where do I live?", "Lyon", 0),))],
    [Document(("A fox lost its tail. It was sad.", "It found it."), (Question("What was lost?", "its tail", 0),))],
)


def observed(draw: random.Random, *, answered: bool, foreign: bool = False) -> Looked:
    """Heads that look anywhere, but for the second, which looks at what answers; all look at the fourth passage, also
    when nothing is asked.
    """
    paid = torch.rand(6, 9, generator=torch.Generator().manual_seed(draw.randrange(10**6))) / 50
    idle, right = torch.zeros(6, 9), torch.zeros(9, dtype=torch.bool)
    idle[:, 3] = 0.8
    if answered:
        right[draw.randrange(9)] = True
        paid[1][right] += 0.2
    return Looked(paid + BASELINE * idle, idle, right, foreign)


def test_the_head_that_looks_at_what_answers_is_found_and_a_threshold_that_keeps_quiet():
    draw = random.Random(0)
    looked = [observed(draw, answered=True) for _ in range(60)]
    foreign = [observed(draw, answered=False, foreign=True) for _ in range(40)]
    finder = fitted(looked + foreign, heads=[divmod(head, 2) for head in range(len(looked[0].attention))])
    assert finder.heads[0] == (0, 1)
    assert finder.weights[0] == max(finder.weights)

    def scores(one: Looked, share: float = finder.baseline) -> torch.Tensor:
        rows, weights = [layer * 2 + head for layer, head in finder.heads], torch.tensor(finder.weights)
        return levelled(weights @ one.attention[rows], share * (weights @ one.idle[rows]))

    assert all(one.right[scores(one).argmax()] for one in looked)
    assert sum(bool(one.right[scores(one, 0.0).argmax()]) for one in looked) < 40  # the fourth attracts every question
    assert sum(bool(scores(one).max() > finder.threshold) for one in foreign) <= 2
    assert sum(bool(scores(one).max() > finder.threshold) for one in looked) > 55


@pytest.mark.parametrize("kind", ["_facts", "_document", "_dialogue"])
def test_what_answers_a_question_stands_where_it_is_said_to(kind):
    model, draw = tiny_model(config=CONFIG), random.Random(3)
    maker = _Maker(model, CORPUS, 300)
    ids, asked, absent = getattr(maker, kind)(draw, 300)
    assert asked
    assert bool(absent) == (kind == "_facts")
    answers = {"_document": "its tail", "_dialogue": "I live in Lyon."}
    for one in asked:
        assert one.answer is not None
        start, end = one.answer
        assert 0 <= start < end <= len(ids)
        assert answers.get(kind, "") in model.decode(ids[start:end])
    quote = maker._quote(draw, ids)
    assert quote is not None
    assert quote.answer is not None
    begun = quote.text.split('"')[1].removesuffix("...")
    assert model.decode(ids[quote.answer[0] : quote.answer[1]]).strip().startswith(begun)


def test_a_finder_is_fitted_to_any_model_from_text_alone():
    model = tiny_model("qwen3", config=CONFIG.replace(anchors="reconstruct"))
    moves: list[int] = []
    finder = fit_finder(model, Corpus([TEXT]), memories=4, lengths=(150, 250), progress=moves.append)
    assert moves == [1] * 4
    assert finder == fit_finder(model, Corpus([TEXT]), memories=4, lengths=(150, 250))
    assert set(finder.heads) <= {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert all(weight > 0 for weight in finder.weights)


def test_texts_that_are_too_short_are_refused():
    with pytest.raises(InputError, match="more than 2048 tokens"):
        fit_finder(tiny_model(config=CONFIG), Corpus(["Short."]))


def test_the_command_writes_an_adapter_with_its_finder(tmp_path):
    checkpoint, text = tiny_checkpoint(tmp_path / "model"), tmp_path / "text.txt"
    text.write_text(TEXT)
    command = ["fit-finder", str(text), "--out", str(tmp_path / "out"), "-m", str(checkpoint), "--memories", "1"]
    result = CliRunner().invoke(app, [*command, "--adapter", "none"])
    assert result.exit_code == 0, result.output
    loaded = BeaconModel.from_pretrained(str(checkpoint), adapter=tmp_path / "out")
    assert loaded.finder is not None
    assert loaded.fingerprint.adapter == "none"
