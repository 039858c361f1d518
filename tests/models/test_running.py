"""Answers that are made in the same passes: whoever comes, leaves or fails meanwhile, each says what it says alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor

from beacon_memory.config import BeaconConfig
from beacon_memory.models.model import BeaconModel
from beacon_memory.models.resident import ResidentPrefix
from beacon_memory.models.running.line import SHORT, Line
from beacon_memory.state.state import BeaconState
from beacon_memory.testing import tiny_model

CONFIG = BeaconConfig(window=16, sink=2, keep_last=4, anchors="last")


@pytest.fixture(scope="module")
def model() -> BeaconModel:
    made = tiny_model(config=CONFIG)
    made.lm.generation_config.eos_token_id = None
    return made


@dataclass(frozen=True)
class Asked:
    """A prompt behind a state, how it is sampled, and what its reader does."""

    prompt: list[int]
    memory: int  # ids that are folded
    new: int
    sampling: tuple[tuple[str, Any], ...]
    comes: int  # after so many pieces of the others
    leaves: int | None  # after so many pieces of its own


ASKED = st.builds(
    Asked,
    prompt=st.lists(st.integers(5, 250), min_size=1, max_size=90),
    memory=st.integers(0, 60),
    new=st.integers(1, 24),
    sampling=st.sampled_from([(), (("temperature", 1.2), ("seed", 5)), (("repetition_penalty", 1.5),)]),
    comes=st.integers(0, 30),
    leaves=st.none() | st.integers(1, 6),
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ASKED, min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_whoever_comes_and_leaves_each_says_what_it_says_alone(model: BeaconModel, asked: list[Asked], random: Any):
    states = [model.compress([5 + (n * 7 + i) % 240 for i in range(one.memory)]) for n, one in enumerate(asked)]

    def begun(n: int) -> Any:
        how: dict[str, Any] = dict(asked[n].sampling)
        return model.stream(asked[n].prompt, states[n], max_new_tokens=asked[n].new, **how)

    alone = ["".join(begun(n)) for n in range(len(asked))]
    said = [""] * len(asked)
    waiting, reading, pieces, counts = sorted(range(len(asked)), key=lambda n: asked[n].comes), {}, 0, [0] * len(asked)
    while waiting or reading:
        while waiting and (asked[waiting[0]].comes <= pieces or not reading):
            reading[waiting[0]] = begun(waiting[0])
            waiting.pop(0)
        n = random.choice(sorted(reading))
        piece = next(reading[n], None)
        pieces += 1
        counts[n] += 1
        if piece is None or counts[n] == asked[n].leaves:
            said[n] += piece or ""
            reading.pop(n).close()
        else:
            said[n] += piece
    for n, one in enumerate(asked):
        assert alone[n].startswith(said[n])
        assert said[n] == alone[n] or one.leaves is not None
    assert not model.running.answers


def test_readers_in_threads_share_passes_and_each_says_what_it_says_alone(model: BeaconModel):
    prompts = [[5 + (n * 31 + i) % 240 for i in range(4 + n)] for n in range(8)]
    alone = ["".join(model.stream(prompt, max_new_tokens=40)) for prompt in prompts]
    sizes: list[int] = []
    watched = model.lm.register_forward_pre_hook(
        lambda _, __, kwargs: sizes.append(len(kwargs["logits_to_keep"])), with_kwargs=True
    )
    with model.running.line:
        said, threads = together(lambda prompt: "".join(model.stream(prompt, max_new_tokens=40)), prompts)
    for thread in threads:
        thread.join()
    watched.remove()
    assert said == alone
    assert max(sizes) == 8
    assert len(sizes) < sum(sizes) / 3


def together(act: Callable[[list[int]], str], prompts: Sequence[list[int]]) -> tuple[list[str], list[threading.Thread]]:
    """What each act gives, once its thread has ended."""
    said = [""] * len(prompts)

    def work(n: int) -> None:
        said[n] = act(prompts[n])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(prompts))]
    for thread in threads:
        thread.start()
    return said, threads


def test_what_a_shared_pass_left_on_the_device_answers_as_reading_again_does(model: BeaconModel):
    state = model.compress(list(range(5, 105)))
    kept = [ResidentPrefix(model.empty) for _ in range(3)]
    states = [state, model.compress(list(range(5, 45))), BeaconState()]
    prompts = [[7, 8, 9], [20, 21], [33, 34, 35, 36]]
    first = model.answers(prompts, states, residents=kept, max_new_tokens=9)
    again = [[*prompt, *model.encode(answer.text), 50] for prompt, answer in zip(prompts, first, strict=True)]
    hot = model.answers(again, states, residents=kept, max_new_tokens=9)
    assert hot == model.answers(again, states, max_new_tokens=9)
    assert all(resident.ids for resident in kept)


def test_a_failed_pass_fails_those_in_it_and_nobody_after_them(model: BeaconModel):
    first, second = (model.stream([n, n + 1], max_new_tokens=40) for n in (20, 30))
    said = [next(first), next(second)]

    def fail(*_: Any) -> None:
        raise RuntimeError("the device is gone")

    broken = model.lm.lm_head.register_forward_hook(fail)
    for stream in (first, second):
        with pytest.raises(RuntimeError, match="the device is gone"):
            list(stream)
    broken.remove()
    assert not model.running.answers
    for start, n in zip(said, (20, 30), strict=True):
        assert "".join(model.stream([n, n + 1], max_new_tokens=40)).startswith(start)


class Broken:
    """A constraint that fails at the first token."""

    def processor(self, tokenizer: Any, *, ends: Any, rows: int, prompt: int, limit: int) -> LogitsProcessor:
        class Fails(LogitsProcessor):  # type: ignore[misc]
            def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                if input_ids.shape[1] == prompt:
                    raise ValueError("no such token")
                return scores

        return Fails()


def test_an_answer_whose_constraint_fails_fails_alone(model: BeaconModel):
    whole = "".join(model.stream([20, 21], max_new_tokens=12))
    good, bad = (
        model.stream([20, 21], max_new_tokens=12),
        model.stream([30, 31], max_new_tokens=12, constraint=Broken()),
    )
    said = next(good)
    with pytest.raises(ValueError, match="no such token"):
        list(bad)
    assert said + "".join(good) == whole
    assert not model.running.answers


def test_an_answer_that_nobody_reads_waits_and_the_others_go_on(model: BeaconModel):
    slow, quick = model.stream([20, 21], max_new_tokens=200), model.stream([30, 31], max_new_tokens=60)
    next(slow)
    list(quick)
    row = model.running._rows[0]
    assert len(row.made) < 20
    slow.close()


def test_a_fold_lets_answers_go_on_between_its_layers():
    # A step may give way where it begins, and take two turns: of the fold's two for each layer enough are left.
    config = BeaconConfig(window=SHORT * 4, keep_last=8, sink=2, anchors="last")
    model = tiny_model(config=config, num_hidden_layers=4)
    model.lm.generation_config.eos_token_id = None
    ids = [5 + i % 240 for i in range(SHORT * 13)]
    expected = model.compress(ids)
    stream = model.stream([20, 21], max_new_tokens=2000)
    next(stream)
    order: list[str] = []
    model.lm.register_forward_hook(lambda *_: order.append("step"))
    folded: list[BeaconState] = []
    thread = threading.Thread(
        target=lambda: folded.append(model.compress(ids, progress=lambda _: order.append("window")))
    )

    def awaited(*_: Any) -> None:
        """Fold on when the answer's next step is waited for, however busy the machine is."""
        until = time.monotonic() + 60
        while threading.current_thread() is thread and not model.running.line.waiting and time.monotonic() < until:
            time.sleep(0)

    for layer in model.lm.model.layers:
        layer.register_forward_pre_hook(awaited, prepend=True)  # ahead of the line's own
        layer.self_attn.register_forward_pre_hook(awaited)
    thread.start()
    while thread.is_alive():
        next(stream)
    thread.join()
    stream.close()
    assert folded[0].equals(expected)
    windows = [n for n, what in enumerate(order) if what == "window"]
    assert len(windows) == 3
    assert all(later - earlier > 2 for earlier, later in pairwise(windows)), " ".join(order)


# The line


def test_a_line_is_handed_on_in_the_order_in_which_threads_came():
    line, order = Line(), list[int]()

    def work(n: int) -> None:
        with line:
            order.append(n)

    with line:
        threads = []
        for n in range(6):
            threads.append(threading.Thread(target=work, args=(n,)))
            threads[-1].start()
            while line.waiting <= n:
                pass
    for thread in threads:
        thread.join()
    assert order == list(range(6))


def test_who_gives_way_comes_behind_those_who_waited_and_still_holds_it():
    line, order = Line(), list[str]()

    def work() -> None:
        with line:
            order.append("other")

    thread = threading.Thread(target=work)
    with line, line:
        line.give_way()  # nobody waits
        thread.start()
        while not line.waiting:
            pass
        order.append("mine")
        line.give_way()
        order.append("mine again")
    thread.join()
    assert order == ["mine", "other", "mine again"]
    with line:
        order.append("free")
    Line().give_way()  # who does not hold it gives nothing away
