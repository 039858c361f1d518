"""What becomes of acknowledged turns while one of two servers over one Valkey is killed under load, and started again.

Writers talk without pause: in a session by chat completions, in a conversation and in a chain of responses, two more in
a session that they share. Each request goes to one server or the other, and is sent again with the same Idempotency-Key
to either, until it is answered. A turn is lost when it was answered and does not stand with that answer in what is
remembered at the end, doubled when it stands there twice.

python -m benchmarks.server.replicas [--kills 20]
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from beacon_memory.testing import RedisServer, tiny_checkpoint
from benchmarks.server.processes import ServerProcess

AGAIN = (409, 429, 503)  # the first is still answered, or another writer was faster; too many wait; the store is away
PATIENCE_S = 120.0


@dataclass
class Writer:
    """Someone who talks, what was answered, and how often that took a second try."""

    name: str
    session: str  # where it is remembered; of a chain of responses, the newest
    kind: str  # "chat", "conversation" or "chain"
    answered: list[tuple[str, str, str]] = field(default_factory=list)  # what was said, the answer, its id
    again: Counter[str] = field(default_factory=Counter)

    def talk(self, servers: Sequence[ServerProcess], ended: threading.Event) -> None:
        """Say one thing after another until the end."""
        chosen = random.Random(self.name)
        with httpx.Client(timeout=60) as http:
            while not ended.is_set():
                said = f"This is turn {len(self.answered)} of {self.name}."
                path, body = self._asked(said)
                found = self._answer(http, servers, path, body, chosen)
                self.answered.append((said, text_of(found), found["id"]))

    def _asked(self, said: str) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {"model": "tiny", "stream": False}
        if self.kind == "chat":
            messages = [{"role": "user", "content": said}]
            return "/v1/chat/completions", {**body, "messages": messages, "session_id": self.session, "max_tokens": 6}
        body |= {"input": said, "max_output_tokens": 6}
        if self.kind == "conversation":
            return "/v1/responses", {**body, "conversation": self.session}
        before = {"previous_response_id": self.answered[-1][2]} if self.answered else {}
        return "/v1/responses", {**body, **before}

    def _answer(
        self,
        http: httpx.Client,
        servers: Sequence[ServerProcess],
        path: str,
        body: dict[str, Any],
        chosen: random.Random,
    ) -> dict[str, Any]:
        """The answer, asked for until it is there. Raises RuntimeError for a refusal, and when patience ends."""
        headers, until = {"Idempotency-Key": str(uuid.uuid4())}, time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            try:
                answer = http.post(chosen.choice(servers).url + path, json=body, headers=headers)
            except httpx.TransportError as exc:
                self.again[type(exc).__name__] += 1
                time.sleep(0.1)
                continue
            if answer.status_code == 200:
                return dict(answer.json())
            if answer.status_code not in AGAIN:
                raise RuntimeError(f"{self.name}: {answer.status_code} {answer.text}")
            self.again[f"{answer.status_code} {answer.json()['error']['code']}"] += 1
            time.sleep(0.05)
        raise RuntimeError(f"{self.name} had no answer in {PATIENCE_S:.0f} s: {dict(self.again)}")


def text_of(answer: dict[str, Any]) -> str:
    """What an answer says."""
    if "choices" in answer:
        return str(answer["choices"][0]["message"]["content"])
    return "".join(part["text"] for item in answer["output"] for part in item.get("content", ()))


@dataclass(frozen=True)
class Found:
    """What is remembered at the end, against what was answered."""

    acknowledged: int
    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    again: dict[str, int]

    @classmethod
    def of(cls, writers: Sequence[Writer], url: str) -> Found:
        """The same, by asking a server."""
        lost, doubled, again = list[str](), list[str](), Counter[str]()
        with httpx.Client(base_url=url, timeout=60) as http:
            for writer in writers:
                again += writer.again
                session = writer.answered[-1][2] if writer.kind == "chain" else writer.session
                told = remembered(http, session)
                for said, answer, _ in writer.answered:
                    places = [n for n, text in enumerate(told) if text == said]
                    behind = [told[n + 1 : n + 2] for n in places]
                    if [answer.strip()] not in behind:  # a session keeps texts without the space around them
                        lost.append(f"{said} {answer!r} is kept as {behind}")
                    if len(places) > 1:
                        doubled.append(said)
                if writer.kind != "chat":
                    for said, answer, id in writer.answered:
                        if (kept := retrieved(http, id)) is None or kept.strip() != answer.strip():
                            lost.append(f"{said} {answer!r} is told again as {kept!r}")
            chains = sum(len(writer.answered) for writer in writers if writer.kind == "chain")
            # Each response of a chain is a session of its own.
            more = len(sessions(http, "resp_")) - chains
            doubled += [f"{more} responses that nobody asked for"] if more > 0 else []
        return cls(sum(len(writer.answered) for writer in writers), tuple(lost), tuple(doubled), dict(again))


def remembered(http: httpx.Client, session: str) -> list[str]:
    """All that a session holds, oldest first."""
    told, after = list[str](), -1
    while True:
        page = http.get(f"/v1/sessions/{session}/messages", params={"limit": 1000, "after": after}).raise_for_status()
        told += [str(message["content"]) for message in page.json()["data"]]
        if not page.json()["has_more"]:
            return told
        after = page.json()["last_place"]


def sessions(http: httpx.Client, prefix: str) -> list[str]:
    """All sessions whose names begin so."""
    found, after = list[str](), dict[str, str]()
    while True:
        page = http.get("/v1/sessions", params={"prefix": prefix, "limit": 1000, **after}).raise_for_status().json()
        found += [session["id"] for session in page["data"]]
        if not page["has_more"]:
            return found
        after = {"after": page["last_id"]}


def retrieved(http: httpx.Client, response: str) -> str | None:
    """What a response is told to have said, or None for none."""
    found = http.get(f"/v1/responses/{response}")
    return text_of(found.json()) if found.status_code == 200 else None


def measured(folder: Path, *, kills: int, seconds: float) -> Found:
    """Kill one of two servers so many times, in turn, each after so many seconds of load. Raises what writers raise."""
    model = tiny_checkpoint(folder / "tiny", max_position_embeddings=2048)
    failed = list[BaseException]()
    with ExitStack() as stack:
        store = stack.enter_context(RedisServer("valkey"))
        options = ("--model", str(model), "--store", store.url)
        servers = [stack.enter_context(ServerProcess(*options)) for _ in range(2)]
        writers = [Writer("Ada", "ada", "chat"), Writer("Bo", "shared", "chat"), Writer("Cy", "shared", "chat")]
        conversation = httpx.post(f"{servers[0].url}/v1/conversations", json={}, timeout=60).json()["id"]
        writers += [Writer("Di", conversation, "conversation"), Writer("Eve", "", "chain")]
        ended = threading.Event()

        def talk(writer: Writer) -> None:
            try:
                writer.talk(servers, ended)
            except BaseException as exc:
                failed.append(exc)
                ended.set()

        threads = [threading.Thread(target=talk, args=[writer]) for writer in writers]
        for thread in threads:
            thread.start()
        try:
            for number in range(kills):
                if ended.wait(seconds):
                    break
                servers[number % 2].kill()
                servers[number % 2].start()
            ended.wait(seconds)
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        if failed:
            raise failed[0]
        return Found.of(writers, servers[0].url)


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=5.0, help="of load before each")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="beacon-replicas-") as folder:
        found = measured(Path(folder), kills=chosen.kills, seconds=chosen.seconds)
    print(f"kills {chosen.kills}, acknowledged {found.acknowledged}, lost {found.lost}, doubled {found.doubled}")
    print("sent again:", ", ".join(f"{why} {count}" for why, count in sorted(found.again.items())))


if __name__ == "__main__":
    main()
