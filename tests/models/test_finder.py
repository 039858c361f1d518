"""Finders: where heads look, the file they are kept in, and files that are none."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from beacon_memory.config import BeaconConfig
from beacon_memory.errors import AdapterError
from beacon_memory.models.adapter import save_adapter
from beacon_memory.models.finder import FEW, FILE, MANY, Finder, attention, levelled, read_finder
from beacon_memory.models.model import BeaconModel
from beacon_memory.models.resident import CACHE, ResidentPrefix
from beacon_memory.testing import tiny_checkpoint, tiny_model

CONFIG = BeaconConfig(window=16, sink=2, keep_last=4, anchors="reconstruct")
FINDER = Finder(((1, 0), (0, 1)), (2.5, 0.5), 0.25, 0.5)


def test_a_memory_of_few_passages_is_scored_as_one_of_more():
    """Where passages are few each is paid much, and what chance pays one is much of it."""
    paid = torch.tensor([0.4, 0.2, 0.2])
    more = torch.tensor([0.4, 0.2, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert torch.allclose(levelled(paid), levelled(more)[:3])
    assert torch.allclose(levelled(more), more / more.mean().sqrt())
    many = torch.rand(MANY * 4) + 0.1
    assert torch.allclose(levelled(many), many / many.mean().sqrt() / 4**0.2)  # among many one is paid much by chance


SHAPE = {"layers": 2, "kv_heads": 2}


def paid_by_hand(model: BeaconModel, keys: torch.Tensor, ids: list[int], layer: int, head: int) -> torch.Tensor:
    """The attention of a question's rows to slots, as eager attention gives it.  # (rows, slots)"""
    from transformers import DynamicCache

    cache = DynamicCache()
    past = ResidentPrefix(model.empty)
    past.stand(model_state.segments, room=0)
    assert past.past.keys is not None
    assert past.past.values is not None
    for index in range(2):
        cache.update(past.past.keys[index], past.past.values[index], index)
    lm = tiny_model(config=CONFIG, attn_implementation="eager").detach()
    with torch.inference_mode():
        output = lm(input_ids=torch.tensor([ids]), **{CACHE: cache}, use_cache=True, output_attentions=True)
    own = output.attentions[layer][0, 2 * head : 2 * head + 2, :, : keys.shape[2]]
    return own.mean(dim=0)


model_state = tiny_model(config=CONFIG).compress([n % 97 + 3 for n in range(70)], close=True)


def test_attention_is_what_the_model_pays_its_slots_summed_over_passages():
    model = tiny_model(config=CONFIG)
    segments, question = model_state.segments, [5, 6, 7, 8]
    resident = ResidentPrefix(model.empty)
    resident.stand(segments, room=0)
    passages = [(0, 10), (10, 33), (33, 70)]
    heads = [(0, 0), (1, 1), (1, 0)]
    found = attention(model.lm, resident.past, segments, passages, question, heads=heads)
    keys = torch.cat([segment.keys for segment in segments], dim=2)
    for row, (layer, head) in enumerate(heads):
        paid = paid_by_hand(model, keys, question, layer, head)
        before, places = 0, []
        for segment in segments:
            own = segment.places()
            assert own is not None
            places += [-1 if n < segment.sink else before + int(p) for n, p in enumerate(own[layer, head])]
            before += len(segment.ids)
        for column, (start, end) in enumerate(passages):
            expected = paid[:, [start <= place < end for place in places]].sum(dim=1).max()
            assert torch.allclose(found[row, column], expected, atol=1e-5)
    assert torch.allclose(
        Finder(tuple(heads), (1.0, 2.0, 0.5), 0.0).scores(model.lm, resident.past, segments, passages, question),
        levelled(found[0] + 2 * found[1] + 0.5 * found[2]),
    )


def test_a_question_is_read_for_its_answer_and_looks_as_if_nothing_stood_in_between():
    model = tiny_model(config=CONFIG)
    segments, tail, question = model_state.segments, [n % 50 + 9 for n in range(600)], [5, 6, 7, 8]
    passages = [(0, 10), (10, 33), (33, 70)]
    resident = ResidentPrefix(model.empty)
    for ids in ([*tail, *question], question):  # cold, in pieces, and hot
        shared = resident.stand(segments, [*tail, *question][: len(tail) + 1], room=1000)
        assert shared == len(tail) + len(question) - len(ids)
        found = FINDER.read(model.lm, resident, segments, passages, ids, question=len(question))
        assert resident.ids == [*tail, *question]
        slots = resident.segments[-1][1]
        behind = resident.past.back(slots + len(tail))
        told = FINDER.scores(model.lm, behind, segments, passages, question, slots=slots)
        assert torch.allclose(found, told, atol=1e-5)
    seen = attention(model.lm, behind, segments, [(0, 70)], question, heads=[(0, 0)], slots=slots)
    near = attention(model.lm, resident.past.back(slots), segments, [(0, 70)], question, heads=[(0, 0)])
    assert 0.3 < float(seen) / float(near) < 3  # six hundred raw rows take none of it: they are only further away
    said = [
        "".join(model.stream([*tail, *question], model_state, resident=one, max_new_tokens=6, temperature=0))
        for one in (resident, ResidentPrefix(model.empty))
    ]
    assert said[0] == said[1]


