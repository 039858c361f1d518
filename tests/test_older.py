"""Module names of the first release."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from beacon_memory.older import MODULES


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_of_the_first_release_is_the_one_of_today(name):
    with pytest.warns(DeprecationWarning, match=f"is beacon_memory.{MODULES[name]} now"):
        older = importlib.import_module(f"beacon_memory.{name}")
    sys.modules.pop(f"beacon_memory.{name}")
    assert older is importlib.import_module(f"beacon_memory.{MODULES[name]}")


def test_a_program_of_the_first_release_runs():
    lines = [
        "import beacon_memory.model",
        "from beacon_memory.engine import BeaconEngine",
        "from beacon_memory.serving.engine import BeaconEngine as Today",
        "assert BeaconEngine is Today",
        "import beacon_memory.models.model as today",
        "assert today.BeaconModel is beacon_memory.model.BeaconModel",
        "assert today.__name__ == 'beacon_memory.models.model', today.__name__",
        "assert today.__spec__.name == 'beacon_memory.models.model', today.__spec__",
        "try:",
        "    import beacon_memory.nothing",
        "except ModuleNotFoundError:",
        "    print('fine')",
    ]
    said = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert said.stdout == "fine\n"
