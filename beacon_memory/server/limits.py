"""What one request may ask for, and how many may wait."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

from pydantic import AfterValidator

from beacon_memory.config import known_ratio
from beacon_memory.errors import ConfigError

Ratio = Annotated[int, AfterValidator(known_ratio)]  # of a request's body


@dataclass(frozen=True)
class Limits:
    """The server's limits. Raises ConfigError for a number that is not positive."""

    body_bytes: int = 16 << 20  # of a request
    archive_bytes: int = 1 << 30  # of a session that is imported
    messages: int = 10_000  # of one request
    answer_tokens: int = 4096  # the longest answer that may be asked for
    default_tokens: int = 512  # of an answer whose length is not asked for; never more than a quarter of the model's
    waiting: int = 64  # requests that wait for the model or are being answered; more get 429
    seconds: float = 600.0  # until a request is given up, the time in the queue included
    shutdown_seconds: float = 30.0  # how long answers may go on after the server was told to stop

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e15:
                raise ConfigError(f"{field.name} is a number above 0, not {value!r:.80}")

    def usual_tokens(self, positions: int) -> int:
        """How long an answer may be whose length is not asked for, with a model of so many positions."""
        return max(1, min(self.default_tokens, self.answer_tokens, positions // 4))
