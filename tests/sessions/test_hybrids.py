"""Sessions of models with recurrent layers: what those have read is kept with each segment, and never joined."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from beacon_memory.config import BeaconConfig
from beacon_memory.errors import CodecError, InputError
from beacon_memory.models.model import BeaconModel
from beacon_memory.models.resident import ResidentPrefix
from beacon_memory.sessions.context import read_apart, read_context
from beacon_memory.sessions.documents import Document, Documents
from beacon_memory.sessions.memory import BeaconMemory
from beacon_memory.sessions.stored import context_name
from beacon_memory.sessions.turn import Turn
from beacon_memory.state.codec import decode_segment, encode_segment
from beacon_memory.state.state import BeaconState, Segment, chain
from beacon_memory.testing.models import tiny_model

FAMILY = "qwen3_5_text"
CONFIG = BeaconConfig(window=32, keep_last=16, sink=2)
LYON = "I live in Lyon with a dog named Turing, and I work on the river. "
HOUSE = "The door of the house is green, and the key hangs under the stairs. "
LEASE = "The lease ends in May, and the rent is paid on the third of each month. "
GREEDY = {"max_new_tokens": 8}


@pytest.fixture(scope="module")
def model() -> BeaconModel:
    return tiny_model(FAMILY, config=CONFIG, num_hidden_layers=3)


@pytest.fixture
def memory(model: BeaconModel) -> Iterator[BeaconMemory]:
    with BeaconMemory.open(model) as opened:
        yield opened


def in_sequence(segments: tuple[Segment, ...]) -> bool:
    """Whether each segment was folded behind exactly those in front of it."""
    names = [segment.name for segment in segments]
    return all(segment.parent == chain(names[:n]) for n, segment in enumerate(segments))


def read_at_once(model: BeaconModel, state: BeaconState) -> BeaconState:
    """The state of the same tokens, read by the model alone."""
    return model.compress([i for segment in state.segments for i in segment.ids] + list(state.tail))


def test_a_chat_goes_on_in_another_process_as_it_would_have_gone_on_in_this_one(tmp_path: Path) -> None:
    url, told = f"sqlite:///{tmp_path / 'memory.db'}", []
    for opened in (1, 3):  # three turns in one process, or each in a process of its own
        said = []
        for turn in range(0, 3, 3 // opened):
            with BeaconMemory.open(tiny_model(FAMILY, config=CONFIG), url) as memory:
                session = memory.session(f"in {opened}")
                for n in range(turn, turn + 3 // opened):
                    said.append(session.chat(f"{n}: {LYON}", **GREEDY))
                state = session.state()
        told.append((said, state))
    assert told[0][0] == told[1][0]
    assert told[0][1].equals(told[1][1])
    assert len(told[0][1].segments) > 2
    assert all(segment.recurrent is not None for segment in told[0][1].segments)


def test_what_a_session_keeps_is_what_reading_it_all_at_once_leaves(memory: BeaconMemory) -> None:
    session = memory.session("s")
    for n in range(4):
        session.add(f"{n}. {LYON}")
    assert session.state().equals(read_at_once(memory.model, session.state()))


@pytest.mark.parametrize("slot_dtype", ["bfloat16", "float32"])
def test_what_a_session_says_it_takes_counts_what_was_read(memory: BeaconMemory, slot_dtype: str) -> None:
    session = memory.session("s", slot_dtype=slot_dtype)
    session.add(LYON * 4)
    assert session.info().bytes == session.state().nbytes > 0


def test_a_session_that_went_back_goes_on_as_if_it_had_never_gone_further(memory: BeaconMemory) -> None:
    for name, wrong in (("straight", 0), ("back", 3)):
        session = memory.session(name)
        session.add(LYON * 2)
        for n in range(wrong):
            session.add(f"This was never said, {n}. {HOUSE}")
        session.rewind(1)
        session.add(LEASE * 2)
    assert memory.session("back").state().equals(memory.session("straight").state())
    assert memory.session("back").ask("Where?", **GREEDY) == memory.session("straight").ask("Where?", **GREEDY)


def test_a_fork_and_its_origin_go_their_own_ways(memory: BeaconMemory) -> None:
    first = memory.session("first")
    first.add(LYON * 2)
    second = first.fork("second")
    first.add(HOUSE * 2)
    second.add(LEASE * 2)
    for session in (first, second):
        assert session.state().equals(read_at_once(memory.model, session.state()))
    common = [a.name == b.name for a, b in zip(first.state().segments, second.state().segments, strict=False)]
    assert common[0]
    assert not common[-1]


def test_a_message_that_is_edited_changes_what_was_read_after_it(memory: BeaconMemory) -> None:
    session = memory.session("s")
    for text in (LYON, HOUSE, LEASE):
        session.add(text)
    session.edit(0, LYON.replace("Lyon", "Rome"))
    assert session.state().equals(read_at_once(memory.model, session.state()))


def test_another_history_branches_off_and_the_documents_stay(memory: BeaconMemory) -> None:
    session = memory.session("s")
    messages = [{"role": "user", "content": LYON * 2}, {"role": "assistant", "content": "I see."}]
    session.set([*messages, {"role": "user", "content": LEASE * 2}])
    session.add_text(HOUSE, name="house")
    session.set([*messages, {"role": "user", "content": "Never mind. " * 9}])
    state = session.state()
    assert in_sequence(state.segments)
    assert sum(1 for message in session.messages() if message["role"] == "document") == 1


def test_a_document_is_folded_behind_what_stands_there_and_the_talk_goes_on_behind_it(memory: BeaconMemory) -> None:
    session = memory.session("s")
    session.add(LYON * 2)
    before = session.state()
    session.add_text(HOUSE * 2, name="house")
    after = session.state()
    session.add(LEASE * 3)
    assert [s.name for s in after.segments[: len(before.segments)]] == [s.name for s in before.segments]
    assert len(after.segments) > len(before.segments)
    assert in_sequence(session.state().segments)
    session.delete("house")
    assert session.state().equals(read_at_once(memory.model, session.state()))


def test_documents_are_folded_in_their_order_and_again_from_the_first_that_changed(memory: BeaconMemory) -> None:
    shelf = Documents(memory, "house")
    shelf.put([Document("a", LYON), Document("b", HOUSE), Document("c", LEASE)])

    def held(name: str) -> tuple[Segment, ...]:
        return memory.context(name).state().segments

    first = held("house")
    assert in_sequence(first)
    assert shelf.put([Document("d", "A cat sleeps on the stairs. ")]).windows == 1
    assert [s.name for s in held("house")[: len(first)]] == [s.name for s in first]
    shelf.remove("a")
    shelf.put([Document("b", HOUSE.replace("green", "blue"))])
    again = Documents(memory, "again")
    again.put([Document("b", HOUSE.replace("green", "blue")), Document("c", LEASE)])
    again.put([Document("d", "A cat sleeps on the stairs. ")])
    assert in_sequence(held("house"))
    assert [s.name for s in held("house")] == [s.name for s in held("again")]
    assert list(shelf.texts()) == ["b", "c", "d"]


def test_documents_over_their_budget_are_folded_coarser_and_stay_in_order(model: BeaconModel) -> None:
    with BeaconMemory.open(model) as memory:
        Documents(memory, "all").put([Document(str(n), f"{n}. {LYON}") for n in range(4)])
        whole = memory.context("all").state().slots
        Documents(memory, "few", budget=whole // 2).put([Document(str(n), f"{n}. {LYON}") for n in range(4)])
        few = memory.context("few")
        assert few.state().slots <= whole // 2
        assert [info.tokens for info in Documents(memory, "few").info()] == [
            info.tokens for info in Documents(memory, "all").info()
        ]
        assert all(segment.recurrent is not None for segment in few.state().segments)


def test_a_talk_behind_documents_reads_them_first(memory: BeaconMemory) -> None:
    """Every segment in front of an answer was folded behind those before it, the talk's own too."""
    read_context(memory, [("house", HOUSE)], context_id="one")
    read_context(memory, [("lease", LEASE)], context_id="two")
    session, contexts = memory.session("s"), [context_name("one"), context_name("two")]
    session.add(LYON * 2)
    turn = Turn(memory, [{"role": "user", "content": "Where?"}], session=session, contexts=contexts, **GREEDY)
    turn.begin()
    prompt = turn._begun[0].prompt
    assert in_sequence(prompt.segments)
    assert len(prompt.segments) > len(session.state().segments) > 0
    said = "".join(turn)
    assert said == "".join(
        Turn(memory, [{"role": "user", "content": "Where?"}], behind=1, session=session, contexts=contexts, **GREEDY)
    )
    assert session.state().equals(read_at_once(memory.model, session.state()))  # its own state knows no documents


