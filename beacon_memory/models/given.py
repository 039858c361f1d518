"""What a caller gives a model, checked before anything is computed: ids, states, segments, and what is called back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import index
from typing import Any, TypeVar

from beacon_memory.errors import ConfigError, InputError
from beacon_memory.state.state import BeaconState, Segment

T = TypeVar("T")


def given_list(many: Iterable[T], what: str) -> list[T]:
    """The things as a list; `what` says what they are. Raises InputError for what is not many things."""
    if not isinstance(many, Iterable) or isinstance(many, str | bytes | Mapping):
        raise InputError(f"{what} is a list, not {many!r:.80}")
    return list(many)


def token_ids(ids: Iterable[int], *, vocabulary: int | None = None) -> list[int]:
    """The ids as a list of integers, each below the size of the vocabulary. Raises InputError."""
    try:
        if isinstance(ids, str | bytes | Mapping):
            raise TypeError
        found = [index(i) for i in ids]
    except TypeError as exc:
        raise InputError(f"token ids are a list of integers, as encode(text) gives them, not {ids!r:.80}") from exc
    if vocabulary is not None and found and not 0 <= min(found) <= max(found) < vocabulary:
        raise InputError(
            f"token ids are 0 to {vocabulary - 1}, found {min(found)} to {max(found)}: another tokenizer's?"
        )
    return found


def given_state(state: BeaconState | None) -> BeaconState:
    """The state, an empty one for None. Raises InputError."""
    if state is None:
        return BeaconState()
    if not isinstance(state, BeaconState):
        raise InputError(f"a state is what compress() gives, a BeaconState, not {state!r:.80}")
    return state


def given_prompts(
    prompts: Iterable[Sequence[int]], states: Iterable[BeaconState] | None
) -> tuple[list[Sequence[int]], list[BeaconState]]:
    """The prompts, and a state for each of them: empty ones for None. Raises InputError."""
    asked = given_list(prompts, "prompts")
    found = [BeaconState()] * len(asked) if states is None else given_list(states, "states")
    if not asked or len(asked) != len(found):
        raise InputError(f"one state per prompt, at least one: got {len(asked)} prompts and {len(found)} states")
    return asked, [given_state(state) for state in found]


def given_segments(segments: Iterable[Segment]) -> list[Segment]:
    """The segments as a list. Raises InputError."""
    found = given_list(segments, "segments")
    if not all(isinstance(segment, Segment) for segment in found):
        raise InputError(f"segments are those of a BeaconState, not {segments!r:.80}")
    return found


def check_budget(budget: int | None) -> None:
    """Raises ConfigError unless it is a number of slots, or None."""
    if budget is not None and type(budget) is not int:
        raise ConfigError(f"budget is a number of slots, not {budget!r:.80}")


def check_called(**called: Any) -> None:
    """Raises ConfigError for what is no function, by its argument's name; None is none."""
    for name, one in called.items():
        if one is not None and not callable(one):
            raise ConfigError(f"{name} is a function, or None, not {one!r:.80}")
