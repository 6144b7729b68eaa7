"""Devices that one can rent or own, by the names that people use.

A row has what a compiler must know of a device, and its memory. Peak rates are in
`budget/peaks.py`, found by `device_kind`.

Sources:
    Multiprocessors by compute capability: CUDA C++ Programming Guide, tables of "Compute
        Capabilities".
    Multiprocessors, boost clocks and L2 caches of cards: NVIDIA's whitepapers and product pages.
    TPUs: cloud.google.com/tpu/docs, pages of each version.
    `memory_gib`: what programs see of a card, which is less than the figure on its box. It is the
        total that PyTorch prints when it runs out of memory, as public bug reports quote it (23.64
        for an RTX 4090, 23.70 for an RTX 3090), or 98% of the box if no report was found.

Most figures were recalled rather than read there.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from typing import NamedTuple

from cramjax.budget import peaks
from cramjax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One GPU in XLA's target description, without its memory.

    `clock_ghz` is the boost clock, `l2_mib` the size of the L2 cache.
    """

    capability: tuple[int, int]
    n_multiprocessors: int
    clock_ghz: float
    l2_mib: float


@dataclasses.dataclass(frozen=True)
class Card:
    """An NVIDIA card, or a slice of TPUs.

    Attributes:
        name: what people type after `--device`.
        device_kind: the name that JAX gives its devices.
        memory_gib: memory of one device that programs see.
        gpu: its description, for an NVIDIA card.
        topology: the name that libtpu gives the slice, for TPUs.
        n_devices: devices of the slice.
    """

    name: str
    device_kind: str
    memory_gib: float
    gpu: Gpu | None = None
    topology: str | None = None
    n_devices: int = 1

    @property
    def memory_bytes(self) -> int:
        """Memory of one device."""
        return round(self.memory_gib * GIB)

    @property
    def peak(self) -> peaks.Peak:
        """Peak rates of one device. Raises LookupError if the table of peaks lacks it."""
        peak = peaks.find(self.device_kind)
        if peak is None:
            raise LookupError(f"{self.device_kind}: not in budget/peaks.py")
        return peak

    @property
    def instructions_per_s(self) -> float:
        """Float32 instructions a second of all lanes of a GPU at its boost clock.

        An instruction is two FLOPs at most, so this is half the float32 rate without tensor cores.
        """
        gpu = require_gpu(self)
        lanes = _MULTIPROCESSORS[gpu.capability].lanes
        return 1e9 * lanes * gpu.n_multiprocessors * gpu.clock_ghz


def require_gpu(card: Card) -> Gpu:
    """Returns the GPU of `card`. Raises ValueError for a TPU slice."""
    if card.gpu is None:
        raise ValueError(f"{card.name}: is not a GPU")
    return card.gpu


def _tpu(name: str, kind: str, memory_gib: float, topology: str, n_devices: int) -> Card:
    return Card(name, kind, memory_gib, topology=topology, n_devices=n_devices)


CARDS = {
    card.name: card
    for card in (
        Card("gtx1080ti", "NVIDIA GeForce GTX 1080 Ti", 10.91, Gpu((6, 1), 28, 1.582, 2.75)),
        Card("v100", "Tesla V100-SXM2-16GB", 15.77, Gpu((7, 0), 80, 1.53, 6)),
        Card("rtx2080ti", "NVIDIA GeForce RTX 2080 Ti", 10.75, Gpu((7, 5), 68, 1.545, 5.5)),
        Card("t4", "Tesla T4", 14.58, Gpu((7, 5), 40, 1.59, 4)),
        Card("a100", "NVIDIA A100-SXM4-40GB", 39.39, Gpu((8, 0), 108, 1.41, 40)),
        Card("a100-80", "NVIDIA A100-SXM4-80GB", 79.15, Gpu((8, 0), 108, 1.41, 40)),
        Card("rtx3060", "NVIDIA GeForce RTX 3060", 11.76, Gpu((8, 6), 28, 1.777, 3)),
        Card("rtx3090", "NVIDIA GeForce RTX 3090", 23.70, Gpu((8, 6), 82, 1.695, 6)),
        Card("a4000", "NVIDIA RTX A4000", 15.73, Gpu((8, 6), 48, 1.56, 4)),
        Card("a6000", "NVIDIA RTX A6000", 47.54, Gpu((8, 6), 84, 1.80, 6)),
        Card("rtx4060ti", "NVIDIA GeForce RTX 4060 Ti", 15.70, Gpu((8, 9), 34, 2.535, 32)),
        Card("rtx4090", "NVIDIA GeForce RTX 4090", 23.64, Gpu((8, 9), 128, 2.52, 72)),
        Card("l4", "NVIDIA L4", 22.03, Gpu((8, 9), 58, 2.04, 48)),
        Card("h100", "NVIDIA H100 80GB HBM3", 79.10, Gpu((9, 0), 132, 1.98, 50)),
        Card("h200", "NVIDIA H200", 139.80, Gpu((9, 0), 132, 1.98, 50)),
        Card("rtx5090", "NVIDIA GeForce RTX 5090", 31.36, Gpu((12, 0), 170, 2.407, 96)),
        _tpu("v2-8", "TPU v2", 8, "v2:2x2", 8),
        _tpu("v3-8", "TPU v3", 16, "v3:2x2", 8),
        _tpu("v4-8", "TPU v4", 32, "v4:2x2x1", 4),
        _tpu("v5e-1", "TPU v5 lite", 15.75, "v5e:1x1", 1),
        _tpu("v5e-4", "TPU v5 lite", 15.75, "v5e:2x2", 4),
        _tpu("v5e-8", "TPU v5 lite", 15.75, "v5e:2x4", 8),
        _tpu("v5p-8", "TPU v5", 95, "v5p:2x2x1", 4),
        _tpu("v6e-8", "TPU v6 lite", 31.25, "v6e:2x4", 8),
    )
}


