"""What turns leave on the device: nothing is read twice, nothing is stale, and it is kept within its bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from beacon_memory import BeaconConfig, BeaconMemory, BeaconModel
from beacon_memory.models.finder import read_on
from beacon_memory.models.resident import ResidentPrefix, RoomLayer
from beacon_memory.sessions.turn import Turn
from beacon_memory.state.state import BeaconState
from beacon_memory.stores.memory import MemoryStore
from beacon_memory.testing import tiny_model

CONFIG = BeaconConfig(window=32, keep_last=8, sink=2, anchors="last")
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}  # one row at a time, or many: other products, the same numbers


@pytest.fixture(scope="module")
def model() -> BeaconModel:
    return tiny_model(config=CONFIG)


@contextmanager
def rows_read(model: BeaconModel) -> Iterator[list[int]]:
    """How many rows each forward reads."""
    counts: list[int] = []
    layer = model.lm.model.layers[0]
    hook = layer.register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[1]))
    yield counts
    hook.remove()


def same(one: ResidentPrefix, other: ResidentPrefix) -> None:
    """Both hold the same past, slots bit for bit."""
    assert one.segments == other.segments
    assert one.ids == other.ids
    slots = one.past.slots - len(one.ids)
    for a, b in ((one.past.keys, other.past.keys), (one.past.values, other.past.values)):
        assert a is not None
        assert b is not None
        assert torch.equal(a[..., :slots, :], b[..., :slots, :])
        torch.testing.assert_close(a, b, **CLOSE)


def test_a_second_question_is_all_that_is_read(model):
    memory = BeaconMemory(model, MemoryStore())
    alice = memory.session("alice")
    alice.add("I live in Lyon. " * 12)
    assert alice.state().tail
    with rows_read(model) as first:
        alice.ask("Where do I live?", max_new_tokens=3)
    with rows_read(model) as second:
        alice.ask("Where do I live now?", max_new_tokens=3)
    asked = memory.transcript.turn({"role": "user", "content": "Where do I live now?"})
    assert second[0] <= len(asked) + len(memory.transcript.header()) < first[0]
    with rows_read(model) as again:
        alice.ask("Where do I live now?", max_new_tokens=3)
    assert again[0] == 1


def test_new_slots_are_written_behind_those_that_are_there(model):
    memory = BeaconMemory(model, MemoryStore())
    alice = memory.session("alice")
    for turn in range(12):
        alice.chat(f"Door {turn} is painted colour {turn * 7}.", max_new_tokens=4)
        resident = memory.resident("alice")
        room = resident.past.room
        fresh = ResidentPrefix(model.empty)
        fresh.stand(alice.state().segments, room=0)
        resident.stand(alice.state().segments, room=0, raw=False)
        assert resident.past.room is room
        same(resident, fresh)
        resident.release(resident)


def test_hot_and_cold_answer_the_same_whatever_happens_to_a_session(model):
    store = MemoryStore()
    hot, how = BeaconMemory(model, store), {"max_new_tokens": 6}

    def both(question: str, **more: Any) -> None:
        told = hot.session("alice").ask(question, **how, **more)
        assert told == BeaconMemory(model, store).session("alice").ask(question, **how, **more)

    alice = hot.session("alice")
    alice.add("I live in Lyon.")
    both("Where?")
    both("Where, exactly?", system="Be short.")
    both("Where?", system="Be short.")
    both("Where?", repetition_penalty=1.7)
    both("Where?", temperature=1.0, seed=4)
    alice.add("My dog is called Rex. " * 20)
    both("Who is Rex?")
    alice.add_text("The lease ends in May. " * 10, name="lease")
    both("When does it end?")
    alice.rewind(1)
    both("Where?")
    alice.chat("I moved to Paris.", **how)
    both("Where?")
    alice.forget()
    alice.add("Nothing of this was said before.")
    both("Where?")


def test_a_budget_that_folds_old_memories_again_is_seen_by_the_next_turn(model):
    store = MemoryStore()
    hot = BeaconMemory(model, store)
    alice = hot.session("alice", budget=40)
    for turn in range(8):
        alice.chat(f"Fact {turn}: the {turn}th door is painted colour {turn * 7}, and is locked.", max_new_tokens=4)
        cold = BeaconMemory(model, store).session("alice")
        assert alice.ask("Which door?", max_new_tokens=5) == cold.ask("Which door?", max_new_tokens=5)
    assert len(alice.info().ratios) > 1


def test_what_another_writer_adds_is_seen_by_the_next_turn(model, tmp_path):
    url = f"sqlite:///{tmp_path}/memory.db"
    with BeaconMemory.open(model, url) as one, BeaconMemory.open(model, url) as other:
        one.session("alice").add("I live in Lyon. " * 12)
        one.session("alice").ask("Where?", max_new_tokens=4)
        other.session("alice").add("I moved to Paris. " * 12)
        told = one.session("alice").ask("Where?", max_new_tokens=4)
        resident = one.resident("alice")
        state = other.session("alice").state()
        assert [digest for digest, _ in resident.segments] == [segment.digest for segment in state.segments]
        with BeaconMemory.open(model, url) as cold:
            assert told == cold.session("alice").ask("Where?", max_new_tokens=4)


def test_a_stream_that_is_closed_leaves_what_it_has_read(model):
    memory = BeaconMemory(model, MemoryStore())
    alice = memory.session("alice")
    alice.add("I live in Lyon. " * 12)
    pieces = alice.chat("Where do I live?", stream=True, max_new_tokens=200)
    next(iter(pieces))
    pieces.close()
    with rows_read(model) as counts:
        told = alice.ask("Where do I live?", max_new_tokens=4)
    assert counts[0] == 1
    assert told == BeaconMemory(model, memory.store).session("alice").ask("Where do I live?", max_new_tokens=4)


def test_turns_at_the_same_time_do_not_write_in_each_others_rows(model):
    memory = BeaconMemory(model, MemoryStore())
    memory.session("alice").add("I live in Lyon. " * 12)
    questions = [f"Question {n}: where do I live?" for n in range(4)]
    alone = [BeaconMemory(model, memory.store).session("alice").ask(q, max_new_tokens=8) for q in questions]
    told: dict[int, str] = {}

    def ask(n: int) -> None:
        told[n] = memory.session("alice").ask(questions[n], max_new_tokens=8)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [told[n] for n in range(4)] == alone


def test_fronts_are_kept_within_their_bytes_the_least_recently_used_leaving_first(model):
    memory = BeaconMemory(model, MemoryStore())
    for name in ("ada", "bob", "eve"):
        memory.session(name).add("I live in Lyon. " * 12)
    memory.session("ada").ask("Where?", max_new_tokens=1)
    size = memory.resident("ada").nbytes
    assert size > 0
    small = BeaconMemory(model, memory.store, resident_bytes=int(2.5 * size))
    for name in ("ada", "bob", "ada", "eve"):
        small.session(name).ask("Where?", max_new_tokens=1)
    assert [bool(small.resident(name).ids) for name in ("ada", "bob", "eve")] == [True, False, True]
    none = BeaconMemory(model, memory.store, resident_bytes=0)
    none.session("ada").ask("Where?", max_new_tokens=1)
    assert none.resident("ada").ids == []


def test_a_forgotten_session_leaves_nothing_on_the_device(model):
    memory = BeaconMemory(model, MemoryStore())
    memory.session("alice").add("I live in Lyon.")
    memory.session("alice").ask("Where?", max_new_tokens=1)
    memory.session("alice").forget()
    assert memory.resident("alice").nbytes == 0


def test_a_turn_behind_documents_finds_them_where_the_last_one_left_them(model):
    memory = BeaconMemory(model, MemoryStore())
    memory.context("house").add_text("The door is green. " * 12, name="door")
    asked = [{"role": "user", "content": "Which colour?"}]
    told = []
    for _ in range(2):
        with rows_read(model) as counts:
            told.append("".join(Turn(memory, asked, contexts=["context:house"], max_new_tokens=4)))
    assert told[0] == told[1]
    assert counts[0] == 1


@pytest.mark.parametrize("raw", [False, True])
def test_a_batch_reads_what_each_front_lacks_and_gives_it_back(model, raw):
    states = [model.compress(model.encode(text * 14)) for text in ("Lyon is far. ", "Rex is a good dog, he is. ", "")]
    prompts = [model.encode(text) for text in ("Where is it?", "Who is that over there?", "What?")]
    residents = [ResidentPrefix(model.empty), None, ResidentPrefix(model.empty)]
    expected = [model.answers([p], [s], max_new_tokens=5)[0] for p, s in zip(prompts, states, strict=True)]
    if raw:
        model.answers(prompts, states, residents=residents, max_new_tokens=2)
        assert all(resident is None or resident.ids[:-1][-3:] for resident in residents)
    assert model.answers(prompts, states, residents=residents, max_new_tokens=5) == expected
    for resident, state, prompt in zip(residents, states, prompts, strict=True):
        if resident is not None:
            alone = ResidentPrefix(model.empty)
            model.answers([prompt], [state], residents=[alone], max_new_tokens=5)
            same(resident, alone)


def test_what_was_read_to_look_is_answered_without_another_row(model):
    state, prompt = model.compress(model.encode("Lyon is far. " * 14)), model.encode("Where is Lyon?")
    ids = [*model.tail(state), *prompt]
    expected = model.answers([prompt], [state], max_new_tokens=5)
    resident = ResidentPrefix(model.empty)
    resident.stand(state.segments, room=len(ids))
    read_on(model.lm, resident, ids)
    with rows_read(model) as counts:
        assert model.answers([prompt], [state], residents=[resident], max_new_tokens=5) == expected
    assert counts == [1] * 4  # the tokens of the answer
    # Whoever reads on reads at least the last row, though its logits are known.
    resident.stand(state.segments, room=len(ids), raw=False)
    read_on(model.lm, resident, ids)
    assert resident.stand(state.segments, ids, room=9) == len(ids) - 1
    # Behind other words, or fewer, it is another token.
    for other in (prompt[:-1], [*prompt, *prompt], model.encode("What?")):
        alone = model.answers([other], [state], max_new_tokens=5)
        resident.stand(state.segments, room=len(ids), raw=False)
        read_on(model.lm, resident, ids)
        assert model.answers([other], [state], residents=[resident], max_new_tokens=5) == alone


def test_a_layer_that_transformers_has_changed_is_lengthened_by_it():
    keys = torch.randn(2, 1, 8, 4)
    layer = RoomLayer(keys, keys.clone(), filled=3)
    new = torch.randn(2, 1, 2, 4)
    longer, _ = layer.update(new, new)
    assert longer.data_ptr() == keys.data_ptr()
    assert layer.written == layer.get_seq_length() == 5
    layer.batch_select_indices(torch.tensor([1]))
    before = keys.clone()
    longer, _ = layer.update(new[:1], new[:1])
    assert longer.shape == (1, 1, 7, 4)
    assert torch.equal(keys, before)
    full = RoomLayer(keys, keys.clone(), filled=7)
    assert full.update(new, new)[0].shape[2] == 9  # without room it is copied, as it would be by transformers
    assert torch.equal(keys, before)


def test_a_state_is_not_changed_by_what_is_read_behind_it(model):
    state = model.compress(model.encode("I live in Lyon. " * 14))
    copy = BeaconState(tuple(state.segments), state.tail)
    kept = [segment.keys.clone() for segment in state.segments]
    model.answers([model.encode("Where?")] * 2, [state, state], max_new_tokens=4)
    assert state.equals(copy)
    assert all(torch.equal(a, b.keys) for a, b in zip(kept, state.segments, strict=True))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_keeps_fronts_and_answers_batches_as_a_cpu_does(model):
    there = tiny_model(config=CONFIG)
    there.lm.to("cuda")
    there = BeaconModel(there.detach(), there.tokenizer, CONFIG)
    ids, prompts = model.encode("I live in Lyon. " * 14), [model.encode("Where?"), model.encode("Where is that?")]
    told = [one.answers(prompts, [one.compress(ids)] * 2, max_new_tokens=5) for one in (model, there)]
    assert told[0] == told[1]
    resident, state = ResidentPrefix(there.empty), there.compress(ids)
    for prompt in (prompts[0], prompts[1], prompts[0]):
        expected = there.answers([prompt], [state], max_new_tokens=5)
        assert there.answers([prompt], [state], residents=[resident], max_new_tokens=5) == expected
    assert resident.past.room is not None
    assert resident.past.room.keys.device.type == "cuda"