def test_slots_of_joined_documents_belong_to_their_own_passages():
    """The first sink of a document that stands behind another is left out of the prefix."""
    model = tiny_model(config=CONFIG)
    first, second = (model.compress(range(start, start + 40), document=True) for start in (3, 60))
    segments = first.join(second.segments).segments
    resident = ResidentPrefix(model.empty)
    resident.stand(segments, room=0)
    heads = [(0, 0), (1, 1)]
    whole = attention(model.lm, resident.past, segments, [(0, 40), (40, 80)], [5, 6], heads=heads)
    parts = attention(model.lm, resident.past, segments, [(0, 40), (40, 60), (60, 80)], [5, 6], heads=heads)
    assert torch.allclose(whole[:, 0], parts[:, 0])
    assert (parts[:, 1:].sum(dim=1) >= whole[:, 1] - 1e-6).all()


def test_a_finder_comes_back_with_its_adapter(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "model")
    model = BeaconModel.from_pretrained(str(checkpoint), CONFIG, adapter=None)
    assert model.finder is None
    save_adapter(model.beacons, tmp_path / "adapter", config=model.config, model=model.fingerprint.model)
    assert BeaconModel.from_pretrained(str(checkpoint), adapter=tmp_path / "adapter").finder is None
    FINDER.write(tmp_path / "adapter", model=model.fingerprint.model)
    again = BeaconModel.from_pretrained(str(checkpoint), adapter=tmp_path / "adapter")
    assert again.finder == FINDER
    assert again.fingerprint == model.fingerprint


def test_a_finder_of_an_older_release_takes_nothing_off(tmp_path):
    FINDER.write(tmp_path, model="ours")
    about = json.loads((tmp_path / FILE).read_text())
    del about["baseline"]
    (tmp_path / FILE).write_text(json.dumps(about | {"version": 1}))
    assert read_finder(tmp_path, model="ours", **SHAPE) == replace(FINDER, baseline=0.0)


def test_what_a_question_about_nothing_pays_is_taken_off():
    model, passages = tiny_model(config=CONFIG), [(0, 10), (10, 33), (33, 70)]
    resident = ResidentPrefix(model.empty)
    resident.stand(model_state.segments, room=0)
    where = (model.lm, resident.past, model_state.segments, passages)
    idle = FINDER.idle(*where, [5, 6, 7])
    assert idle is not None
    whole, own = replace(FINDER, baseline=0.0), replace(FINDER, baseline=1.0)
    assert whole.idle(*where, [5, 6, 7]) is None
    assert torch.equal(own.scores(*where, [5, 6, 7], idle=idle), torch.zeros(3))  # it is that question itself
    other = [8, 9, 20]
    less = FINDER.scores(*where, other) - FINDER.scores(*where, other, idle=idle)
    mean = FINDER.idle(*where, other).sum() / FEW  # fewer passages than eight
    assert torch.allclose(less, torch.minimum(0.5 * idle / mean.sqrt(), FINDER.scores(*where, other)), atol=1e-5)


def test_a_finder_of_another_model_is_refused(tmp_path):
    FINDER.write(tmp_path, model="another")
    with pytest.raises(AdapterError, match=r"fitted for base model another.*fit-finder"):
        read_finder(tmp_path, model="ours", **SHAPE)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 3},
        {"baseline": None},
        {"heads": []},
        {"heads": [[2, 0, 1.0]]},
        {"heads": [[0, -1, 1.0]]},
        {"heads": [[0, 1]]},
        {"heads": [[0, 1, 1.0], [0, 1, 2.0]]},
        {"heads": 3},
        {"threshold": "NaN"},
        {"threshold": None},
    ],
)
def test_a_file_that_is_no_finder_is_refused(tmp_path, change):
    FINDER.write(tmp_path, model="ours")
    assert read_finder(tmp_path, model="ours", **SHAPE) == FINDER
    about = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(about | change))
    with pytest.raises(AdapterError):
        read_finder(tmp_path, model="ours", **SHAPE)
    for text in (b"", b"{", b"[]", b"\xff\xfe", b"null"):
        (tmp_path / FILE).write_bytes(text)
        with pytest.raises(AdapterError):
            read_finder(tmp_path, model="ours", **SHAPE)
