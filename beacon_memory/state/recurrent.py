"""What recurrent layers have read, as a value: one state stands for everything before a token. Two do not join."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Recurrent:
    """The state of a model's recurrent layers behind a token.

    A segment holds that of its last token. In a pass there is one for each text of a batch, along the second dimension.
    """

    conv: Tensor  # (recurrent layers, channels, columns): what a convolution sees of the tokens before
    delta: Tensor | None = None  # (recurrent layers, heads, key width, value width); None where layers only convolve

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors, by the names that they have in a blob."""
        return {"conv": self.conv} if self.delta is None else {"conv": self.conv, "delta": self.delta}

    @property
    def nbytes(self) -> int:
        """The bytes it takes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with each tensor changed."""
        return type(self)(**{name: change(tensor) for name, tensor in self.tensors.items()})

    def equals(self, other: Recurrent | None) -> bool:
        """Whether both are the same, bit for bit."""
        import torch

        mine, theirs = self.tensors, {} if other is None else other.tensors
        return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def kept_bytes(shapes: Mapping[str, tuple[int, ...]], slot_dtype: str) -> int:
    """The bytes that a state of these shapes takes beside slots of this dtype."""
    return sum(prod(shape) for shape in shapes.values()) * kept_dtype(slot_dtype).itemsize


def kept_dtype(slot_dtype: str) -> torch.dtype:
    """The dtype that a segment's state is kept in: float32 where its slots are, else bfloat16.

    Float16 is too narrow for a sum over a whole session, and 8 bits are too few for what is read on and on.
    """
    import torch

    return torch.float32 if slot_dtype == "float32" else torch.bfloat16
