"""What `make docs` changes on the way to HTML: links out of docs/, and docstrings that Markdown would misread."""

from __future__ import annotations

import re
from typing import Any

import griffe

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./((?!\.\.)[^)]+)\)")  # the site has no page for what lies beside docs/
DOCTEST = re.compile(r"^>>> .*(?:\n(?!\n).*)*", re.MULTILINE)
SHAPE = re.compile(r"^# (\(.*\).*)$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to files of the repository that are no page become their text and path."""
    return OUTSIDE.sub(r"\1 (`\2`)", markdown)


def readable(docstring: str) -> str:
    """Examples in fences, shapes as code.

    >>> readable("# (layers, slots)")
    '`(layers, slots)`'
    """
    return SHAPE.sub(r"`\1`", DOCTEST.sub(lambda found: f"```pycon\n{found[0]}\n```", docstring))


class Readable(griffe.Extension):
    """Each docstring as Markdown reads it."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)
