"""Prints a line for pip's constraints file for each direct dependency: its lowest allowed version (make test-lowest).

torch is left out: it is installed first, by itself, as for every environment here.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement


def lowest(pyproject: Path) -> Iterator[str]:
    """The constraints. Raises ValueError for a dependency that has no lower bound."""
    project = tomllib.loads(pyproject.read_text())["project"]
    for line in chain(project["dependencies"], *project["optional-dependencies"].values()):
        wanted = Requirement(line)
        if wanted.name in ("torch", project["name"]):
            continue
        bounds = [bound.version for bound in wanted.specifier if bound.operator == ">="]
        if not bounds:
            raise ValueError(f"{line!r} says no lowest version: write NAME>=VERSION")
        yield f"{wanted.name}=={bounds[0]}"


if __name__ == "__main__":
    print("\n".join(dict.fromkeys(lowest(Path(sys.argv[1])))))
