"""How fast the real train step of a configuration runs here, against the matrix products the same device can do.

Everything is measured in one run, so that the ratios hold on a machine whose speed drifts: compile time, step time, MFU against the
measured peak of the same dtype, and the input pipeline alone.
"""

from __future__ import annotations

import importlib.util
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np

from cramjax import start
from cramjax.bench import overhead
from cramjax.data import loader as loaders
from cramjax.data import pack
from cramjax.data.dataset import FORMAT, TokenDataset
from cramjax.models import stack
from cramjax.parallel import mesh as meshes
from cramjax.training import session
from cramjax.training.state import initial_state
from cramjax.tuning import devices

WARMUP_STEPS = 3
# Enough sequences to stream for a second or two, small enough to stay in the page cache.
PIPELINE_TOKENS = 1 << 24


def bench(config: Any, n_steps: int) -> dict[str, Any]:
    """Measure `n_steps` steps at full batch on random tokens; see `tools/bench.py` for the keys and units of the result."""
    start.start()
    vocabulary = session.AssumedVocabulary(
        vocab_size=config.data.vocab_size, extra_ids=config.data.extra_ids
    )
    made = session.open_session(config, vocabulary, _say)
    compiled, compile_s = session.compile_train_step(made)
    seconds, dispatch_s, host_s = _step_seconds(made, compiled, n_steps)
    median_s = statistics.median(seconds)
    device = jax.devices()[0]
    peak = (
        devices.measure_matmul_flops(device, made.precision, size=2048, seconds=2.0)
        * jax.device_count()
    )
    rows = made.max_microbatches * made.microbatch_size
    flops = rows * made.objective.flops
    cost = compiled.cost_analysis() or {}
    analysis = compiled.memory_analysis()
    return {
        "recipe": config.name,
        "device": f"{jax.device_count()} x {device.device_kind}",
        "precision": made.precision,
        "params": made.n_params,
        "batch_size": rows,
        "microbatch_size": made.microbatch_size,
        "seq_len": config.data.seq_len,
        "n_predicted": made.objective.n_predicted,
        "compile_s": compile_s,
        "step_s": median_s,
        "step_s_p10": float(np.percentile(seconds, 10)),
        "step_s_p90": float(np.percentile(seconds, 90)),
        "dispatch_us": 1e6 * dispatch_s,
        "host_us": 1e6 * host_s,
        "tokens_per_s": rows * config.data.seq_len / median_s,
        "model_tflops": flops / median_s / 1e12,
        "matmul_peak_tflops": peak / 1e12,
        "mfu": flops / median_s / peak,
        "analytic_flops": flops,
        # XLA counts the body of a loop once: the two compare only with one microbatch and all layers unrolled.
        "xla_flops": cost.get("flops")
        if made.max_microbatches == 1 and _is_unrolled(config.model)
        else None,
        "temporary_bytes": analysis.temp_size_in_bytes if analysis else None,
        "peak_memory_bytes": devices.peak_memory_bytes(device),
        "input_tokens_per_s": {
            name: _pipeline_rate(config, made.objective.row_tokens, name)
            for name in ("numpy", "tfdata")
        },
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _is_unrolled(model: Any) -> bool:
    depths = (model.n_layers, model.n_decoder_layers or model.n_layers)
    return all(stack.n_unrolled(n, model.unroll) == n for n in depths)


def _step_seconds(
    made: session.Session, compiled: Any, n_steps: int
) -> tuple[list[float], float, float]:
    """Of steps, each waited for; the median until a call returns; of a round of the loop that computes nothing."""
    config = made.config
    state = initial_state(
        made.objective, made.optimizer, made.dynamic_scale, made.abstract, config.seed
    )
    shape = (made.max_microbatches, made.microbatch_size, made.objective.row_tokens)
    tokens = (
        np.random.default_rng(0).integers(5, config.data.vocab_size, shape).astype(made.token_dtype)
    )
    batch = jax.device_put(tokens, meshes.batch_sharding(made.mesh, 3, 1))
    scalars = (np.float32(config.optimizer.lr), np.int32(made.max_microbatches))
    lr, n_micro = jax.device_put(scalars, meshes.replicated(made.mesh))
    seconds, dispatched = [], []
    for _ in range(WARMUP_STEPS + n_steps):
        start = time.perf_counter()
        state, metrics = compiled(state, batch, lr, n_micro)
        dispatched.append(time.perf_counter() - start)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    return (
        seconds[WARMUP_STEPS:],
        statistics.median(dispatched[WARMUP_STEPS:]),
        overhead.host_s(made, state),
    )


def _pipeline_rate(config: Any, row_tokens: int, name: str, n_units: int = 400) -> float | None:
    """Tokens a second of the input pipeline alone, from page cache; None where its library is missing."""
    if name == "tfdata" and importlib.util.find_spec("tensorflow") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        directory = _random_dataset(pathlib.Path(folder), config.data.vocab_size)
        source = loaders.open_loader(
            TokenDataset.open(directory), seed=config.seed, seq_len=row_tokens, loader=name
        )
        stream = source.stream(0, config.eval.batch_size)
        for _ in range(20):
            next(stream)
        start = time.perf_counter()
        n_tokens = sum(next(stream).size for _ in range(n_units))
        rate = n_tokens / (time.perf_counter() - start)
        source.close()
    return rate


def _random_dataset(folder: pathlib.Path, vocab_size: int) -> pathlib.Path:
    """A prepared dataset of `PIPELINE_TOKENS` random tokens."""
    vocabulary = session.AssumedVocabulary(vocab_size=vocab_size)
    special, dtype = vocabulary.special_tokens, vocabulary.dtype.name
    partial = folder / "partial"
    partial.mkdir()
    options = {"dtype": dtype, "sep": special["sep"], "max_tokens": PIPELINE_TOKENS + 1}
    writer = pack.ShardWriter(partial, "train", 0, **options)
    writer.add([np.random.default_rng(0).integers(len(special), vocab_size, PIPELINE_TOKENS)])
    writer.close()
    shards = pack.finish(partial, dtype=dtype, vocab_size=vocab_size)
    counts = {
        "documents": 1,
        "tokens": PIPELINE_TOKENS,
        "train_tokens": PIPELINE_TOKENS,
        "heldout_tokens": 0,
    }
    manifest = counts | {
        "format": FORMAT,
        "fingerprint": "random",
        "tokenizer_sha256": "",
        "vocab_size": vocab_size,
        "dtype": dtype,
        "special_tokens": special,
        "source": "random",
        "sources": [{"spec": "random", "weight": 1.0, "revision": None}],
        "filters": {},
        "dropped": {},
        "shards": shards,
    }
    pack.publish(partial, folder / "random", manifest)
    return folder / "random"
