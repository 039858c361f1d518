"""Where a model computes, which is not always where its weights are: accelerate fetches some when they are called."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn


def device_of(module: nn.Module) -> torch.device:
    """The device that a module computes on; the CPU for one without weights."""
    for one in module.modules():
        for hook in _hooks(one):
            if getattr(hook, "offload", False) and hook.execution_device is not None:
                return torch.device(hook.execution_device)
    held = (tensor.device for tensor in chain(module.parameters(), module.buffers()))
    return next((device for device in held if device.type != "meta"), torch.device("cpu"))


def reads_on(lm: Any) -> torch.device:
    """The device that a language model takes ids on."""
    return device_of(lm.get_input_embeddings())


def _hooks(module: nn.Module) -> Iterator[Any]:
    """Those of accelerate."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        yield from getattr(hook, "hooks", [hook])
