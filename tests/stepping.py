"""Sessions of tiny networks and steps on random tokens, for the tests of the train step."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np
import pytest

from cramjax.config.resolve import get_config
from cramjax.parallel import mesh as meshes
from cramjax.training import session
from cramjax.training.state import initial_state

COMMON = (
    "model.n_layers=2", "model.d_model=32", "model.n_heads=2", "model.d_ff=64",
    "data.vocab_size=64", "data.seq_len=32",
    "precision=float32", "batch_size=16", "eval.batch_size=16",
)  # fmt: skip
RECIPES = {
    "quickstart": (*COMMON, "optimizer.name=adamw"),
    "t5_1day": (
        *COMMON,
        "model.head_dim=12",
        "model.n_decoder_layers=1",
        "model.vocab_multiple=1",
        "model.unroll=1",
        "data.extra_ids=8",
    ),
}


@contextlib.contextmanager
def one_device():
    """One of the fake devices is all there is."""
    first = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: first)
        yield


def open_tiny(*overrides, devices=1, recipe="quickstart"):
    config = get_config(recipe, *RECIPES[recipe], *overrides)
    vocabulary = session.AssumedVocabulary(vocab_size=64, extra_ids=config.data.extra_ids)
    with one_device() if devices == 1 else contextlib.nullcontext():
        return session.open_session(config, vocabulary)


@functools.cache
def shared_tiny(*overrides, recipe="quickstart"):
    """Returns a session on one device, with its compiled step, that tests share."""
    made = open_tiny(*overrides, recipe=recipe)
    return dataclasses.replace(made, program=session.compile_train_step(made))


def batches(n, rows=16, seed=0, length=32):
    return np.random.default_rng(seed).integers(3, 56, (n, rows, length)).astype(np.uint16)


def losses(made, data, lr=1e-2, n_micro=None):
    compiled, _ = session.compile_train_step(made)
    state = initial_state(
        made.objective, made.optimizer, made.dynamic_scale, made.abstract, made.config.seed
    )
    values = []
    for tokens in data:
        tokens = tokens.reshape(made.max_microbatches, made.microbatch_size, -1)
        batch = jax.device_put(tokens, meshes.batch_sharding(made.mesh, 3, 1))
        n_used = n_micro or made.max_microbatches
        scalars = np.uint32(made.config.seed), np.float32(lr), np.int32(n_used)
        state, metrics = compiled(
            state, batch, *jax.device_put(scalars, meshes.replicated(made.mesh))
        )
        values.append(float(metrics["loss"]))
    return values, state
