"""The server's OpenAPI page, and schemathesis, which makes requests of it: right ones, wrong ones, and runs of them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from test_server_process import served

from beacon_memory.testing import tiny_checkpoint

# A status, a type and a body that the page does not tell fail too; for errors it tells OpenAI's shape and no other.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "unsupported_method,allow_header_conformance,use_after_free,ignored_auth"
)


@pytest.mark.parametrize(
    ("phases", "examples", "least"),
    [
        pytest.param("fuzzing,stateful", 5, 200, id="short"),
        pytest.param("coverage,fuzzing,stateful", 240, 10_000, id="long", marks=pytest.mark.long),
    ],
)
def test_no_request_that_schemathesis_makes_ends_in_what_the_page_does_not_tell(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]], phases: str, examples: int, least: int
) -> None:
    model = tiny_checkpoint(tmp_path / "tiny", max_position_embeddings=2048)
    keys, store = tmp_path / "keys.json", f"sqlite:///{tmp_path}/memory.db"
    key = command("keys", "add", "acme", "--file", str(keys))[1].strip()
    options = ("--model", str(model), "--store", store, "--keys", str(keys), "--answer-tokens", "16")
    with served(*options) as (process, url):
        asked = ["run", f"{url}/openapi.json", "--no-color", "--warnings", "off"]
        asked += ["--header", f"Authorization: Bearer {key}"]
        asked += ["--phases", phases, "--max-examples", str(examples), "--checks", CHECKS, "--continue-on-failure"]
        asked += ["--seed", "24", "--generation-database", "none"]
        done = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", *asked], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert httpx.get(f"{url}/ready").status_code == 200
        assert process.poll() is None
    assert int(re.findall(r"(\d+) generated", done.stdout)[0]) >= least
    print(done.stdout[done.stdout.rindex("Test cases") :])


def test_another_method_is_told_all_that_a_path_allows(http: httpx.Client) -> None:
    """Only those of the first route were told; then also those of a session that is called "import"."""
    paths = http.get("/openapi.json").json()["paths"]
    for path, methods in paths.items():
        answer = http.options(path.replace("{", "").replace("}", ""))
        assert answer.status_code == 405
        assert set(answer.headers["Allow"].split(", ")) == {method.upper() for method in methods}, path
