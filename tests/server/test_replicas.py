"""One of two servers is killed under load: what was acknowledged is there, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.server.replicas import measured


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.long)])
def test_no_acknowledged_turn_is_lost_and_none_stands_twice_when_servers_are_killed(tmp_path: Path, kills: int) -> None:
    found = measured(tmp_path, kills=kills, seconds=2.0)
    assert (found.lost, found.doubled) == ((), ())
    assert found.acknowledged >= 5 * kills
    assert any(why in found.again for why in ("ConnectError", "ReadError", "RemoteProtocolError"))
