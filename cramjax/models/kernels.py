"""Kernels of attention: what a call needs, what can do it on a device, and what is taken."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Protocol

import jax.numpy as jnp

from cramjax.models import short_attention

CUDNN, XLA, EINSUM = "cudnn", "xla", "einsum"
GPUS = ("gpu", "cuda")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """A call of attention: queries [batch, length, n_heads, head_dim], keys and values [batch,
    kv_length, …].

    `dtype` is that of the operands. `is_fused`: all three come from one projection of the same
    sequence; `is_rotary`: queries and keys are then turned by their positions. `has_bias`: numbers
    are added to the scores, [1, n_heads, length, kv_length]. `has_mask`: an arbitrary bool mask.
    `is_causal`: a position sees none behind it. `dropout_rate`: on probabilities.
    """

    length: int
    kv_length: int
    n_heads: int
    head_dim: int
    dtype: str
    is_fused: bool = False
    is_rotary: bool = False
    has_bias: bool = False
    has_mask: bool = False
    is_causal: bool = False
    dropout_rate: float = 0.0


class Device(Protocol):
    """The part of a `jax.Device` that this project reads; type checkers do not know that class.

    An NVIDIA GPU also has `compute_capability`.
    """

    @property
    def platform(self) -> str:
        """Names the backend: "cpu", "gpu", "tpu" and so on."""
        ...

    @property
    def device_kind(self) -> str:
        """Names the model, such as "NVIDIA H100 PCIe"."""
        ...

    def memory_stats(self) -> dict[str, int] | None:
        """Returns bytes by name, such as "bytes_limit", or None if the backend does not say."""
        ...


class Unable(ValueError):
    """A kernel was asked for that cannot do a call; the message says what it lacks."""


Choices = Mapping[AttentionCall, str]
"""The kernel that was measured to be fastest, by call."""


_noted: contextvars.ContextVar[set[AttentionCall] | None] = contextvars.ContextVar(
    "noted", default=None
)


@contextlib.contextmanager
def noting() -> Iterator[set[AttentionCall]]:
    """Collects the calls of attention that are traced inside."""
    calls: set[AttentionCall] = set()
    token = _noted.set(calls)
    try:
        yield calls
    finally:
        _noted.reset(token)


def candidates(call: AttentionCall, device: Device) -> list[str]:
    """Returns the kernels that can do `call` on `device`, the one to take unmeasured first.

    "cudnn" is cuDNN's fused attention, "xla" that of `jax.nn.dot_product_attention`. "einsum" is
    ours in plain operations: it has dropout, and its products stay narrow on a CPU. The others are
    tiles of `short_attention`.
    """
    plain = EINSUM if device.platform == "cpu" or call.dropout_rate > 0 else XLA
    fused = [] if lacking_for_cudnn(call, device) else [CUDNN]
    return [*fused, plain, *_short(call, device)]


def promising(call: AttentionCall, device: Device) -> str:
    """Returns the kernel that is likely the fastest for `call` on a `device` that is absent."""
    return [*_short(call, device), *candidates(call, device)][0]


def _short(call: AttentionCall, device: Device) -> list[str]:
    suits = call.is_fused and not call.has_bias and not call.is_causal
    if not suits or not _has_narrow_tensor_cores(call, device):
        return []
    return short_attention.possible_tiles(
        call.length, call.head_dim, call.has_mask, capability(device)
    )


def choose(requested: str, call: AttentionCall, device: Device, measured: Choices) -> str:
    """Returns the kernel for `call` behind `requested`: "auto", "xla" or "cudnn".

    "xla" stands for whatever XLA compiles.

    Raises:
        Unable: if "cudnn" is requested and cannot do it.
    """
    if (calls := _noted.get()) is not None:
        calls.add(call)
    if requested == CUDNN:
        if lacking := lacking_for_cudnn(call, device):
            raise Unable(f"attention 'cudnn' needs {lacking}; use 'auto' or 'xla'")
        return CUDNN
    possible = candidates(call, device)
    if requested == XLA:
        return next(name for name in possible if name in (XLA, EINSUM))
    return measured.get(call, possible[0])


def lacking_for_cudnn(call: AttentionCall, device: Device) -> str:
    """Returns, in words, what `call` on `device` lacks for cuDNN's attention; "" if nothing."""
    if device.platform not in GPUS:
        return "an NVIDIA GPU"
    if not _is_ampere(device):
        return "a GPU of compute capability 8.0"
    if jnp.dtype(call.dtype).itemsize != 2:
        return "bfloat16 or float16"
    if call.head_dim % 8 or call.head_dim > 128:
        return "heads of a multiple of 8 dimensions, 128 at most"
    if call.has_bias and call.has_mask:
        return "no mask beside a bias on the scores"
    if call.length == 1:
        return "more than one query"
    return "attention_dropout 0" if call.dropout_rate > 0 else ""


def _has_narrow_tensor_cores(call: AttentionCall, device: Device) -> bool:
    return device.platform in GPUS and _is_ampere(device) and jnp.dtype(call.dtype).itemsize == 2


def _is_ampere(device: Device) -> bool:
    """Returns whether the GPU is NVIDIA's, of that generation or a later one."""
    return capability(device) >= (8, 0)


def capability(device: Device) -> tuple[int, int]:
    """Returns the compute capability of NVIDIA's GPU, (0, 0) for any other device."""
    # AMD's are words, as "gfx90a".
    found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    return (int(found[1]), int(found[2])) if found else (0, 0)
