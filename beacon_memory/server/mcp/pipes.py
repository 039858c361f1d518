"""The tools over a process's standard input and output: an agent's program starts this process for itself."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from mcp.server.stdio import stdio_server

from beacon_memory.server.desk import Desk
from beacon_memory.server.limits import Limits
from beacon_memory.server.mcp.mounted import staying
from beacon_memory.server.mcp.tools import make_tools
from beacon_memory.server.operations.metrics import Metrics
from beacon_memory.server.tenants import Tenants
from beacon_memory.server.visit import Served, Visit
from beacon_memory.serving.engine import BeaconEngine


def serve_pipes(engine: BeaconEngine, *, limits: Limits | None = None) -> None:
    """Serve an engine's memory until standard input ends, then close its store. Raises what opening them raises."""
    limits, metrics = limits or Limits(), Metrics()
    tenants, desk = Tenants(engine, metrics=metrics), Desk(engine, limits)
    shared = Served(engine.name, tenants, desk, limits, int(time.time()), metrics)
    memory = shared.tenants.memory(None)

    async def visit(request: Any) -> Visit:
        return Visit(staying(), shared, memory)

    async def serve() -> None:
        tools = make_tools(visit)
        async with stdio_server() as (reading, writing):
            await tools.run(reading, writing, tools.create_initialization_options())

    try:
        asyncio.run(serve())
    finally:
        shared.desk.close()
        shared.tenants.close()
