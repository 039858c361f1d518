"""Many users of one server for a while: errors, mixed memory, and what the process takes.

Each user tells a secret in a session, talks on for some turns, half of them streamed, reads the session, forgets it and
begins again. The model is a tiny one that reads, folds and answers as any other, but for its judgement: it says every
secret that it can see. So an answer with another user's secret, or without the user's own, is memory that was mixed or
lost. Before that, conversations are begun that stay idle. Memory is the process's resident set, its slope that of the
second half of the time.

python -m benchmarks.server.soak [--minutes 30] [--users 20] [--idle 200]
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.server.processes import resident

TURNS = 12  # of a session, until it is forgotten
EVERY_S = 5.0
SECRET = re.compile(r"secret-[0-9a-f]{12}")
SMALL_TALK = "The ferry leaves at nine, and whoever is late waits for the next one, with the gulls and a paper. "


def serve(store: str) -> None:
    """Serve such a model until standard input ends; the URL is printed."""
    import torch

    from beacon_memory.testing import beacon_server, scripted_engine

    torch.set_num_threads(1)
    with beacon_server(
        scripted_engine(lambda seen: " ".join(sorted(set(SECRET.findall(seen)))) or "none", store)
    ) as url:
        print(url, flush=True)
        sys.stdin.read()


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, int]]:
    """The URL of such a server, and its process."""
    command = [sys.executable, "-m", "benchmarks.server.soak", "--serve", f"sqlite:///{folder}/memory.db"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


@dataclass
class Seen:
    """What users saw."""

    turns: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def turn(self) -> None:
        """One more turn was answered."""
        with self.lock:
            self.turns += 1

    def went_wrong(self, what: str) -> None:
        """Something that must not be."""
        with self.lock:
            self.wrong[what] += 1


def live(url: str, name: str, seen: Seen, ended: threading.Event) -> None:
    """One user until the end."""
    chosen = random.Random(name)
    with httpx.Client(base_url=url, timeout=300) as http:
        while not ended.is_set():
            session, secret = f"{name}-{uuid.uuid4().hex}", f"secret-{uuid.uuid4().hex[:12]}"
            try:
                told = [f"Remember this: {secret}. {SMALL_TALK * chosen.randint(1, 4)}"]
                told += [f"{n}. {SMALL_TALK * chosen.randint(0, 3)}" for n in range(TURNS - 1)]
                for text in told:
                    if ended.is_set():
                        break
                    check(answered(http, session, text, stream=chosen.random() < 0.5), secret, "an answer", seen)
                    seen.turn()
                page = http.get(f"/v1/sessions/{session}/messages", params={"limit": 1000}).raise_for_status()
                check(page.text, secret, "a session", seen)
                http.delete(f"/v1/sessions/{session}").raise_for_status()
            except httpx.HTTPStatusError as exc:
                seen.went_wrong(f"{exc.response.status_code} to {exc.request.method}")
            except httpx.HTTPError as exc:
                seen.went_wrong(type(exc).__name__)


def answered(http: httpx.Client, session: str, text: str, *, stream: bool) -> str:
    """The words of an answer. Raises httpx's errors."""
    said = [{"role": "user", "content": text}]
    body: dict[str, Any] = {"model": "scripted", "messages": said, "user": session, "stream": stream, "max_tokens": 48}
    answer = http.post("/v1/chat/completions", json=body).raise_for_status()
    if not stream:
        return str(answer.json()["choices"][0]["message"]["content"])
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    if not lines or lines[-1] != "[DONE]":
        raise httpx.RemoteProtocolError("a stream that was cut")
    chunks = [json.loads(line) for line in lines[:-1]]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def check(text: str, secret: str, where: str, seen: Seen) -> None:
    """Note where another's secret is shown, and where one's own is missing."""
    found = set(SECRET.findall(text))
    if found - {secret}:
        seen.went_wrong(f"another's secret in {where}")
    if secret not in found:
        seen.went_wrong(f"no secret in {where}")


def begin_idle(url: str, count: int) -> None:
    """Begin conversations that nobody goes on with. Raises httpx's errors."""
    with httpx.Client(base_url=url, timeout=300) as http:
        for n in range(count):
            items = [{"role": "user", "content": f"{n}. secret-{uuid.uuid4().hex[:12]} {SMALL_TALK * 3}"}]
            http.post("/v1/conversations", json={"items": items}).raise_for_status()


def soaked(folder: Path, *, minutes: float, users: int, idle: int) -> dict[str, Any]:
    """What a run saw, with memory in MiB. Raises httpx's errors where the idle conversations cannot be begun."""
    with served(folder) as (url, pid):
        seen, ended, sizes = Seen(), threading.Event(), list[tuple[float, float]]()
        begun = resident(pid) / 2**20
        begin_idle(url, idle)
        waiting = resident(pid) / 2**20
        threads = [threading.Thread(target=live, args=[url, f"user{n}", seen, ended]) for n in range(users)]
        start = time.monotonic()
        for thread in threads:
            thread.start()
        try:
            while (passed := time.monotonic() - start) < minutes * 60:
                sizes.append((passed / 60, resident(pid) / 2**20))
                ended.wait(min(EVERY_S, minutes * 6))
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        half = [pair for pair in sizes if pair[0] >= minutes / 2]
        return {
            "turns": seen.turns,
            "wrong": dict(seen.wrong),
            "begun": round(begun),
            "with idle": round(waiting),
            "most": round(max(size for _, size in sizes)),
            "last": round(sizes[-1][1]),
            "a minute": round(statistics.linear_regression(*zip(*half, strict=True)).slope, 2),
        }


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--idle", type=int, default=200)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        serve(chosen.serve)
        return
    with tempfile.TemporaryDirectory(prefix="beacon-soak-") as folder:
        print(json.dumps(soaked(Path(folder), minutes=chosen.minutes, users=chosen.users, idle=chosen.idle)))


if __name__ == "__main__":
    main()
