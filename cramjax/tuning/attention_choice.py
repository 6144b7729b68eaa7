"""Finds the fastest kernel of attention on this card, by timing each one that can do a call.

The kind of card does not decide which kernel is fastest: cuDNN's is twice as fast as others on
Hopper and slower than others on an A100, and sizes matter. So each kernel is timed for a second at
the start, for the calls of the network, and the answer is remembered.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from cramjax.console import Announce
from cramjax.models import attention, kernels
from cramjax.models.kernels import AttentionCall
from cramjax.models.layers import Precision, rotary_tables
from cramjax.models.module import bind, params_of
from cramjax.parallel import processes
from cramjax.tuning.answers import Answer

SECONDS = 1.0
"""The duration of a kernel's timing, without its compilation."""
TOKENS = 16_384
"""The tokens of a pass that is timed: enough to fill a card."""
TOLERANCE = 0.05
"""The share of the largest number by which results in 16 bits may differ from plain ones."""

Pass = Callable[..., tuple[jax.Array, Any]]
"""A compiled forward and backward pass: inputs → (value, gradients)."""
Programs = dict[str, concurrent.futures.Future[tuple[tuple[Pass, tuple], tuple[Pass, tuple]]]]
"""By kernel, the pass to compare and the pass to time, each with its arguments."""


def fastest(
    calls: Collection[AttentionCall], precision: Precision, announce: Announce
) -> dict[AttentionCall, str]:
    """Returns the fastest kernel for each of `calls`, among those that agree with plain operations.

    Several processes take the answer of process 0. Nothing is remembered then, because all must
    compile the same.

    Args:
        calls: the calls of attention in the network.
        precision: number formats of the network, and a device of this process.
        announce: is told the kernels that are timed and the results.
    """
    device = precision.device
    assert device is not None, "kernels are timed on a device"
    chosen: dict[AttentionCall, str] = {}
    unknown: dict[AttentionCall, list[str]] = {}
    answers: dict[AttentionCall, Answer] = {}
    for call in sorted(calls, key=repr):
        names = kernels.candidates(call, device)
        if len(names) < 2:
            continue
        answers[call] = _answer(call, names, device)
        name = (answers[call].read() or {}).get("kernel")
        if name in names:
            announce(f"attention {_words(call)}: {name}")
            chosen[call] = name
        else:
            announce(f"attention {_words(call)}: timing {', '.join(names)}…")
            unknown[call] = names

    for call, programs in _compile(unknown, precision).items():
        name = _agreed(_time(programs, announce), unknown[call])
        announce(f"attention {_words(call)}: {name}")
        answers[call].write({"kernel": name})
        chosen[call] = name
    return chosen


def _answer(call: AttentionCall, names: list[str], device: kernels.Device) -> Answer:
    """Returns the file of the answer to "which of `names` is the fastest for `call`?"."""
    if processes.count() > 1:
        return Answer(None)
    facts = dataclasses.asdict(call)
    return Answer({"call": facts, "device": device.device_kind, "kernels": names})


def _agreed(name: str, names: list[str]) -> str:
    """Returns the `name` of process 0."""
    if processes.count() == 1:
        return name
    number = multihost_utils.broadcast_one_to_all(np.int32(names.index(name)))
    return names[int(number)]


def _words(call: AttentionCall) -> str:
    """Returns the call in words."""
    extras = [name for name in ("bias", "mask") if getattr(call, f"has_{name}")]
    extras += ["causal"] if call.is_causal else []
    extras += [f"dropout {call.dropout_rate}"] if call.dropout_rate else []
    ending = f" with {', '.join(extras)}" if extras else ""
    sizes = f"{call.length} × {call.kv_length} tokens, {call.n_heads} heads of {call.head_dim}"
    return f"of {sizes}{ending}"


def _compile(
    unknown: Mapping[AttentionCall, list[str]], precision: Precision
) -> dict[AttentionCall, Programs]:
    """Compile every kernel of every call, side by side."""
    n_programs = sum(len(names) for names in unknown.values())
    if not n_programs:
        return {}
    # Several processes share their autotuning, so they must compile in the same order.
    n_workers = n_programs if processes.count() == 1 else 1
    compiling: dict[AttentionCall, Programs] = {}
    # All are compiled before one is timed, because the compiler times kernels on the card as well.
    with concurrent.futures.ThreadPoolExecutor(n_workers) as pool:
        for call, names in unknown.items():
            submitted = {name: pool.submit(_programs, call, name, precision) for name in names}
            compiling[call] = submitted
    return compiling


def _time(programs: Programs, announce: Announce) -> str:
    """Returns the kernel with the lowest median; those that fail or disagree are left out."""
    # Plain kernels come first: the first result is what the others must agree with.
    plain = (kernels.XLA, kernels.EINSUM)
    expected: Any = None
    seconds: dict[str, float] = {}
    problems: list[str] = []
    for name in sorted(programs, key=lambda name: name not in plain):
        try:
            compared, timed = programs[name].result()
            outcome = _outcome(*compared)
            if expected is None:
                expected = outcome
            if _agree(outcome, expected):
                seconds[name] = _median_s(*timed)
            else:
                problems.append(f"{name} computes something else, and is left out")
        # Each compiler of kernels has exceptions of its own, and the plain kernels always run.
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            problems.append(f"{name} does not run here ({reason[:120]})")

    for problem in problems:
        announce(f"attention: {problem}")
    if not seconds:
        return next(iter(programs))
    announce("attention: " + ", ".join(f"{name} {1e3 * s:.2f} ms" for name, s in seconds.items()))
    return min(seconds, key=seconds.__getitem__)


