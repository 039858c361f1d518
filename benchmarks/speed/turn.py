"""A turn on a session, from the question to the first word: cold from Redis, and hot.

Cold: the worker holds nothing of the session. The baseline is raw KV restored from the same server, then stock
generate().
Hot: the worker answered this session before. The baseline is a stock cache that already holds as many entries.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import redis

from beacon_memory import BeaconMemory
from beacon_memory.stores import open_store
from beacon_memory.testing import redis_server
from benchmarks import synthetic
from benchmarks.baselines import RawStore, answer, cache_of, get, prefill, random_entries
from benchmarks.bench import QUESTION, RATIO, Bench
from benchmarks.record import Against, Result
from benchmarks.speed import flops_floor
from benchmarks.timing import Act, times

OURS, RAW, AGAIN = "beacon", "raw KV restored", "reading again"
NEWEST, GET, FULL = "truncation (newest, read again)", "bare GET", "plain cache"
COPY = "bare copy"
TARGET = 32768  # tokens


def questions() -> Iterator[str]:
    """Questions of one length, each unlike the last from its first word on: no turn finds its question read already."""
    for number in itertools.cycle(range(1, 10)):
        yield f"{number}{number}{number} {QUESTION}"


def first_word(memory: BeaconMemory, name: str, question: str) -> object:
    """A question to a session, up to the first piece of its answer."""
    stream = memory.session(name).ask(question, stream=True, max_new_tokens=1)
    return next(stream, None)


def prompt(memory: BeaconMemory, question: str) -> list[int]:
    """The ids that a question is asked with, behind the system prompt and what is remembered."""
    return [*memory.transcript.turn({"role": "user", "content": question}), *memory.transcript.header()]


def lines(bench: Bench) -> Iterator[Result]:
    """A cold and a hot result for each length, as one document and as a talk."""
    makers: dict[str, Callable[..., None]] = {"document": synthetic.document, "talk": synthetic.talk}
    with redis_server() as url, redis.Redis.from_url(url) as client:
        for length in bench.cases("turn", bench.form.turn):
            for kind, make in makers.items():
                bench.told(f"a {kind} of {length} tokens")
                client.flushall()
                with BeaconMemory(bench.model, open_store(url), recall_tokens=0) as memory:
                    make(memory, kind, bench.ids(length), ratio=RATIO)
                yield from _turns(bench, url, client, kind, length)


def _turns(bench: Bench, url: str, client: redis.Redis, kind: str, length: int) -> Iterator[Result]:
    model, plain, repeats = bench.model, bench.plain, bench.form.repeats
    memory, asked = BeaconMemory(model, open_store(url), recall_tokens=0), questions()
    info, system = memory.session(kind).info(), memory.transcript.system(None)
    blobs: list[str] = sorted(key for key in client.scan_iter() if client.type(key) == b"string")
    size = sum(client.strlen(key) for key in blobs)
    raw = RawStore(client, kind)
    raw.save(*random_entries(plain, info.tokens))

    def cold(fresh: BeaconMemory) -> object:
        with fresh:
            return first_word(fresh, kind, next(asked))

    def restored(_: object) -> object:
        return answer(plain, [*system, *prompt(memory, next(asked))], raw.restore(plain), new=1)

    acts = {
        OURS: Act(cold, lambda: BeaconMemory(model, open_store(url), recall_tokens=0)),
        RAW: Act(restored),
        GET: Act(lambda _: get(client, blobs, size=size)),
    }
    values = times(acts, repeats=repeats, told=bench.told)
    kept = info.slots + info.tail
    newest = [*bench.ids(kept), *system, *prompt(memory, next(asked))]
    values |= times({NEWEST: Act(lambda _: prefill(plain, newest))}, repeats=1, told=bench.told, warm=False)
    against = [Against(RAW, least=5 if length == TARGET else None, faster=True)]
    if again := bench.read(length):
        values[AGAIN] = again
        against.insert(0, Against(AGAIN, least=60 if length == TARGET else None, faster=True))
    against += [Against(NEWEST, faster=True), Against(GET)]
    facts = {"tokens": info.tokens, "slots": info.slots, "tail": info.tail, "bytes": size, "raw_bytes": raw.bytes}
    yield Result("cold turn", f"{length} {kind}", OURS, values, against, facts=facts)
    raw.drop()

    entries = kept + len(system)  # a plain cache would have read the system prompt too
    keys, rows = random_entries(plain, entries)
    full: list[Any] = [cache_of(plain, keys, rows)]

    def ready() -> Any:
        if added := full[0].get_seq_length() - entries:
            full[0].crop(-added)
        return full[0]

    first_word(memory, kind, next(asked))
    copy = flops_floor.copy(2 * keys.numel() * 4)
    acts = {
        OURS: Act(lambda _: first_word(memory, kind, next(asked))),
        FULL: Act(lambda cache: answer(plain, prompt(memory, next(asked)), cache, new=1), ready),
        COPY: Act(lambda _: copy()),
    }
    values = times(acts, repeats=repeats, told=bench.told)
    against = [Against(FULL, most=1.1 if length == TARGET else None), Against(COPY)]
    yield Result("hot turn", f"{length} {kind}", OURS, values, against, facts=facts | {"entries": entries})
    memory.close()
