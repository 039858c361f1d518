"""Logs as lines of JSON, without anyone's words.

What is said, asked, read or answered, and every name that a caller chose (sessions, documents, keys), stays out: of
this package's records the template is written, with numbers in it and nothing else; of other packages' only where they
come from; of an error its class and where it was raised, never what it says.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

OURS = "beacon_memory"
HIDDEN = "…"


class JsonLines(logging.Formatter):
    """A record as one line of JSON.

    >>> record = logging.LogRecord("beacon_memory.x", 30, "x.py", 7, "%d nodes of %s", (3, "Ada"), None)
    >>> json.loads(JsonLines().format(record))["message"]
    '3 nodes of …'
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if record.name == OURS or record.name.startswith(f"{OURS}."):
            line["message"] = _numbered(record)
            line |= getattr(record, "about", {})
        else:
            line["at"] = f"{record.module}:{record.lineno}"
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = type(record.exc_info[1]).__name__
            frames = traceback.extract_tb(record.exc_info[2])
            line["raised"] = [f"{frame.name}:{frame.lineno}" for frame in frames[-8:]]
        return json.dumps(line, ensure_ascii=False)


def write_json(stream: TextIO | None = None) -> None:
    """Write every record of this process, from INFO on, to `stream` (default: stderr). Warnings of Python's too."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)


def _numbered(record: logging.LogRecord) -> str:
    """The record's message with numbers in it; whatever else would stand there is hidden."""
    given = record.args
    if isinstance(given, Mapping):
        return str(record.msg)
    kept = tuple(one if isinstance(one, int | float) else _Hidden() for one in given or ())
    return str(record.msg) % kept if kept else str(record.msg)


class _Hidden:
    """What is written as "…", however it is asked for."""

    def __str__(self) -> str:
        return HIDDEN

    __repr__ = __str__
