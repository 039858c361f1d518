"""Turns: a message list is read once whatever the caller sends, and answers are those of reading it whole."""

from __future__ import annotations

import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beacon_memory import BeaconConfig, BeaconMemory, BeaconModel
from beacon_memory.errors import InputError, PromptTooLong, SessionConflict, SessionNotFound
from beacon_memory.sessions.turn import Turn
from beacon_memory.stores.memory import MemoryStore
from beacon_memory.testing import tiny_model

# Every token is kept, in full precision, and no system prompt stands between what is folded and what is raw: a
# session's answer must be the one of reading the whole list anew.
EXACT = BeaconConfig(ratio=1, window=16, keep_last=6, sink=2, anchors="last", slot_dtype="float32")
CONFIG = BeaconConfig(window=16, keep_last=6, sink=2, anchors="last")
PLAIN = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def user(text: str, **more: str) -> dict[str, str]:
    return {"role": "user", "content": text, **more}


def ai(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module")
def exact() -> BeaconModel:
    model = tiny_model(config=EXACT)
    model.tokenizer.chat_template = PLAIN
    return model


@pytest.fixture(scope="module")
def model() -> BeaconModel:
    return tiny_model(config=CONFIG)


@pytest.fixture
def memory(model) -> BeaconMemory:
    return BeaconMemory(model, MemoryStore())


def say(memory, messages, session=None, **how):
    turn = Turn(memory, messages, session=session and memory.session(session), max_new_tokens=6, **how)
    return "".join(turn), turn


WORDS = st.sampled_from(["Rex is my dog.", "I live in Lyon, by the river.", "Yes", "What now?", "Tell me of the sea"])
STEP = st.tuples(st.sampled_from(["next", "delta", "again", "edit", "trim"]), WORDS, st.integers(0, 9))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEP, min_size=2, max_size=5))
def test_whatever_is_sent_the_answer_is_that_of_reading_it_all_anew(exact, steps):
    memory = BeaconMemory(exact, MemoryStore())
    talk: list[dict[str, str]] = []
    for n, (kind, words, at) in enumerate(steps):
        asked = user(f"{n}: {words}", id=str(n))  # told apart, as a graph's messages are
        questions = [i for i, m in enumerate(talk) if m["role"] == "user"]
        if kind == "again" and questions:
            talk = talk[: questions[at % len(questions)] + 1]
            sent = talk
        elif kind == "edit" and questions:
            place = questions[at % len(questions)]
            talk = [*talk[:place], asked]
            sent = talk if place else [asked | {"id": talk[place]["id"]}]
            if not place:
                memory.session("s").forget()
        elif kind == "delta":
            talk, sent = [*talk, asked], [asked]
        elif kind == "trim" and len(talk) > 2:
            talk, sent = [*talk, asked], [*talk[-2:], asked]
        else:
            talk = [*talk, asked]
            sent = talk
        answer, turn = say(memory, sent, "s")
        plain, whole = say(memory, talk)
        assert answer == plain
        assert turn.usage.tokens == whole.usage.tokens
        if answer.strip():
            talk = [*talk, ai(answer.strip())]
        assert [(m["role"], m["content"]) for m in memory.session("s").messages()] == [
            (m["role"], m["content"]) for m in talk
        ]


def test_usage_counts_what_was_read_from_memory_and_what_was_folded(memory):
    talk = [user("My dog is called Rex. " * 4)]
    answer, first = say(memory, talk, "ada")
    assert first.usage.read == 0
    assert first.usage.folded > 0
    assert first.usage.tokens >= first.usage.folded + first.usage.prefill
    _, second = say(memory, [*talk, ai(answer), user("Who is Rex?")], "ada")
    assert second.usage.read >= first.usage.folded
    assert second.usage.prefill < second.usage.tokens
    assert second.usage.answer == second.answer.tokens
    info = memory.session("ada").info()
    assert second.usage.slots <= info.slots


