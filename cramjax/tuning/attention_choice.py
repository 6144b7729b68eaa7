"""Finds the fastest kernel of attention on the card at hand, by timing each one that can do a call.

Which kernel is fastest is no property of a kind of card alone: cuDNN's is twice as fast as others
on Hopper and slower than they are on an A100, and sizes matter. So each is timed for a second at
the start, for the calls at hand, and the answer is remembered.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import statistics
import time
from collections.abc import Callable, Collection
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
"""For which a kernel is timed, compilation aside."""
TOKENS = 16_384
"""Of a pass that is timed: enough to fill a card."""
TOLERANCE = 0.05
"""Share of the largest number by which results in 16 bits may differ from plain ones."""

Pass = Callable[..., tuple[jax.Array, Any]]


def fastest(
    calls: Collection[AttentionCall], precision: Precision, announce: Announce
) -> dict[AttentionCall, str]:
    """Returns the fastest kernel for each of `calls`, of those that agree with plain operations.

    Several processes take what the first one finds; nothing is remembered then, since all must
    compile the same.

    Args:
        precision: number formats of the network, and a device of this process.
        announce: is told what is timed and what came out.
    """
    is_alone = processes.count() == 1
    chosen = {}
    for call in sorted(calls, key=repr):
        names = kernels.candidates(call, precision.device)
        if len(names) < 2:
            continue
        question = {
            "call": dataclasses.asdict(call),
            "device": precision.device.device_kind,
            "kernels": names,
        }
        answer = Answer(question if is_alone else None)
        name = (answer.read() or {}).get("kernel")
        if name not in names:
            announce(f"attention {_words(call)}: timing {', '.join(names)}…")
            name = _agreed(_time(call, names, precision, announce), names)
            answer.write({"kernel": name})
        announce(f"attention {_words(call)}: {name}")
        chosen[call] = name
    return chosen


def _agreed(name: str, names: list[str]) -> str:
    """The first process's `name`."""
    if processes.count() == 1:
        return name
    return names[int(multihost_utils.broadcast_one_to_all(np.int32(names.index(name))))]


def _words(call: AttentionCall) -> str:
    """The call as a person would put it."""
    extras = [name for name in ("bias", "mask") if getattr(call, f"has_{name}")]
    extras += ["causal"] if call.is_causal else []
    extras += [f"dropout {call.dropout_rate}"] if call.dropout_rate else []
    ending = f" with {', '.join(extras)}" if extras else ""
    return f"of {call.length} × {call.kv_length} tokens, {call.n_heads} heads of {call.head_dim}{ending}"


def _time(call: AttentionCall, names: list[str], precision: Precision, announce: Announce) -> str:
    """The kernel with the lowest median; what fails or computes something else is left out."""
    # Several processes share their autotuning: they compile in the same order.
    n_workers = len(names) if processes.count() == 1 else 1
    with concurrent.futures.ThreadPoolExecutor(n_workers) as pool:
        programs = {name: pool.submit(_programs, call, name, precision) for name in names}

    plain = (kernels.XLA, kernels.EINSUM)
    expected, seconds, problems = None, {}, []
    for name in sorted(names, key=lambda name: name not in plain):
        try:
            compared, timed = programs[name].result()
            found = _outcome(*compared)
            expected = found if expected is None else expected
            if _agree(found, expected):
                seconds[name] = _median_s(*timed)
            else:
                problems.append(f"{name} computes something else, and is left out")
        except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
            problems.append(f"{name} does not run here ({str(error).splitlines()[0][:120]})")

    for problem in problems:
        announce(f"attention: {problem}")
    if not seconds:
        return names[0]
    announce("attention: " + ", ".join(f"{name} {1e3 * s:.2f} ms" for name, s in seconds.items()))
    return min(seconds, key=seconds.__getitem__)


def _programs(
    call: AttentionCall, name: str, precision: Precision
) -> tuple[tuple[Pass, tuple], tuple[Pass, tuple]]:
    """What is compared and what is timed: kernels draw their dropout in ways of their own."""
    compared = _pass(dataclasses.replace(call, dropout_rate=0.0), name, precision)
    return compared, _pass(call, name, precision) if call.dropout_rate else compared


def _outcome(run: Pass, arguments: tuple) -> Any:
    """Value and gradients on the host, float32."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), run(*arguments))


def _agree(found: Any, expected: Any) -> bool:
    """Whether all numbers are near those expected."""
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if not np.all(np.abs(ours - theirs) <= TOLERANCE * np.max(np.abs(theirs)) + 1e-6):
            return False
    return True


def _median_s(run: Pass, arguments: tuple) -> float:
    """Median seconds of a pass, over `SECONDS`."""
    jax.block_until_ready(run(*arguments))
    times, end = [], time.monotonic() + SECONDS
    while not times or time.monotonic() < end:
        started = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _pass(call: AttentionCall, name: str, precision: Precision) -> tuple[Pass, tuple]:
    """A compiled forward and backward pass by kernel `name`, and what to call it with."""
    precision = dataclasses.replace(precision, kernels=((call, name),))
    n_rows = max(1, TOKENS // call.length)
    keys = jax.random.split(jax.random.key(0), 6)
    mask = None
    if call.has_mask:
        documents = jnp.arange(call.length) * 3 // call.length
        mask = jnp.broadcast_to(
            documents[:, None] == documents[None], (n_rows, 1, call.length, call.length)
        )
    build = _within if call.is_fused else _between
    mixture, inputs = build(call, name, precision, n_rows, mask, keys)

    def value_and_gradients(*inputs):
        # The sum of squares: its gradient is no constant.
        mixed, back = jax.vjp(mixture, *inputs)
        return mixed, back(mixed)

    return jax.jit(value_and_gradients).lower(*inputs).compile(), jax.device_put(
        inputs, precision.device
    )


def _within(call, name, precision, n_rows, mask, keys):
    """Attention of a sequence to itself, with its projections, whose number depends on the kernel."""
    cfg = SimpleNamespace(
        n_heads=call.n_heads,
        head_dim=call.head_dim,
        d_model=call.n_heads * call.head_dim,
        linear_bias=False,
        init_std=0.02,
        attention="auto",
        attention_dropout=call.dropout_rate,
    )

    def build(rngs):
        return attention.Attention(cfg, precision, rngs)

    rotary = rotary_tables(call.length, call.head_dim, 10000.0) if call.is_rotary else None
    key = keys[0] if call.dropout_rate else None

    def mixture(params, x):
        return bind(build, params)(x, mask, rotary, key)

    x = jax.random.normal(keys[1], (n_rows, call.length, cfg.d_model), precision.activation_dtype)
    return mixture, (params_of(build(nnx.Rngs(params=keys[2]))), x)


def _between(call, name, precision, n_rows, mask, keys):
    """Attention of given queries to given keys and values."""
    sizes = (call.length, call.kv_length, call.kv_length)
    query, key_, value = (
        jax.random.normal(
            key, (n_rows, size, call.n_heads, call.head_dim), precision.activation_dtype
        )
        for key, size in zip(keys, sizes, strict=False)
    )
    inputs = [query, key_, value]
    if call.has_bias:
        inputs.append(jax.random.normal(keys[3], (1, call.n_heads, call.length, call.kv_length)))

    def mixture(query, key_, value, bias=None):
        options = {"mask": mask, "bias": bias, "causal": call.is_causal, "rate": call.dropout_rate}
        key = keys[4] if call.dropout_rate else None
        return attention.mix(name, precision, query, key_, value, key=key, **options)

    return mixture, tuple(inputs)
