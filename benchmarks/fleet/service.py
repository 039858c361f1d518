"""How long things take on one replica, one fold worker and one Redis node. Every number is measured or stated here."""

from __future__ import annotations

from dataclasses import dataclass

WINDOW, KEEP_LAST = 512, 128  # tokens; what is folded at once, and what stays raw

# Measured on two cores (benchmarks/README.md, "Every number"): 32,768 tokens at 8x are 94.8 MB in bfloat16.
STORED = 1_543 / 2_892  # of a slot's bytes in bfloat16, as int8 in the store
REDIS = 94.8e6 / 0.102  # bytes a second of one node: "bare GET"
VERIFY = 94.8e6 / 0.160  # bytes a second: a cold turn less a hot one less the GET is hashing, decoding, rotating
ROUND_TRIP = 0.001  # s
HEAD = 8_192  # bytes of a session's head with its raw tail

# NVIDIA H100 SXM, from its data sheet, and what of it is got.
FLOPS, BANDWIDTH, MEMORY = 989e12 * 0.5, 3.35e12 * 0.7, 80e9 * 0.9
STEP, PROMPT = 0.003, 0.010  # s that a step and a prompt take beside their arithmetic
# A fold on a GPU is bound by launching kernels (benchmarks/LOG.md, an H200 at 4x): with 30 layers a window takes 69 ms,
# 89 ms behind 4,096 slots.
LAUNCH, LAUNCH_SLOT = 0.069 / 30, 0.020 / 4_096 / 30  # s a layer


@dataclass(frozen=True)
class Service:
    """A model where it runs: a replica's times, sizes and room. Times in seconds, sizes in bytes."""

    name: str
    entry: int  # bytes of one KV entry in bfloat16, all layers
    room: int  # KV entries of one replica
    gpus: int  # of one replica
    folder_gpus: int  # of one fold worker
    patience: float  # a first token that takes longer in one of 20 turns is too late
    answer: int = 200  # tokens

    def slot(self) -> float:
        """Bytes of a slot in the store."""
        return self.entry * STORED

    def prompt(self, new: int, behind: int) -> float:
        """Reading `new` tokens behind as many entries."""
        raise NotImplementedError

    def step(self, batch: int, entries: int) -> float:
        """One token for each of a batch, whose contexts have so many entries in all."""
        raise NotImplementedError

    def fold(self, slots: int) -> float:
        """Folding one window behind so many slots."""
        raise NotImplementedError


@dataclass(frozen=True)
class Measured(Service):
    """SmolLM2 on two CPU cores, fitted to benchmarks/README.md within 15 %."""

    def prompt(self, new: int, behind: int) -> float:
        return 1.2116e-3 * new + 2.187e-7 * ((behind + new) ** 2 - behind**2)

    def step(self, batch: int, entries: int) -> float:
        return 0.038 + 0.0018 * (batch - 1) + 5.95e-6 * entries

    def fold(self, slots: int) -> float:
        return 0.75 + 0.00025 * slots


@dataclass(frozen=True)
class Arithmetic(Service):
    """A model on H100s: weights and entries through memory for a token, FLOPs for a prompt."""

    parameters: float = 0.0
    layers: int = 0
    width: int = 0  # query heads times head size

    def prompt(self, new: int, behind: int) -> float:
        pairs = ((behind + new) ** 2 - behind**2) / 2
        return PROMPT + (2 * self.parameters * new + 4 * self.layers * self.width * pairs) / (self.gpus * FLOPS)

    def step(self, batch: int, entries: int) -> float:
        moved = (2 * self.parameters + entries * self.entry) / (self.gpus * BANDWIDTH)
        return STEP + max(moved, 2 * self.parameters * batch / (self.gpus * FLOPS))

    def fold(self, slots: int) -> float:
        launches = self.layers * (LAUNCH + LAUNCH_SLOT * slots)
        return max(launches, 2 * self.parameters * WINDOW * 1.25 / FLOPS)  # beacons and their weights add a quarter


def on_h100(
    name: str, *, parameters: float, layers: int, heads: int, kv_heads: int, head: int, gpus: int, folder_gpus: int
) -> Arithmetic:
    """A model in bfloat16 on so many H100s, what its weights leave of their memory for KV entries."""
    entry = 2 * 2 * layers * kv_heads * head
    room = int((gpus * MEMORY - 2 * parameters) / entry)
    return Arithmetic(name, entry, room, gpus, folder_gpus, 2.0, 200, parameters, layers, heads * head)


SERVICES = {
    "smollm2-cpu": Measured("SmolLM2-135M, 2 CPU cores, float32", 23_040, int(16e9 / 46_080), 0, 0, 10.0, 40),
    "smollm2": on_h100(
        "SmolLM2-135M, 1 H100",
        parameters=134.5e6,
        layers=30,
        heads=9,
        kv_heads=3,
        head=64,
        gpus=1,
        folder_gpus=1,
    ),
    "qwen2-7b": on_h100(
        "Qwen2-7B, 1 H100",
        parameters=7.62e9,
        layers=28,
        heads=28,
        kv_heads=4,
        head=128,
        gpus=1,
        folder_gpus=1,
    ),
    "llama-3-70b": on_h100(
        "Llama-3-70B, 4 H100s",
        parameters=70.6e9,
        layers=80,
        heads=64,
        kv_heads=8,
        head=128,
        gpus=4,
        folder_gpus=2,
    ),
}
