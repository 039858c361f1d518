"""How the files beside this one were written, by the release before heads were chained (commit c153e09).

    PYTHONPATH=. python tests/stores/written_by_1/write.py

It is kept to show what they hold; the code of today writes other files.
"""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

import redis

from beacon_memory import BeaconConfig, BeaconMemory
from beacon_memory.testing import redis_server, tiny_model

HERE = Path(__file__).parent
KEY = b"a key of this deployment"
CONFIG = {"window": 32, "keep_last": 8, "sink": 2, "anchors": "last", "ratio": 8}
LEASE = "The lease ends on 31 March 2027. The rent is 900 euros a month. " * 2


def fill(memory: BeaconMemory) -> None:
    """Two sessions that share a document; one of them kept in 8 bits."""
    alice = memory.session("alice")
    alice.add_text(LEASE, name="lease")
    alice.add("I live in Lyon. " * 5)
    alice.add([{"role": "user", "content": f"Turn {number}."} for number in range(66)])
    memory.session("bob", slot_dtype="int8").add("I live in Oslo. " * 5)
    memory.session("carol").add_text(LEASE, name="lease")


def dumped(client: redis.Redis) -> dict[str, object]:
    """Every key, by type."""
    found: dict[str, object] = {}
    for key in sorted(client.scan_iter()):
        name, kind = key.decode(), client.type(key)
        if kind == b"string":
            found[name] = base64.b64encode(client.get(key) or b"").decode()
        elif kind == b"hash":
            found[name] = {k.decode(): base64.b64encode(v).decode() for k, v in client.hgetall(key).items()}
        else:
            found[name] = [[member.decode(), score] for member, score in client.zrange(key, 0, -1, withscores=True)]
    return found


def main() -> None:
    model = tiny_model(config=BeaconConfig(**CONFIG))
    database = HERE / "memory.db"
    with BeaconMemory.open(model, f"sqlite:///{database}") as memory:
        fill(memory)
        memory.session("alice").export(HERE / "alice.zip")
        versions = {name: memory.session(name).info().version for name in memory.sessions()}
    pins = {"sqlite": versions}
    for name in ("memory.db", "alice.zip"):
        data = (HERE / name).read_bytes()
        (HERE / name).unlink()
        (HERE / f"{name}.gz").write_bytes(gzip.compress(data, mtime=0))
    for name, key in (("plain", None), ("keyed", KEY)):
        with redis_server("valkey") as url, redis.Redis.from_url(url) as client:
            with BeaconMemory.open(model, url, key=key) as memory:
                fill(memory)
                pins[name] = {session: memory.session(session).info().version for session in memory.sessions()}
            data = json.dumps(dumped(client)).replace("Infinity", '"inf"').encode()
        (HERE / f"redis-{name}.json.gz").write_bytes(gzip.compress(data, mtime=0))
    (HERE / "pins.json").write_text(json.dumps(pins, indent=1) + "\n")


if __name__ == "__main__":
    main()
