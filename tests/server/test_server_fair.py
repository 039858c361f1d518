"""Tenants in turn: one that sends many requests does not make the others wait for all of them."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from hypothesis import given
from hypothesis import strategies as st

from beacon_memory.server.fair import Fair
from beacon_memory.server.keys import Keys
from beacon_memory.server.limits import Limits
from beacon_memory.serving.engine import THREADS
from beacon_memory.stores import open_store
from beacon_memory.testing import beacon_server, scripted_engine

CHAT = "/v1/chat/completions"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=14), st.integers(1, 3))
def test_tenants_go_in_turn_whoever_leaves_the_line(asked: list[tuple[str, bool]], places: int) -> None:
    async def run() -> tuple[list[int], Fair]:
        fair, order, hold = Fair(places), list[int](), asyncio.Event()

        async def holder() -> None:
            async with fair.place("holder"):
                await hold.wait()

        async def one(n: int, tenant: str) -> None:
            async with fair.place(tenant):
                order.append(n)
                await asyncio.sleep(0)

        holders = [asyncio.create_task(holder()) for _ in range(places)]
        await asyncio.sleep(0)
        tasks = [asyncio.create_task(one(n, tenant)) for n, (tenant, _) in enumerate(asked)]
        await asyncio.sleep(0)
        assert not order
        for task, (_, leaves) in zip(tasks, asked, strict=True):
            if leaves:
                task.cancel()
        hold.set()
        await asyncio.gather(*holders, *tasks, return_exceptions=True)
        return order, fair

    order, fair = asyncio.run(run())
    stayed = {n: tenant for n, (tenant, leaves) in enumerate(asked) if not leaves}
    assert sorted(order) == sorted(stayed)
    for tenant in "abc":
        own = [n for n in order if stayed[n] == tenant]
        assert own == sorted(own)
    if places == 1:  # nobody is served a second time while another's first request waits
        rounds = [order[: k + 1] for k in range(len(order))]
        for served in rounds:
            counts = [sum(stayed[n] == tenant for n in served) for tenant in set(stayed.values())]
            left = [tenant for tenant in set(stayed.values()) if any(stayed[n] == tenant for n in order[len(served) :])]
            waiting = [sum(stayed[n] == tenant for n in served) for tenant in left]
            assert not waiting or max(counts) - min(waiting) <= 1

    async def all_free() -> None:
        async with asyncio.timeout(10):
            await asyncio.gather(*(fair.place("z").__aenter__() for _ in range(places)))

    asyncio.run(all_free())


def test_a_tenant_with_many_requests_does_not_keep_another_waiting_for_all_of_them(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    many, few = ({"Authorization": f"Bearer {keys.add(name)}"} for name in ("many", "few"))
    inside, go = threading.Semaphore(0), threading.Event()

    def script(seen: str) -> str:
        if "Wait" in seen:
            inside.release()
            assert go.wait(60)
        return "Done."

    def ask(head: dict[str, str], text: str) -> httpx.Response:
        body = {"model": "scripted", "messages": [{"role": "user", "content": text}]}
        return httpx.post(url + CHAT, json=body, headers=head, timeout=60)

    stores: dict[str, object] = {}
    place = lambda name: stores.setdefault(name, open_store("memory://"))  # noqa: E731
    limits = Limits(waiting=2 * (THREADS + 4))
    engine = scripted_engine(script, None)
    with beacon_server(engine, keys=keys, place=place, limits=limits) as url, ThreadPoolExecutor(THREADS + 6) as pool:
        answers = [pool.submit(ask, many, "Wait") for _ in range(THREADS + 4)]
        for _ in range(THREADS):
            inside.acquire()
        while httpx.get(f"{url}/ready").json()["waiting"] < THREADS + 4:
            pass
        refused = ask(many, "Hi")
        assert refused.status_code == 429
        assert "namespace" in refused.json()["error"]["message"]
        other = pool.submit(ask, few, "Hi")
        go.set()
        assert other.result().json()["choices"][0]["message"]["content"] == "Done."
        assert [answer.result().status_code for answer in answers] == [200] * (THREADS + 4)
