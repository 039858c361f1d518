"""Room: which segment of a session to fold again, and at which ratio, to keep its budget; a prompt within a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from beacon_memory.config import RATIOS, BeaconConfig, slot_count
from beacon_memory.errors import BudgetExceeded, ConfigError, InputError, PromptTooLong
from beacon_memory.state.state import Segment


def default_budget(positions: int, config: BeaconConfig) -> int:
    """The default number of slots in a model with this many positions.

    It leaves room for the tail and, in a quarter of the positions, for prompt and answer; or for a document's window,
    if that needs more. Raises ConfigError when a window does not fit the model.
    """
    budget = positions - max(positions // 4 + config.window + config.keep_last, config.overlap + config.document_window)
    if budget < config.window:
        raise ConfigError(
            f"a window of {config.window} tokens, {config.document_window} of a document, and a tail of "
            f"{config.keep_last} leave no room in a model of {positions} positions: choose a smaller window, "
            f"document_windows or keep_last"
        )
    return budget


def full_windows(raw: int, *, first: bool, config: BeaconConfig) -> int:
    """How many windows of so many raw tokens would be folded; `first` where nothing stands in front of them.

    >>> [full_windows(raw, first=True, config=BeaconConfig()) for raw in (643, 644)]
    [0, 1]
    """
    return max(0, raw - config.keep_last - (config.sink if first else 0)) // config.window


def check_room(tokens: int, folded: Iterable[tuple[int, int]], budget: int, config: BeaconConfig) -> None:
    """Raises BudgetExceeded when this many more tokens do not fit even at the highest ratio beside what is folded, each
    segment given by its tokens and how many of them are sinks.

    It is called first, so that nothing is folded in vain.
    """
    more = max(0, tokens - config.window - config.keep_last)  # the rest may stay raw
    least = sum(sink + slot_count(read - sink, RATIOS[-1]) for read, sink in folded) + more // RATIOS[-1]
    if least > budget:
        raise BudgetExceeded(
            f"with {tokens} more tokens the session takes {least} slots even at ratio {RATIOS[-1]}, and the budget is "
            f"{budget}: nothing was folded; raise the budget, or add less at once"
        )


def check_prompt(slots: int, prompt: int, answer: int, *, positions: int) -> None:
    """Raises InputError for a prompt of no tokens, and PromptTooLong where it, the slots in front and an answer of so
    many tokens have no room.
    """
    if not prompt:
        raise InputError("nothing to answer: the prompt and the state's tail are both empty")
    if (total := slots + prompt + answer) > positions:
        raise PromptTooLong(
            f"{slots} slots, {prompt} prompt tokens and {answer} for the answer are {total}, the model has "
            f"{positions} positions: shorten the prompt or compress it first"
        )


def next_refold(segments: Sequence[Segment], budget: int) -> tuple[int, int]:
    """The index of the segment to fold again, and its new ratio: the oldest segment at the ratio with the most slots.

    So over time every ratio gets an equal share of the budget, and older memories are coarser. Raises BudgetExceeded
    when no segment can be made smaller.
    """
    slots_at: dict[int, int] = {}
    steps: list[int | None] = []
    for segment in segments:
        step = _next_ratio(segment)
        steps.append(step)
        if step is not None:
            slots_at[segment.ratio] = slots_at.get(segment.ratio, 0) + segment.slots
    if not slots_at:
        raise BudgetExceeded(
            f"{sum(s.slots for s in segments)} slots, a budget of {budget}, and every segment is at its highest ratio: "
            f"raise the budget, forget a document, or start another session"
        )
    fullest = max(slots_at, key=lambda ratio: (slots_at[ratio], -ratio))
    for index, (segment, step) in enumerate(zip(segments, steps, strict=True)):
        if segment.ratio == fullest and step is not None:
            return index, step
    raise AssertionError("a ratio in use has a segment")


def _next_ratio(segment: Segment) -> int | None:
    """The next ratio that makes the segment smaller, or None."""
    tokens = len(segment.ids) - segment.sink
    for ratio in RATIOS:
        if ratio > segment.ratio and slot_count(tokens, ratio) + segment.sink < segment.slots:
            return ratio
    return None
