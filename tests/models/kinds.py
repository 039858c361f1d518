"""Weights of every kind, as a `Case` of the laws: what is called like a Linear and is none, for test_weights.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

import torch
from laws import LAWS, Case
from torch import Tensor, nn

from beacon_memory.fold.family import FAMILIES


class Packed(nn.Module):
    """A Linear as GPTQ and AWQ pack it, eight 4-bit numbers in an int32 and a scale a row: it has no weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scales = weight.abs().amax(dim=1, keepdim=True) / 7
        codes = (weight / scales).round().to(torch.int32) + 8  # (out features, in features)
        shifts = 4 * torch.arange(8, dtype=torch.int32)
        self.register_buffer("qweight", (codes.view(len(codes), -1, 8) << shifts).sum(dim=2, dtype=torch.int32))
        self.register_buffer("scales", scales)
        self.register_buffer("shifts", shifts, persistent=False)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, rows: Tensor) -> Tensor:
        codes = (self.qweight[..., None] >> self.shifts) & 15
        return nn.functional.linear(rows, (codes.flatten(1) - 8) * self.scales, self.bias)


def packed(lm: Any) -> Any:
    """Every Linear of the layers packed."""
    return _replaced(lm, Packed)


def eight_bits(lm: Any) -> Any:
    """LLM.int8 by bitsandbytes."""
    bnb = import_module("bitsandbytes")

    def made(linear: nn.Linear) -> nn.Module:
        new = bnb.nn.Linear8bitLt(linear.in_features, linear.out_features, linear.bias is not None, threshold=6.0)
        new.load_state_dict(linear.state_dict())
        return new.to("cpu")

    return _replaced(lm, made)


def four_bits(lm: Any) -> Any:
    """NF4 by bitsandbytes, scales quantised too."""
    bnb = import_module("bitsandbytes")

    def made(linear: nn.Linear) -> nn.Module:
        bias = linear.bias is not None
        new = bnb.nn.LinearNF4(linear.in_features, linear.out_features, bias, compute_dtype=torch.float32)
        new.load_state_dict(linear.state_dict())
        return new.to("cpu")

    return _replaced(lm, made)


def int8_weights(lm: Any) -> Any:
    """Int8 weights by torchao: Linear modules whose weights are tensors of another class."""
    quantization = import_module("torchao.quantization")
    quantization.quantize_(lm.model.layers, quantization.Int8WeightOnlyConfig())
    return lm


def lora(lm: Any) -> Any:
    """A LoRA of peft on the attention, in peft's wrapper."""
    peft = import_module("peft")
    names = sorted({name.split(".")[-1] for name, _ in lm.named_modules() if name.endswith(("q_proj", "qkv_proj"))})
    wrapped = peft.get_peft_model(lm, peft.LoraConfig(r=2, target_modules=names, task_type="CAUSAL_LM")).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=draw))
    return wrapped


def spread(lm: Any) -> Any:
    """Over two devices by accelerate: some layers on the CPU, the rest and the embeddings on a disk until called."""
    folder = mkdtemp()
    devices = {"model.embed_tokens": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
    devices |= {f"model.layers.{index}": "disk" if index else "cpu" for index in range(len(lm.model.layers))}
    made = import_module("accelerate").dispatch_model(
        lm, devices, main_device="cpu", offload_dir=folder, force_hooks=True
    )
    finalize(made, rmtree, folder, ignore_errors=True)
    return made


def _replaced(lm: Any, made: Callable[[nn.Linear], nn.Module]) -> Any:
    """Every Linear of the layers in another form."""
    for path, module in list(lm.model.layers.named_modules()):
        if type(module) is nn.Linear:
            lm.model.layers.set_submodule(path, made(module).requires_grad_(False))
    return lm.eval()


@dataclass(frozen=True)
class Kind:
    """One kind of weights."""

    name: str
    of: Callable[[Any], Any]
    package: str = ""  # what it needs
    rounds: bool = False  # whether a Linear rounds the rows of each call together, so that other pieces give others

    @property
    def there(self) -> bool:
        """Whether its package is installed."""
        return not self.package or find_spec(self.package) is not None

    @property
    def laws(self) -> tuple[str, ...]:
        """Those that can hold: where rows are rounded by call, what is read in other pieces differs."""
        return tuple(law for law in LAWS if not self.rounds or law not in CUT_OTHERWISE)


CUT_OTHERWISE = ("ratio 1", "raw keys", "look back", "batch", "hot", "adapter", "seek")
KINDS = [
    Kind("packed into integers, as by GPTQ and AWQ", packed),
    Kind("NF4", four_bits, "bitsandbytes"),
    Kind("LLM.int8", eight_bits, "bitsandbytes", rounds=True),
    Kind("int8 weights", int8_weights, "torchao"),
    Kind("a LoRA beside them", lora, "peft"),
    Kind("on a disk until they are called (`device_map`)", spread, "accelerate"),
]


@dataclass(frozen=True)
class Weighted(Case):
    """A family whose weights are of another kind."""

    kind: Kind = KINDS[0]

    def plain(self, **changes: Any) -> Any:
        return self.kind.of(super().plain(**changes))


@cache
def weighted(family: str, kind: Kind) -> Weighted:
    """Of one family."""
    return Weighted(f"{family}, {kind.name}", FAMILIES[family], kind=kind)


@cache
def broken(family: str, kind: Kind, law: str) -> AssertionError | None:
    """What a law says against weights of this kind, or None: it holds."""
    try:
        LAWS[law](weighted(family, kind))
    except AssertionError as exc:
        return exc
    return None


def table() -> Iterator[str]:
    """The kinds, and what came of the laws for a Llama."""
    yield "| weights | package | laws |"
    yield "|---|---|---|"
    for kind in KINDS:
        held = [law for law in kind.laws if not broken("llama", kind, law)]
        laws = f"all {len(LAWS)}" if len(held) == len(LAWS) else ", ".join(held)
        yield f"| {kind.name} | {kind.package or 'any'} | {laws} |"


if __name__ == "__main__":
    print("\n".join(table()))
