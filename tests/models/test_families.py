"""Every law over every family, and the table of docs/models.md, which says what came of it."""

from __future__ import annotations

from functools import cache

import pytest
from laws import CASES, LAWS, Case


@cache
def failure(case: str, law: str) -> Exception | None:
    try:
        LAWS[law](next(one for one in CASES if one.name == case))
    except AssertionError as exc:
        return exc
    return None


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_law_holds_for_a_family(case: Case, law: str) -> None:
    if (found := failure(case.name, law)) is not None:
        raise found