def test_what_is_said_last_is_raw_where_it_fits_and_folded_where_it_does_not(memory):
    """A message that did not fit raw was refused where it was to be raw, and folded elsewhere."""
    room = memory.model.positions // len(memory.model.encode("One two three. "))
    for name, times in (("short", room // 3), ("long", 3 * room)):
        _, turn = say(memory, [user("One two three. " * times)], name, raw=1)
        assert (turn.usage.folded > 0) == (name == "long")
        assert turn.usage.slots + turn.usage.prefill < memory.model.positions
        assert memory.session(name).info().tail < memory.model.config.window + memory.model.config.keep_last


@pytest.mark.parametrize("how", [{}, {"keep": 1}, {"behind": 2}])
def test_a_turn_reads_its_tail_behind_what_overlaps_it(how, monkeypatch):
    memory = BeaconMemory(tiny_model(config=CONFIG.replace(overlap=3)), MemoryStore())
    say(memory, [user("Rex is my dog, and he lives in Lyon by the river.")], "ada")
    asked, stream = [], memory.model.stream
    monkeypatch.setattr(
        memory.model, "stream", lambda *args, **kwargs: (asked.append(args), stream(*args, **kwargs))[1]
    )
    say(memory, [user("Yes?")], "ada", **how)
    ((prompt, state),) = asked
    front = memory.transcript.system(None)
    assert state.segments
    assert prompt[: len(front) + 3] == [*front, *state.segments[-1].ids[-3:]]


def test_without_a_session_what_fits_is_read_raw_and_the_rest_folded(memory, model):
    _, fits = say(memory, [user("One two three. " * 30)])
    assert fits.usage.slots == 0
    _, long = say(memory, [user("One two three. " * 300)])
    assert 0 < long.usage.slots < model.positions
    assert memory.sessions() == []


def test_a_turn_that_is_closed_or_fails_leaves_the_session_where_it_was(memory):
    say(memory, [user("Hello")], "ada")
    before = memory.store.load("ada")
    turn = Turn(memory, [user("More")], session=memory.session("ada"), max_new_tokens=60)
    next(turn)
    turn.close()
    with pytest.raises(PromptTooLong):
        say(memory, [user("More")], "ada", system="word " * 3000)
    assert memory.store.load("ada") == before
    with pytest.raises(InputError):
        say(memory, [])


def test_a_turn_that_is_dropped_stops_the_model_at_once(memory):
    """It was stopped when garbage was next collected, perhaps by the very thread that it then waited for."""
    turn = Turn(memory, [user("More")], max_new_tokens=1500)
    next(turn)
    del turn
    assert not [t for t in threading.enumerate() if t.name == "beacon-generate"]


def test_an_edited_past_forgets_the_other_branch_but_no_document(memory):
    talk = [user("I live in Lyon, near the river and the old bridge.")]
    answer, _ = say(memory, talk, "ada")
    memory.session("ada").add_text("The lease ends in May, and the door is green. " * 3, name="lease")
    slots = memory.session("ada").info().documents
    say(memory, [*talk, ai(answer), user("And now?")], "ada")
    say(memory, [user("I live in Nice."), ai(answer), user("And now?")], "ada")
    said = [m["content"] for m in memory.session("ada").messages()]
    assert said[:2] == ["lease", "I live in Nice."]
    assert memory.session("ada").info().documents == slots
    # Its bytes are whole: another reader finds every segment.
    assert BeaconMemory(memory.model, memory.store).session("ada").state().slots > 0


def test_kept_messages_stay_raw_and_out_of_the_session(memory):
    talk = [user("One."), ai("Two."), user("Three."), ai("Four."), user("Five?")]
    _, turn = say(memory, talk, "ada", history="full", keep=3)
    assert [m["content"] for m in memory.session("ada").messages()] == ["One.", "Two."]
    _, again = say(memory, talk, "ada", history="full", keep=5)  # fewer would do: nothing is unread
    assert [m["content"] for m in memory.session("ada").messages()] == ["One.", "Two."]
    assert again.usage.tokens == turn.usage.tokens


def test_contexts_stand_in_front(memory):
    memory.session("book").add_text("The lease ends in May. " * 20, name="lease")
    book = memory.session("book").info()
    _, alone = say(memory, [user("When?")], contexts=["book"])
    assert (alone.usage.slots, alone.usage.read) == (book.slots, book.tokens)
    _, kept = say(memory, [user("When does it end, pray tell me now?" * 4)], "ada", contexts=["book"])
    assert book.slots < kept.usage.slots <= book.slots + memory.session("ada").info().slots
    with pytest.raises(SessionNotFound):
        say(memory, [user("When?")], contexts=["no book"])


def test_a_faster_writer_is_not_overwritten(memory):
    say(memory, [user("Hello")], "ada")
    turn = Turn(memory, [user("Slow")], session=memory.session("ada"), max_new_tokens=6)
    next(turn)
    memory.session("ada").add("Fast")
    "".join(turn)
    said = [m["content"] for m in memory.session("ada").messages() if m["role"] == "user"]
    assert said == ["Hello", "Fast", "Slow"]
    branch = Turn(memory, [user("Edited")], session=memory.session("ada"), history="full", max_new_tokens=6)
    next(branch)
    memory.session("ada").add("Faster")
    with pytest.raises(SessionConflict):
        "".join(branch)


@pytest.mark.parametrize("last", ["What now?", "State: rain. What now?"])
def test_a_turn_behind_a_session_sees_it_and_writes_nothing(exact, last):
    """What stands there later is what comes, or it is left out."""
    memory = BeaconMemory(exact, MemoryStore())
    talk = [user("Rex is my dog, and he likes the sea."), ai("I see."), user("What now?")]
    memory.session("s").add(talk)
    before = memory.store.load("s")
    for more in ([], [ai("Wait."), user("Well?")]):
        given = [user(last), *more]
        answer, turn = say(memory, given, "s", behind=2)
        plain, whole = say(memory, [*talk[:2], *given])
        assert answer == plain
        assert turn.usage.tokens == whole.usage.tokens
    answer, _ = say(memory, [], "s", behind=3)
    assert answer == say(memory, talk)[0]
    assert memory.store.load("s") == before
    memory.session("s").rewind(1)
    with pytest.raises(SessionConflict, match="went back"):
        say(memory, [user("What now?")], "s", behind=3)


def test_a_turn_behind_a_session_folds_what_does_not_fit_for_itself_alone(memory):
    memory.session("s").add("Hello")
    before = memory.store.load("s")
    _, turn = say(memory, [user("One two three. " * 300)], "s", behind=1)
    assert turn.usage.slots > 0
    assert memory.store.load("s") == before


def test_what_is_closed_is_folded_to_its_end_and_not_folded_again(memory):
    book = user("The lease ends in May, and the door is green. " * 3)
    _, first = say(memory, [book, user("When?")], close=1)
    _, second = say(memory, [book, user("Which colour?")], close=1)
    assert first.usage.read == second.usage.folded == 0
    assert second.usage.read == first.usage.folded == len(memory.transcript.turn(book)) + len(memory.transcript.start)
    _, asked = say(memory, [user("When?")], close=1)  # what is asked stays raw
    assert asked.usage.slots == 0
    say(memory, [book, user("When?")], "ada", close=1)
    assert memory.session("ada").info().tail == len(memory.session("ada").state().tail) < 60
    assert [m["content"] for m in memory.session("ada").messages()][:2] == [book["content"], "When?"]


class Counting(MemoryStore):
    """Notes what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted: list[str] = []

    def read(self, digests):
        self.wanted += digests
        return super().read(digests)


@pytest.mark.parametrize("whole", [True, False])
def test_a_turn_reads_from_the_store_what_is_new_however_long_the_talk_is(model, whole):
    """Every page of messages was read again with each turn."""
    store = Counting()
    talk = [user("Hm"), ai("So")] * 200
    BeaconMemory(model, store).session("ada").add(talk)
    memory = BeaconMemory(model, store)
    for n in range(3):
        head, store.wanted = memory.load("ada")[0], []
        asked = user(f"And {n}?")
        answer, _ = say(memory, [*talk, asked] if whole else [asked], "ada")
        talk = [*talk, asked, *([ai(answer.strip())] if answer.strip() else [])]
        if whole and not n:
            assert set(head.pages) <= set(store.wanted)  # once, to compare
        else:
            assert not set(head.pages) & set(store.wanted)
        if n:
            assert not set(head.digests) & set(store.wanted)  # what is asked for is what would be folded now
    assert [m["content"] for m in memory.session("ada").messages()] == [m["content"] for m in talk]
