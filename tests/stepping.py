"""Sessions of tiny networks and steps on random tokens, for the tests of the train step."""

import contextlib
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
    """Returns a session on one device that tests share; `losses` compiles it once."""
    return open_tiny(*overrides, recipe=recipe)


# Session's id → the session, which keeps the id, and its step.
_PROGRAMS: dict[int, tuple[session.Session, jax.stages.Compiled]] = {}


def program(made):
    """Returns the compiled step of a session; a shared session is compiled once."""
    if id(made) not in _PROGRAMS:
        _PROGRAMS[id(made)] = (made, session.compile_train_step(made)[0])
    return _PROGRAMS[id(made)][1]


def batches(n, rows=16, seed=0, length=32):
    return np.random.default_rng(seed).integers(3, 56, (n, rows, length)).astype(np.uint16)


def losses(made, data, lr=1e-2, n_micro=None):
    compiled = program(made)
    state = initial_state(
        made.objective, made.optimizer, made.dynamic_scale, made.abstract, made.config.seed
    )
    values = []
    for tokens in data:
        tokens = tokens.reshape(made.max_microbatches, made.microbatch_size, -1)
        batch = jax.device_put(tokens, meshes.batch_sharding(made.mesh, 3, 1))
        scalars = np.float32(lr), np.int32(n_micro or made.max_microbatches)
        state, metrics = compiled(
            state, batch, *jax.device_put(scalars, meshes.replicated(made.mesh))
        )
        values.append(float(metrics["loss"]))
    return values, state
