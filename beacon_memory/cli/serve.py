"""The commands that serve a memory over HTTP, and keep its API keys."""

from __future__ import annotations

import json
import logging
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from beacon_memory.cli.opening import DEFAULT_STORE, Store, stored
from beacon_memory.cli.terminal import Adapter, AsJson, Finder, Model, placed, quiet, say, waiting
from beacon_memory.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from beacon_memory.models.running.elsewhere import Elsewhere
    from beacon_memory.server.keys import Keys
    from beacon_memory.server.tenants import MakeElsewhere
    from beacon_memory.sessions.memory import BeaconMemory

app = typer.Typer()
keys = typer.Typer(help="The server's API keys: each opens one namespace.", no_args_is_help=True)

KeyFile = Annotated[
    Path, typer.Option("--file", envvar="BEACON_KEYS", help="the file of hashed keys; it is made when it is not there")
]
DEFAULT_KEYS = Path("beacon-keys.json")
SALT_VARIABLE = "BEACON_VLLM_SALT"  # as the connector's `salt`


@app.command()
def serve(
    model: Model = "smollm2",
    store: Store = DEFAULT_STORE,
    adapter: Adapter = "auto",
    finder: Finder = None,
    host: Annotated[
        str, typer.Option(help="the address to listen on; without keys, of this machine alone")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one")] = 8000,
    key_file: Annotated[
        Path | None,
        typer.Option("--keys", envvar="BEACON_KEYS", help="the file of API keys", show_default="none"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="what clients call the model", show_default="--model's")] = None,
    body_bytes: Annotated[int, typer.Option(help="of a request, at most")] = 16 << 20,
    answer_tokens: Annotated[int, typer.Option(help="of an answer, at most")] = 4096,
    queue: Annotated[int, typer.Option(help="requests that wait or are answered; more get 429")] = 64,
    seconds: Annotated[float, typer.Option(help="until a request is given up")] = 600.0,
    shutdown_seconds: Annotated[float, typer.Option(help="until running answers are ended")] = 30.0,
    json_logs: Annotated[bool, typer.Option("--json-logs", help="log as JSON, a line a request")] = False,
    traces: Annotated[
        str | None, typer.Option(help="the URL of a collector of traces (OTLP over HTTP)", show_default="none")
    ] = None,
    engine: Annotated[
        Literal["own", "vllm"], typer.Option(help="what makes the answers: this process, or a vLLM (docs/vllm.md)")
    ] = "own",
    vllm_url: Annotated[
        str | None,
        typer.Option(envvar="BEACON_VLLM_URL", help="of a vLLM with our connector", show_default="none"),
    ] = None,
    fold: Annotated[
        bool, typer.Option("--fold/--no-fold", help="with vLLM: fold here, or leave that to fold workers")
    ] = True,
) -> None:
    """Serve sessions and OpenAI's interface over HTTP (docs/server.md)."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as exc:
        raise MissingExtra("the server needs its packages: pip install 'beacon-memory[server]'") from exc
    if (engine == "vllm") != (vllm_url is not None) or (engine == "own" and not fold):
        raise ConfigError(
            "--engine vllm takes the address of a running vLLM, --vllm-url http://127.0.0.1:8001; --vllm-url and "
            "--no-fold go with --engine vllm"
        )
    with waiting(f"loading {model}"):
        from beacon_memory.server.limits import Limits
        from beacon_memory.server.run import serve as run
        from beacon_memory.serving.engine import BeaconEngine

        quiet()
        if json_logs:
            from beacon_memory.server.operations.logs import write_json

            write_json()
        limits = Limits(
            body_bytes=body_bytes,
            answer_tokens=answer_tokens,
            waiting=queue,
            seconds=seconds,
            shutdown_seconds=shutdown_seconds,
        )
        # With keys each namespace has a store of its own, and this one stays empty.
        own = (lambda: stored(store)) if key_file is None else None
        how = {"finder": finder or "attention", **placed()}
        made = BeaconEngine(model, own, adapter=None if adapter == "none" else adapter, **how)
        elsewhere = None if vllm_url is None else _vllm(vllm_url, fold=fold)
    with _tracer(traces) as tracer:
        run(
            made,
            host=host,
            port=port,
            name=name or _name(model),
            keys=key_file,
            place=lambda namespace: stored(store, namespace=namespace),
            limits=limits,
            tracer=tracer,
            elsewhere=elsewhere,
            say=logging.getLogger("beacon_memory.server").info if json_logs else say,
        )


@app.command()
def mcp(
    model: Model = "smollm2", store: Store = DEFAULT_STORE, adapter: Adapter = "auto", finder: Finder = None
) -> None:
    """Serve a memory's tools to an agent over standard input and output, by MCP (docs/server.md)."""
    try:
        import fastapi  # noqa: F401
        import mcp.server  # noqa: F401
    except ImportError as exc:
        raise MissingExtra("MCP needs its package and the server's: pip install 'beacon-memory[mcp]'") from exc
    from beacon_memory.server.mcp.pipes import serve_pipes
    from beacon_memory.serving.engine import BeaconEngine

    quiet()
    how = {"finder": finder or "attention", **placed()}
    weights = None if adapter == "none" else adapter
    serve_pipes(BeaconEngine(model, lambda: stored(store), adapter=weights, **how))


@keys.command("add")
def add(
    namespace: Annotated[str, typer.Argument(help="whose sessions and documents it opens", show_default=False)],
    file: KeyFile = DEFAULT_KEYS,
) -> None:
    """A new key for a namespace, told once: the file keeps its hash alone."""
    typer.echo(_keys(file).add(namespace))
    say(f"this key is not shown again; its hash is in {file}")


@keys.command("list")
def list_(file: KeyFile = DEFAULT_KEYS, as_json: AsJson = False) -> None:
    """The keys by their ids, with what each opens."""
    found: list[dict[str, Any]] = [asdict(key) for key in _keys(file).all()]
    for key in found:
        del key["hash"]
    if as_json:
        typer.echo(json.dumps(found))
        return
    for key in found:
        typer.echo(f"{key['id']} {key['namespace']} {key['made']}")


@keys.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(help="its id, as `keys list` shows it", show_default=False)],
    file: KeyFile = DEFAULT_KEYS,
) -> None:
    """Remove a key; a running server refuses it from then on."""
    _keys(file).revoke(key)
    say(f"key {key} revoked")


def _keys(file: Path) -> Keys:
    from beacon_memory.server.keys import Keys

    return Keys(file)


def _vllm(url: str, *, fold: bool) -> MakeElsewhere:
    """What answers by a vLLM, made for a memory. Raises ModelUnavailable where no vLLM answers."""
    from vllm_beacon.endpoint import Endpoint
    from vllm_beacon.engine import VLLMEngine

    vllm, tested = Endpoint(url), list[bool]()
    # Not an option: what stands in a command line, every process of the machine can read.
    salt = os.environ.get(SALT_VARIABLE, "")

    def make(memory: BeaconMemory, namespace: str | None) -> Elsewhere:
        made = VLLMEngine(memory, vllm, salt=salt, namespace=namespace, fold=fold)
        try:
            if not tested:
                made.self_test()
        except BaseException:
            made.close()
            raise
        tested.append(True)
        return made

    return make


def _tracer(url: str | None) -> AbstractContextManager[Tracer | None]:
    """What traces are made with; None without the URL of a collector."""
    from beacon_memory.server.operations.traces import exported

    return nullcontext() if url is None else exported(url)


def _name(model: str) -> str:
    """What clients call a model: a hub id as it is, a folder or file by its own name."""
    path = Path(model).expanduser()
    return path.name if path.exists() and path.name else model
