from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from beacon_memory.config import RATIOS, BeaconConfig, check_ratio
from beacon_memory.errors import ConfigError


def test_the_default_settings_work() -> None:
    config = BeaconConfig()
    assert config.shares == (("reconstruct", 1.0),)
    assert config.layout == "select"


def test_the_shares_of_a_mix_sum_to_one() -> None:
    assert BeaconConfig(anchors="reconstruct:3 + last:1").shares == (("reconstruct", 0.75), ("last", 0.25))
    assert BeaconConfig(anchors="surprise+last").shares == (("surprise", 0.5), ("last", 0.5))


def test_settings_survive_their_dictionary() -> None:
    config = BeaconConfig(ratio=8, window=64, layout="shadow", anchors="last", sink=0, keep_last=7)
    assert BeaconConfig.from_dict(config.to_dict()) == config


def test_replacing_a_setting_checks_the_whole_again() -> None:
    config = BeaconConfig(window=64, ratio=32)
    assert config.replace(window=128) == BeaconConfig(window=128, ratio=32)
    with pytest.raises(ConfigError, match="does not divide"):
        config.replace(window=48)


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        BeaconConfig().ratio = 8  # type: ignore[misc]


def test_a_ratio_that_does_not_divide_the_window_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match="ratio 8 does not divide the window of 100 tokens"):
        BeaconConfig(ratio=8, window=100)


def test_every_ratio_of_the_paper_and_raw_are_accepted() -> None:
    assert [check_ratio(ratio, 64) for ratio in RATIOS] == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize(
    "setting",
    [
        {"ratio": 3},
        {"document_windows": 0},
        {"overlap": -1},
        {"ratio": 0},
        {"ratio": True},
        {"ratio": "4"},
        {"window": 0},
        {"window": 64.0},
        {"layout": "append"},
        {"layout": "interleave", "anchors": "surprise"},
        {"layout": "shadow", "anchors": "spread:3+last:1"},
        {"anchors": "first"},
        {"anchors": ""},
        {"anchors": "last:0"},
        {"anchors": "last:nan"},
        {"anchors": "last:inf"},
        {"anchors": "last:-1+surprise"},
        {"anchors": "last+last"},
        {"sink": -1},
        {"keep_last": 1.5},
        {"slot_dtype": "int3"},
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(reversed(setting))):
        BeaconConfig(**setting)


def test_an_unknown_setting_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(ConfigError, match="unknown setting stride; known: ratio, window"):
        BeaconConfig.from_dict({"stride": 4})
