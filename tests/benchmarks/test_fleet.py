"""The simulated fleet: it loses nothing, serves nothing twice, keeps Little's law, and repeats itself."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fleet.__main__ import FLEETS, LOADS, WAYS, fleet, sweep
from benchmarks.fleet.service import SERVICES, WINDOW
from benchmarks.fleet.simulation import Fleet, Outcome, Simulation, Use

SMALL = Use(sessions=20_000)


def ran(fleet: Fleet, use: Use = SMALL, *, seed: int = 0, warm: float = 300, seconds: float = 300) -> Outcome:
    return Simulation(fleet, use, seed=seed).run(warm=warm, seconds=seconds)


@settings(max_examples=25, deadline=None)
@given(
    model=st.sampled_from(sorted(SERVICES)),
    way=st.sampled_from(sorted(WAYS)),
    replicas=st.integers(1, 6),
    folders=st.integers(1, 4),
    nodes=st.integers(1, 3),
    sessions=st.integers(100, 20_000),
    seed=st.integers(0, 1000),
)
def test_nothing_is_lost_or_answered_twice(
    model: str, way: str, replicas: int, folders: int, nodes: int, sessions: int, seed: int
) -> None:
    """Under any load, also under much too much."""
    whole = replace(fleet(model, way), replicas=replicas, folders=folders * ("raw" not in way), nodes=nodes)
    out = ran(whole, Use(sessions=sessions), seed=seed, warm=60, seconds=120)
    assert out.asked == out.answered + out.inside
    assert out.tokens_kept == out.tokens_begun + out.tokens_said  # folded once, and none dropped
    assert len(out.first_tokens) == out.answered_after
    assert max(out.replicas, out.redis, out.folders) <= 1 + 1e-9


@pytest.mark.parametrize("way", list(WAYS))
def test_littles_law_holds(way: str) -> None:
    """Turns inside = turns a second times the seconds that each stays, in a fleet that keeps up."""
    out = ran(replace(fleet("smollm2", way), replicas=3, nodes=1), seconds=1800)
    assert out.area == pytest.approx(out.stayed, rel=1e-6)  # two ways to count the same
    stay = out.stayed / out.answered_after
    assert out.area / out.seconds == pytest.approx(out.arrived / out.seconds * stay, rel=0.05)


def test_the_load_is_the_stated_one() -> None:
    """A visit in ten of the busy hour has six turns."""
    out = ran(fleet("smollm2", "raw prompts"), replace(SMALL, sessions=50_000), warm=900, seconds=1800)
    assert out.arrived / out.seconds == pytest.approx(50_000 * 0.1 * 6 / 3600, rel=0.05)


def test_the_same_seed_gives_the_same_run() -> None:
    whole = replace(fleet("qwen2-7b", "folded"), replicas=1, folders=1, nodes=1)
    assert asdict(ran(whole, seed=4)) == asdict(ran(whole, seed=4))
    assert asdict(ran(whole, seed=4)) != asdict(ran(whole, seed=5))


def test_what_is_said_is_folded_when_a_window_is_full() -> None:
    whole = replace(fleet("qwen2-7b", "folded"), replicas=2, folders=4, nodes=1)
    out = ran(whole, warm=600, seconds=1200)
    assert out.windows * WINDOW == pytest.approx(out.tokens_said, rel=0.25)  # the rest is raw still


@pytest.mark.parametrize("model", ["smollm2-cpu", "qwen2-7b"])
def test_raw_prompts_saturate_the_same_machines_earlier(model: str) -> None:
    """The control: with it the figures say that folding helps, not that the simulation serves anything."""
    share = 40 if model == "smollm2-cpu" else 8
    points = {point.way: point for point in sweep([model], share=share, seed=1, loads=(1.0,))}
    assert points["folded, read beside the steps"].holds
    assert not points["raw prompts"].holds
    assert points["folded"].outcome.late() < points["raw prompts"].outcome.late() / 4


def test_llamas_slots_wait_for_what_reads_them() -> None:
    """With Llama-3-70B the slots are so large that reading them slowly is no better than reading the text."""
    points = {point.way: point for point in sweep(["llama-3-70b"], share=32, seed=1, loads=(0.5,))}
    slow, fast = points["folded, read beside the steps"], points["the same, read 5x as fast"]
    assert fast.outcome.late() < slow.outcome.late()
    assert points["folded"].outcome.late() > slow.outcome.late()


def test_each_part_saturates_when_it_alone_is_small() -> None:
    whole = replace(fleet("qwen2-7b", "folded"), replicas=2, folders=2, nodes=1)
    assert ran(whole, Use(sessions=20_000)).holds(2.0)
    slow = replace(whole, folders=1, replicas=10)
    assert ran(slow, Use(sessions=120_000), warm=60, seconds=120).folders > 0.95
    one = replace(whole, replicas=20, folders=20)
    assert ran(one, Use(sessions=500_000), warm=30, seconds=60).redis > 0.95


def test_every_service_answers_with_more_work_for_more_tokens() -> None:
    assert set(FLEETS) == set(SERVICES)
    assert sorted(LOADS) == list(LOADS)
    for service in SERVICES.values():
        assert service.prompt(512, 0) < service.prompt(1024, 0) < service.prompt(1024, 8192)
        assert service.step(1, 512) <= service.step(8, 4096)
        assert service.fold(0) <= service.fold(4096)


@pytest.mark.parametrize(("tokens", "seconds"), [(1024, 1.47), (8192, 24.6), (32_768, 288.2)])
def test_the_prompts_of_the_cpu_are_those_that_were_measured(tokens: int, seconds: float) -> None:
    assert SERVICES["smollm2-cpu"].prompt(tokens, 0) == pytest.approx(seconds, rel=0.15)


@pytest.mark.parametrize(("tokens", "seconds"), [(1024, 1.51), (8192, 14.4), (32_768, 80.7)])
def test_the_folds_of_the_cpu_are_those_that_were_measured(tokens: int, seconds: float) -> None:
    windows = range(tokens // WINDOW)
    fold = SERVICES["smollm2-cpu"].fold
    assert sum(fold(n * WINDOW // 8) for n in windows) == pytest.approx(seconds, rel=0.15)


@pytest.mark.parametrize(("tokens", "seconds"), [(1024, 0.138), (8192, 1.14), (32_768, 5.70)])
def test_the_folds_of_the_gpu_are_those_that_were_measured(tokens: int, seconds: float) -> None:
    """At 4x (benchmarks/LOG.md)."""
    fold = SERVICES["smollm2"].fold
    assert sum(fold(n * WINDOW // 4) for n in range(tokens // WINDOW)) == pytest.approx(seconds, rel=0.15)


@pytest.mark.parametrize(("batch", "slots", "seconds"), [(1, 512, 0.0412), (1, 4096, 0.0537)])
def test_the_steps_of_the_cpu_are_those_that_were_measured(batch: int, slots: int, seconds: float) -> None:
    assert SERVICES["smollm2-cpu"].step(batch, batch * slots) == pytest.approx(seconds, rel=0.2)