def test_texts_that_are_read_apart_stand_behind_each_other(memory: BeaconMemory) -> None:
    assert in_sequence(read_apart(memory, [LYON, HOUSE, LEASE]).segments)


def test_states_that_a_caller_joins_are_refused_with_the_reason(model: BeaconModel) -> None:
    one, two = (model.compress(model.encode(text), close=True) for text in (LYON, HOUSE))
    with pytest.raises(InputError, match="recurrent states do not join"):
        one.join(two.segments)
    assert BeaconState().join(two.segments).equals(two)
    assert one.join(()).equals(one)


def test_a_batch_of_sessions_answers_each_as_alone(memory: BeaconMemory) -> None:
    for name, text in (("a", LYON * 3), ("b", HOUSE), ("c", LEASE * 5)):
        memory.session(name).add(text)
    asked = [(name, "Where do I live?") for name in "abc"]
    assert memory.ask_many(asked, **GREEDY) == [memory.session(name).ask(text, **GREEDY) for name, text in asked]


def test_a_session_over_its_budget_is_folded_coarser(memory: BeaconMemory) -> None:
    session = memory.session("s", budget=40)
    for n in range(12):
        session.add(f"{n}. {LYON}")
    assert session.state().slots <= 40
    assert all(segment.recurrent is not None for segment in session.state().segments)
    assert session.ask("Where?", **GREEDY) == session.ask("Where?", **GREEDY)