def _programs(
    call: AttentionCall, name: str, precision: Precision
) -> tuple[tuple[Pass, tuple], tuple[Pass, tuple]]:
    """Returns the pass to compare and the pass to time.

    The pass to compare has no dropout, because each kernel draws its dropout in its own way.
    """
    compared = _pass(dataclasses.replace(call, dropout_rate=0.0), name, precision)
    timed = _pass(call, name, precision) if call.dropout_rate else compared
    return compared, timed


def _outcome(run: Pass, arguments: tuple) -> Any:
    """Returns value and gradients on the host, in float32."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), run(*arguments))


def _agree(outcome: Any, expected: Any) -> bool:
    """Returns whether all numbers are near the expected ones."""
    for ours, theirs in zip(jax.tree.leaves(outcome), jax.tree.leaves(expected), strict=True):
        if not np.all(np.abs(ours - theirs) <= TOLERANCE * np.max(np.abs(theirs)) + 1e-6):
            return False
    return True


def _median_s(run: Pass, arguments: tuple) -> float:
    """Returns the median seconds of a pass, over `SECONDS`."""
    jax.block_until_ready(run(*arguments))
    times: list[float] = []
    end = time.monotonic() + SECONDS
    while not times or time.monotonic() < end:
        started = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _pass(call: AttentionCall, name: str, precision: Precision) -> tuple[Pass, tuple]:
    """Returns a compiled forward and backward pass by kernel `name`, and its arguments."""
    precision = dataclasses.replace(precision, kernels=((call, name),))
    n_rows = max(1, TOKENS // call.length)
    keys = jax.random.split(jax.random.key(0), 6)
    mask = None
    if call.has_mask:
        # Three documents in each row, as [rows, 1, length, length].
        documents = jnp.arange(call.length) * 3 // call.length
        mask = documents[:, None] == documents[None]
        mask = jnp.broadcast_to(mask, (n_rows, 1, call.length, call.length))

    build = _within if call.is_fused else _between
    mixture, inputs = build(call, name, precision, n_rows, mask, keys)

    def value_and_gradients(*inputs: Any) -> tuple[jax.Array, Any]:
        # The gradient of half the sum of squares: it is no constant, as that of the sum would be.
        mixed, back = jax.vjp(mixture, *inputs)
        return mixed, back(mixed)

    program = jax.jit(value_and_gradients).lower(*inputs).compile()
    return program, jax.device_put(inputs, precision.device)


def _within(
    call: AttentionCall,
    name: str,
    precision: Precision,
    n_rows: int,
    mask: jax.Array | None,
    keys: jax.Array,
) -> tuple[Callable[..., jax.Array], tuple]:
    """Returns attention of a sequence to itself, and its inputs.

    The projections belong to it, because their number depends on the kernel.
    """
    cfg = SimpleNamespace(
        n_heads=call.n_heads,
        head_dim=call.head_dim,
        d_model=call.n_heads * call.head_dim,
        linear_bias=False,
        init_std=0.02,
        attention="auto",
        attention_dropout=call.dropout_rate,
    )

    def build(rngs: nnx.Rngs) -> attention.Attention:
        return attention.Attention(cfg, precision, rngs)

    rotary = rotary_tables(call.length, call.head_dim, 10000.0) if call.is_rotary else None
    key = keys[0] if call.dropout_rate else None

    def mixture(params: Any, x: jax.Array) -> jax.Array:
        return bind(build, params)(x, mask, rotary, key)

    x = jax.random.normal(keys[1], (n_rows, call.length, cfg.d_model), precision.activation_dtype)
    params = params_of(build(nnx.Rngs(params=keys[2])))
    return mixture, (params, x)


def _between(
    call: AttentionCall,
    name: str,
    precision: Precision,
    n_rows: int,
    mask: jax.Array | None,
    keys: jax.Array,
) -> tuple[Callable[..., jax.Array], tuple]:
    """Returns attention of given queries to given keys and values, and its inputs."""
    # Query, key and value: [rows, length, heads, head_dim].
    inputs = []
    lengths = (call.length, call.kv_length, call.kv_length)
    for key, length in zip(keys, lengths, strict=False):
        shape = (n_rows, length, call.n_heads, call.head_dim)
        inputs.append(jax.random.normal(key, shape, precision.activation_dtype))
    if call.has_bias:
        inputs.append(jax.random.normal(keys[3], (1, call.n_heads, call.length, call.kv_length)))

    def mixture(
        query: jax.Array, key_: jax.Array, value: jax.Array, bias: jax.Array | None = None
    ) -> jax.Array:
        options = {"mask": mask, "bias": bias, "causal": call.is_causal, "rate": call.dropout_rate}
        key = keys[4] if call.dropout_rate else None
        return attention.mix(name, precision, query, key_, value, key=key, **options)

    return mixture, tuple(inputs)
