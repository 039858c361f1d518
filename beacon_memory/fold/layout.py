"""The positions of rows and what they see: pure functions from counts to positions and masks.

The rows of a fold are two blocks, `[raw | beacons]`, in every layout. Layouts differ only in the positions of the rows
and in who sees whom. Positions count KV entries from the beginning of the state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from beacon_memory.config import slot_count


def unit_ends(tokens: int, ratio: int) -> Tensor:
    """The index of each unit's last token.  # (slots,)

    >>> unit_ends(10, 4).tolist()
    [3, 7, 9]
    """
    return (torch.arange(1, slot_count(tokens, ratio) + 1) * ratio).clamp(max=tokens) - 1


def evenly(tokens: int, count: int) -> Tensor:
    """The indices of `count` tokens spread evenly, the newest one always among them.  # (count,)

    >>> evenly(10, 3).tolist()
    [2, 5, 9]
    """
    return torch.arange(1, count + 1) * tokens // max(count, 1) - 1


def interleaved(tokens: int, ratio: int, *, sink: int) -> tuple[Tensor, Tensor]:
    """Positions of the raw rows and of the beacons when a beacon follows each unit (paper, section 3.1).

    Counted from the first row; `tokens` counts the sinks.  # (tokens,), (slots,)

    >>> [p.tolist() for p in interleaved(5, 2, sink=1)]
    [[0, 1, 2, 4, 5], [3, 6]]
    """
    window = tokens - sink
    raw = torch.arange(window)
    ends = unit_ends(window, ratio)
    beacons = sink + ends + 1 + torch.arange(len(ends))
    return torch.cat([torch.arange(sink), sink + raw + raw // ratio]), beacons


def causal(queries: Tensor, keys: Tensor, *, past: int, dtype: torch.dtype, window: int | None = None) -> Tensor:
    """An additive mask by position: a row sees all of the past, and every row at its own position or before.

    With a `window` it sees only the newest so many positions, its own among them.
    queries: (rows,) and keys: (columns,), positions counted from the end of the past.  # (1, 1, rows, past + columns)
    """
    hidden = keys[None, :] > queries[:, None]
    if window is None:
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
        return torch.nn.functional.pad(mask, (past, 0))[None, None]
    seen = torch.cat([torch.arange(-past, 0, device=keys.device), keys])
    hidden = torch.nn.functional.pad(hidden, (past, 0)) | (seen[None, :] <= queries[:, None] - window)
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))[None, None]
