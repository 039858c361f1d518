"""Several users of one server for some seconds: no error, and nobody's memory in another's."""

from __future__ import annotations

from pathlib import Path

from benchmarks.server.soak import Seen, check, soaked


def test_users_who_talk_at_once_see_their_own_memory_and_no_error(tmp_path: Path) -> None:
    found = soaked(tmp_path, minutes=0.2, users=6, idle=5)
    assert found["wrong"] == {}
    assert found["turns"] > 6


def test_anothers_secret_and_a_missing_one_are_noticed() -> None:
    own, other, seen = "secret-0123456789ab", "secret-ba9876543210", Seen()
    check(f"{own} and {own}", own, "an answer", seen)
    assert seen.wrong == {}
    check(f"{own} {other}", own, "an answer", seen)
    check("none", own, "a session", seen)
    assert seen.wrong == {"another's secret in an answer": 1, "no secret in a session": 1}
