"""Speed of a configuration's real train step here, against matrix products on the same device.

Everything is measured in one run, so the ratios hold on a machine whose speed drifts: compile time,
step time, MFU against the measured peak of the same dtype, and the input pipeline alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from cramjax import start
from cramjax.bench import overhead
from cramjax.config.views import Config
from cramjax.data import loader as loaders
from cramjax.data import tokenizers
from cramjax.data.dataset import TokenDataset
from cramjax.data.manifest import FORMAT
from cramjax.models import stack
from cramjax.parallel import mesh as meshes
from cramjax.training import session as sessions
from cramjax.training.session import Session
from cramjax.training.state import initial_state
from cramjax.tuning import devices

WARMUP_STEPS = 3
# Enough tokens to stream for a second or two, few enough to stay in the page cache.
PIPELINE_TOKENS = 1 << 24
PIPELINE_UNITS = 400
PIPELINE_WARMUP_UNITS = 20


def bench(config: Config, n_steps: int) -> dict[str, Any]:
    """Measure `n_steps` steps at full batch on random tokens.

    `tools/bench.py` describes the keys and units of the result.
    """
    start.start()
    vocabulary = sessions.AssumedVocabulary(
        vocab_size=config.data.vocab_size, extra_ids=config.data.extra_ids
    )
    session = sessions.open_session(config, vocabulary, _announce)
    compiled, compile_s = sessions.compile_train_step(session)
    times = _time_steps(session, compiled, n_steps)
    step_s = statistics.median(times.steps_s)

    device = jax.devices()[0]
    peak = devices.measure_matmul_flops(device, session.precision, size=2048, seconds=2.0)
    peak *= jax.device_count()
    rows = session.max_microbatches * session.microbatch_size
    flops = rows * session.objective.flops

    # XLA counts the body of a loop once, so the two counts compare only without loops: with one
    # microbatch and all layers unrolled.
    has_no_loop = session.max_microbatches == 1 and _is_unrolled(config.model)
    xla_flops = (compiled.cost_analysis() or {}).get("flops")
    memory = compiled.memory_analysis()
    return {
        "recipe": config.name,
        "device": f"{jax.device_count()} x {device.device_kind}",
        "precision": session.precision,
        "params": session.n_params,
        "batch_size": rows,
        "microbatch_size": session.microbatch_size,
        "seq_len": config.data.seq_len,
        "n_predicted": session.objective.n_predicted,
        "compile_s": compile_s,
        "step_s": step_s,
        "step_s_p10": float(np.percentile(times.steps_s, 10)),
        "step_s_p90": float(np.percentile(times.steps_s, 90)),
        "dispatch_us": 1e6 * times.dispatch_s,
        "host_us": 1e6 * times.host_s,
        "tokens_per_s": rows * config.data.seq_len / step_s,
        "model_tflops": flops / step_s / 1e12,
        "matmul_peak_tflops": peak / 1e12,
        "mfu": flops / step_s / peak,
        "analytic_flops": flops,
        "xla_flops": xla_flops if has_no_loop else None,
        "temporary_bytes": memory.temp_size_in_bytes if memory else None,
        "peak_memory_bytes": devices.peak_memory_bytes(device),
        "input_tokens_per_s": {
            name: _pipeline_rate(config, session.objective.row_tokens, name)
            for name in ("numpy", "tfdata")
        },
    }


def _announce(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _is_unrolled(model: Any) -> bool:
    depths = (model.n_layers, model.get("n_decoder_layers") or model.n_layers)
    return all(stack.n_unrolled(n, model.unroll) == n for n in depths)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _StepTimes:
    """Seconds of a train step.

    `steps_s` has the seconds of each step until the device is done, `dispatch_s` the median until
    the call returns, `host_s` the host's seconds of a round of the training loop.
    """

    steps_s: Sequence[float]
    dispatch_s: float
    host_s: float


def _time_steps(session: Session, compiled: jax.stages.Compiled, n_steps: int) -> _StepTimes:
    config = session.config
    state = initial_state(
        session.objective, session.optimizer, session.dynamic_scale, session.abstract, config.seed
    )
    shape = (session.max_microbatches, session.microbatch_size, session.objective.row_tokens)
    random = np.random.default_rng(0)
    tokens = random.integers(5, config.data.vocab_size, shape).astype(session.token_dtype)
    batch = jax.device_put(tokens, meshes.batch_sharding(session.mesh, 3, 1))
    scalars = (
        np.uint32(config.seed),
        np.float32(config.optimizer.lr),
        np.int32(session.max_microbatches),
    )
    scalars = jax.device_put(scalars, meshes.replicated(session.mesh))

    seconds = []
    dispatched = []
    for _ in range(WARMUP_STEPS + n_steps):
        started = time.perf_counter()
        state, metrics = compiled(state, batch, *scalars)
        dispatched.append(time.perf_counter() - started)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - started)
    return _StepTimes(
        steps_s=seconds[WARMUP_STEPS:],
        dispatch_s=statistics.median(dispatched[WARMUP_STEPS:]),
        host_s=overhead.host_s(session, state),
    )


def _pipeline_rate(config: Config, row_tokens: int, name: str) -> float | None:
    """Measure tokens a second of the input pipeline alone, from page cache.

    Returns None if the library of the loader `name` is missing.
    """
    if name == "tfdata" and importlib.util.find_spec("tensorflow") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        directory = _random_dataset(pathlib.Path(folder), config.data.vocab_size)
        loader = loaders.open_loader(
            TokenDataset.open(directory), seed=config.seed, seq_len=row_tokens, loader=name
        )
        stream = loader.stream(0, config.eval.batch_size)
        for _ in range(PIPELINE_WARMUP_UNITS):
            next(stream)

        started = time.perf_counter()
        n_tokens = sum(next(stream).size for _ in range(PIPELINE_UNITS))
        rate = n_tokens / (time.perf_counter() - started)
        loader.close()
    return rate


def _random_dataset(folder: pathlib.Path, vocab_size: int) -> pathlib.Path:
    """Write a prepared dataset of `PIPELINE_TOKENS` random tokens; returns its folder."""
    vocabulary = sessions.AssumedVocabulary(vocab_size=vocab_size)
    special = vocabulary.special_tokens
    dtype = vocabulary.dtype.name
    directory = folder / "random"
    directory.mkdir()

    # Words that nobody reads: a dataset has a tokenizer of as many entries as it says.
    words = {name: special[role] for role, name in tokenizers.SPECIAL_TOKENS.items()}
    words |= {f"word{number}": number for number in range(len(special), vocab_size)}
    unk = tokenizers.SPECIAL_TOKENS["unk"]
    tokenizers.save(Tokenizer(WordLevel(words, unk_token=unk)), directory / "tokenizer")
    tokenizer_file = directory / "tokenizer" / "tokenizer.json"

    tokens = np.random.default_rng(0).integers(len(special), vocab_size, PIPELINE_TOKENS)
    tokens[-1] = special["sep"]
    content = tokens.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
    (directory / "train-0-00000.bin").write_bytes(content)
    np.save(directory / "train-0-00000.docs.npy", np.zeros(1, "<u8"))
    np.save(directory / "unigram.npy", np.bincount(tokens, minlength=vocab_size))
    shard = {
        "file": "train-0-00000.bin",
        "split": "train",
        "source": 0,
        "tokens": len(tokens),
        "documents": 1,
        "sha256": hashlib.sha256(content).hexdigest(),
        "boundaries": "train-0-00000.docs.npy",
    }

    manifest = {
        "format": FORMAT,
        "fingerprint": "random",
        "tokenizer_sha256": hashlib.sha256(tokenizer_file.read_bytes()).hexdigest(),
        "vocab_size": vocab_size,
        "dtype": dtype,
        "special_tokens": special,
        "source": "random",
        "sources": [{"spec": "random", "weight": 1.0, "revision": None}],
        "filters": {},
        "dropped": {},
        "documents": 1,
        "tokens": len(tokens),
        "train_tokens": len(tokens),
        "heldout_tokens": 0,
        "shards": [shard],
    }
    (directory / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return directory