class _Multiprocessor(NamedTuple):
    """Limits of a multiprocessor: bytes of shared memory, threads, and float32 lanes."""

    shared_memory: int
    shared_memory_of_block: int
    threads: int
    lanes: int


# By compute capability.
_MULTIPROCESSORS = {
    (6, 1): _Multiprocessor(98304, 49152, 2048, 128),
    (7, 0): _Multiprocessor(98304, 98304, 2048, 64),
    (7, 5): _Multiprocessor(65536, 65536, 1024, 64),
    (8, 0): _Multiprocessor(167936, 166912, 2048, 64),
    (8, 6): _Multiprocessor(102400, 101376, 1536, 128),
    (8, 9): _Multiprocessor(102400, 101376, 1536, 128),
    (9, 0): _Multiprocessor(233472, 232448, 2048, 128),
    (12, 0): _Multiprocessor(102400, 101376, 1536, 128),
}

CUDNN = (9, 8)
"""The version that programs are compiled for.

It has fused attention for every card from compute capability 8.0 on.
"""


def target_config(card: Card) -> str:
    """Returns XLA's description of the GPU of `card`: a GpuTargetConfigProto in text."""
    gpu = require_gpu(card)
    multiprocessor = _MULTIPROCESSORS[gpu.capability]

    return f"""gpu_device_info {{
  cuda_compute_capability {{ major: {gpu.capability[0]} minor: {gpu.capability[1]} }}
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: {multiprocessor.threads}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {multiprocessor.shared_memory_of_block}
  shared_memory_per_core: {multiprocessor.shared_memory}
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  core_count: {gpu.n_multiprocessors}
  fpus_per_core: {multiprocessor.lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  clock_rate_ghz: {gpu.clock_ghz}
  memory_bandwidth: {round(card.peak.bandwidth * 1e9)}
  l2_cache_size: {round(gpu.l2_mib * 2**20)}
  device_memory_size: {card.memory_bytes}
}}
platform_name: "CUDA"
dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} patch: 0 }}
device_description_str: "{card.device_kind}"
"""


def find(name: str) -> Card:
    """Returns the card called `name`: "RTX 3060", "rtx-3060" and "rtx3060" are the same.

    Raises:
        UserError: for an unknown name, with the nearest known ones.
    """
    by_plain = {_plain(key): card for key, card in CARDS.items()}
    plain = _plain(name)
    if plain in by_plain:
        return by_plain[plain]
    near = difflib.get_close_matches(plain, by_plain, 3, cutoff=0.5)
    hint = ""
    if near:
        hint = f"did you mean {' or '.join(by_plain[key].name for key in near)}? "
    raise UserError(f"--device {name}: not known; {hint}there are {', '.join(CARDS)}")


def parse(names: str) -> list[Card]:
    """Returns the cards of a list "NAME[,NAME…]" without repetition, or every card for "all".

    Raises:
        UserError: for an unknown name.
    """
    if names == "all":
        return list(CARDS.values())
    return list(dict.fromkeys(find(name) for name in names.split(",")))


def _plain(name: str) -> str:
    """Returns `name` without makers, signs, and "gb" behind a number."""
    return re.sub(r"nvidia|geforce|tesla|tpu|[^a-z0-9]|(?<=\d)gb", "", name.lower())