@pytest.mark.parametrize("lost", [0, 1, -1])
def test_a_lost_segment_is_folded_again_as_it_was(memory: BeaconMemory, lost: int) -> None:
    session = memory.session("s")
    session.add(LYON * 2)
    session.add_text(HOUSE * 2, name="house")
    session.add(LEASE * 3)
    state = session.state()
    gone = state.segments[lost]
    memory.store._blobs.pop(gone.name)
    memory.let_go("s", [gone])
    assert memory.repair("s") == 1
    assert session.state().equals(state)


def test_another_model_folds_everything_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'memory.db'}"
    with BeaconMemory.open(tiny_model("llama", config=CONFIG), url) as memory:
        memory.session("s").add(LYON * 2)
        memory.session("s").add_text(HOUSE * 2, name="house")
        memory.session("s").add(LEASE * 2)
    with BeaconMemory.open(tiny_model(FAMILY, config=CONFIG), url) as memory:
        memory.session("s").refold()
        state = memory.session("s").state()
        assert in_sequence(state.segments)
        assert all(segment.recurrent is not None for segment in state.segments)
    with BeaconMemory.open(tiny_model("llama", config=CONFIG), url) as memory:
        memory.session("s").refold()
        assert all(segment.recurrent is None for segment in memory.session("s").state().segments)


def test_an_export_brings_what_was_read_with_it(memory: BeaconMemory, tmp_path: Path) -> None:
    session = memory.session("s")
    session.add(LYON * 3)
    session.export(tmp_path / "s.beacon")
    with BeaconMemory.open(tiny_model(FAMILY, config=CONFIG, num_hidden_layers=3)) as other:
        imported = other.import_session(tmp_path / "s.beacon")
        assert imported.state().equals(session.state())
        assert imported.ask("Where?", **GREEDY) == session.ask("Where?", **GREEDY)


def test_a_segment_without_what_was_read_is_no_segment_of_this_model(memory: BeaconMemory) -> None:
    session = memory.session("s")
    session.add(LYON * 3)
    (entry, *_), (segment, *_) = memory.load("s")[0].entries, session.state().segments
    assert segment.recurrent is not None
    kept = segment.recurrent
    for other in (None, replace(kept, delta=None), kept.mapped(lambda tensor: tensor[:, :2])):
        changed = replace(segment, recurrent=other)
        blob = encode_segment(changed, fingerprint=memory.model.fingerprint, config=CONFIG)
        assert decode_segment(blob, fingerprint=memory.model.fingerprint).equals(changed)
        with pytest.raises(CodecError, match="recurrent state of"):
            memory.decode(blob, replace(entry, checksum=""))


def test_a_hot_turn_reads_on_only_where_it_agrees_with_all_that_was_read(model: BeaconModel) -> None:
    """What recurrent layers have read cannot go back but to a segment's end, so where ids differ all are read again."""
    resident, ids = ResidentPrefix(model.empty), model.encode(LYON * 4)
    state = model.compress(ids[:60])
    known = []
    for prompt in (ids[60:70], ids[60:80], [*ids[60:66], *ids[90:99]], ids[60:66]):
        asked = [*state.tail, *prompt]
        (hot,) = model.answers([prompt], [state], residents=[resident], max_new_tokens=1)
        assert [hot.text] == model.generate([prompt], [state], max_new_tokens=1)
        known.append(len(asked))
        assert len(resident.ids) == known[-1]
    assert resident.stand(state.segments, [*resident.ids, 5, 6], room=9) == known[-1]
    assert resident.stand(state.segments, [*resident.ids[:-1], 5, 6], room=9) == 0
