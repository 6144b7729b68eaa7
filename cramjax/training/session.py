"""A run made ready before its first step, from its configuration and dataset.

A session holds the devices, the objective, the optimizer and the program of the train step.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from cramjax.budget import schedules
from cramjax.config.views import Config
from cramjax.console import Announce, silent
from cramjax.errors import UserError
from cramjax.models import kernels, network
from cramjax.objectives import families
from cramjax.objectives.objective import PretrainingObjective, Vocabulary
from cramjax.optim.build import make_optimizer
from cramjax.parallel import mesh as meshes
from cramjax.parallel import processes
from cramjax.training.state import TrainState, abstract_state
from cramjax.training.step import make_train_step
from cramjax.tuning import answers, attention_choice, devices, footprint, microbatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class AssumedVocabulary:
    """The vocabulary of a configuration without a dataset, for plans, benchmarks and tests."""

    vocab_size: int
    extra_ids: int = 0
    document_end: bool = True

    @property
    def special_tokens(self) -> dict[str, int]:
        """Ids by role, as a tokenizer trained here has them."""
        roles = ("pad", "sep", "unk") if self.extra_ids else ("pad", "unk", "cls", "sep", "mask")
        return {role: number for number, role in enumerate(roles)}

    @property
    def dtype(self) -> np.dtype:
        """uint16 if it can hold every id, else uint32."""
        dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        return np.dtype(dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """A configuration made concrete on the devices at hand.

    Attributes:
        config: the whole configuration.
        mesh: the devices.
        precision: name of the number format.
        attention: names of the kernels of attention.
        objective: the network and what it learns.
        optimizer: the update rule, without the learning rate.
        abstract: shapes and shardings of the state.
        microbatch_size: rows of one pass, on all devices together.
        token_dtype: of a batch.
        peak_flops: FLOPs a second of all devices together; NaN for devices that are not here.
        program: the train step, if the search for a microbatch has compiled it.
    """

    config: Config
    mesh: Mesh
    precision: str
    attention: str
    objective: PretrainingObjective
    optimizer: optax.GradientTransformation
    abstract: TrainState
    microbatch_size: int
    token_dtype: np.dtype
    peak_flops: float
    program: microbatch.Program | None = None

    @property
    def dynamic_scale(self) -> bool:
        """True if the loss is scaled: in float16 only."""
        return self.precision == "float16"

    @functools.cached_property
    def n_params(self) -> int:
        """Parameters of the network."""
        return network.count_params(self.objective.network)

    def state_bytes(self) -> dict[str, int]:
        """Returns the bytes of "parameters" and "optimizer" on one device."""
        return footprint.state_bytes(self.abstract.params, self.abstract)

    def step_bytes(self, n_sequences: int) -> int:
        """Returns the bytes of a step with `n_sequences` a pass on each device, by formula."""
        fused = not any(name in self.attention for name in (kernels.XLA, kernels.EINSUM))
        return footprint.step_bytes(
            self.config,
            self.state_bytes(),
            n_sequences,
            n_targets=self.objective.n_predicted,
            vocab_size=self.objective.network.vocab_size,
            itemsize=jnp.dtype(self.precision).itemsize,
            fused=fused,
        )

    @property
    def max_microbatches(self) -> int:
        """Microbatches of a full batch: the leading axis of a batch on the device."""
        return self.config.batch_size // self.microbatch_size


def open_session(
    config: Config,
    vocabulary: Vocabulary,
    announce: Announce = silent,
    fastest: kernels.Choices | None = None,
) -> Session:
    """Returns the session of `config` on the devices at hand; nothing large is kept.

    It decides mesh, precision, kernels and microbatch, and builds the objective.

    Args:
        config: the whole configuration.
        vocabulary: the dataset, or an assumed one.
        announce: is told what the timing of kernels and the search for a microbatch do.
        fastest: kernels as from `fastest_kernels`; None to time them.

    Raises:
        UserError: when mesh, batch or memory do not fit the devices.
    """
    local = jax.devices()
    if fastest is None:
        fastest = fastest_kernels(config, vocabulary, announce)
    session = session_on(config, vocabulary, local, fastest)
    size, program = config.microbatch_size, None
    if size is None:
        size, program = _choose_microbatch(session, announce)

    shards = meshes.batch_shards(session.mesh)
    for key, value in (("microbatch_size", size), ("eval.batch_size", config.eval.batch_size)):
        if value % shards:
            raise UserError(
                f"{key}={value}: must be a multiple of the {shards} devices along the batch"
            )
    if shards % processes.count():
        raise UserError(
            f"mesh.tensor={config.mesh.tensor}: spans processes; each of the "
            f"{processes.count()} must hold whole sequences"
        )
    peak = devices.peak_flops(jax.local_devices()[0], session.precision) * len(local)
    return dataclasses.replace(session, microbatch_size=size, peak_flops=peak, program=program)


def _choose_microbatch(
    session: Session, announce: Announce
) -> tuple[int, microbatch.Program | None]:
    """Returns the largest microbatch that fits, and its step if the search has compiled it."""
    config, device = session.config, session.mesh.devices.flat[0]
    shards = meshes.batch_shards(session.mesh)
    sizes = microbatch_sizes(config, shards)
    limit = devices.memory_bytes(jax.local_devices()[0])
    if limit is None:
        return microbatch.cpu_microbatch(sizes, shards=shards, seq_len=config.data.seq_len), None

    # Several processes share their autotuning: all have to compile the same, whatever each of them
    # remembers.
    question = _question(session, limit) if processes.count() == 1 else None
    return microbatch.choose_microbatch(
        lambda n: lower_train_step(dataclasses.replace(session, microbatch_size=n)),
        sizes,
        limit,
        lambda n: session.step_bytes(n // shards),
        platform=device.platform,
        answer=answers.Answer(question),
        announce=announce,
    )


def _question(session: Session, limit_bytes: int) -> dict[str, Any]:
    """Returns all that the largest microbatch depends on and that is known before tracing."""
    config, mesh = session.config, session.mesh
    grain = schedules.ramp_grain(config.schedule)
    ramp = {} if grain is None else {"ramp_start": grain}
    return ramp | {
        "network": session.objective.description,
        "model": config.model.to_dict(),
        "objective": config.objective.to_dict(),
        "optimizer": {key: value for key, value in config.optimizer.items() if key != "lr"},
        "precision": session.precision,
        "attention": session.attention,
        "batch_size": config.batch_size,
        "row_tokens": session.objective.row_tokens,
        "noise_scale": config.log.noise_scale,
        "mesh": {axis: int(size) for axis, size in mesh.shape.items()},
        "device": mesh.devices.flat[0].device_kind,
        "limit_bytes": limit_bytes,
        "flags": os.environ.get("XLA_FLAGS", ""),
    }


def fastest_kernels(config: Config, vocabulary: Vocabulary, announce: Announce) -> kernels.Choices:
    """Returns the fastest kernel for each call of attention in a step of `config`.

    They are timed on this process's devices. The result is empty without a GPU, if the
    configuration names a kernel, and if XLA divides a step.
    """
    device = jax.local_devices()[0]
    mesh = meshes.make_mesh(**config.mesh.to_dict(), devices=jax.devices())
    is_free = config.model.attention == "auto" and owns_rows(config, mesh)
    if not is_free or device.platform not in kernels.GPUS:
        return {}
    precision = devices.resolve_precision(config.precision, device)
    objective = build_objective(config, vocabulary, precision, mesh)
    calls = attention_calls(config, objective, meshes.batch_shards(mesh), vocabulary.dtype)
    return attention_choice.fastest(calls, devices.make_precision(precision, device), announce)


def session_on(
    config: Config,
    vocabulary: Vocabulary,
    on: Sequence[kernels.Device],
    chosen: kernels.Choices | None = None,
) -> Session:
    """Returns the session of `config` on devices that need not be here.

    Args:
        config: the whole configuration; without a microbatch it is one sequence a device.
        vocabulary: the dataset, or an assumed one.
        on: the devices.
        chosen: kernels by call of attention; None for those that are likely the fastest.

    Raises:
        UserError: when mesh or attention do not fit the devices.
    """
    mesh = meshes.make_mesh(**config.mesh.to_dict(), devices=on)
    precision = devices.resolve_precision(config.precision, on[0])
    objective = build_objective(config, vocabulary, precision, mesh)
    calls = attention_calls(config, objective, meshes.batch_shards(mesh), vocabulary.dtype)
    if chosen is None:
        chosen = _promising(config, calls, mesh, on[0])

    objective = build_objective(config, vocabulary, precision, mesh, chosen)
    optimizer = build_optimizer(config, objective)
    return Session(
        config=config,
        mesh=mesh,
        precision=precision,
        attention=_names(config, calls, on[0], chosen),
        objective=objective,
        optimizer=optimizer,
        abstract=abstract_state(objective, optimizer, precision == "float16", mesh),
        microbatch_size=config.microbatch_size or meshes.batch_shards(mesh),
        token_dtype=vocabulary.dtype,
        peak_flops=math.nan,
    )


def describe_attention(session: Session, vocabulary: Vocabulary, device: kernels.Device) -> str:
    """Returns the names of the kernels that `session` would take on another `device`."""
    config, mesh = session.config, session.mesh
    shards = meshes.batch_shards(mesh)
    calls = attention_calls(config, session.objective, shards, vocabulary.dtype)
    return _names(config, calls, device, _promising(config, calls, mesh, device))


def _promising(
    config: Config, calls: set[kernels.AttentionCall], mesh: Mesh, device: kernels.Device
) -> kernels.Choices:
    if not owns_rows(config, mesh):
        return {}
    return {call: kernels.promising(call, device) for call in calls}


def _names(
    config: Config,
    calls: set[kernels.AttentionCall],
    device: kernels.Device,
    chosen: kernels.Choices,
) -> str:
    names = {kernels.choose(config.model.attention, call, device, chosen) for call in calls}
    return " and ".join(sorted(names)) or "no"


def owns_rows(config: Config, mesh: Mesh) -> bool:
    """Returns whether a step's program sees the sequences of one device alone.

    Only then may a kernel of ours stand in it: XLA's partitioner does not know how to divide such a
    kernel, and would gather its operands.
    """
    return mesh.size == 1 or (meshes.is_of_copies(mesh) and not config.log.noise_scale)


def microbatch_sizes(config: Config, shards: int) -> list[int]:
    """Returns the possible microbatches, ascending.

    They divide the batch, or half of it if the noise scale compares microbatches, and a stair of
    the batch ramp, so that batches do not depend on the device.

    Args:
        config: the whole configuration.
        shards: devices along the batch, which divide a microbatch.

    Raises:
        UserError: if there is no such size.
    """
    key, most = "batch_size", config.batch_size
    if (grain := schedules.ramp_grain(config.schedule)) is not None:
        key, most = "schedule.ramp_start", grain
    if config.log.noise_scale:
        most = min(most, config.batch_size // 2)
    return microbatch.microbatch_sizes(most, shards, key)


def build_objective(
    config: Config,
    vocabulary: Vocabulary,
    precision: str,
    mesh: Mesh,
    attention: kernels.Choices | None = None,
) -> PretrainingObjective:
    """Returns the objective of `config` on the devices of a mesh.

    Args:
        config: the whole configuration.
        vocabulary: the dataset, or an assumed one.
        precision: name of the number format.
        mesh: the devices.
        attention: kernels by call; a call that is not named takes the one that every device has.
    """
    number_format = dataclasses.replace(
        devices.make_precision(precision, mesh.devices.flat[0]),
        rows=meshes.rows_of_sharded(mesh),
        owns_rows=owns_rows(config, mesh),
        kernels=tuple((attention or {}).items()),
    )
    return families.build(config, vocabulary, number_format)


def attention_calls(
    config: Config, objective: PretrainingObjective, n_rows: int, token_dtype: np.dtype
) -> set[kernels.AttentionCall]:
    """Returns the calls of attention in the loss, found by tracing it for `n_rows` sequences.

    Raises:
        UserError: if the kernel that the configuration names cannot do them.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = network.abstract_params(objective.network)
    tokens = jax.ShapeDtypeStruct((n_rows, objective.row_tokens), token_dtype)
    rows = jax.ShapeDtypeStruct((n_rows,), jnp.int32)
    try:
        with kernels.noting() as calls:
            jax.eval_shape(objective.loss, params, key, tokens, rows)
    except kernels.Unable as error:
        raise UserError(f"model.attention={config.model.attention}: {error}") from error
    return calls


def build_optimizer(
    config: Config, objective: PretrainingObjective
) -> optax.GradientTransformation:
    """Returns the optimizer of `config.optimizer` for the parameters of the objective's network."""
    settings = config.optimizer
    return make_optimizer(
        settings.name,
        network.param_axes(objective.network),
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        parameter_scale=settings.parameter_scale,
        relative_step=settings.relative_step,
        momentum=settings.momentum,
        momentum_warmup=settings.momentum_warmup,
        embedding_lr=settings.embedding_lr,
        scalar_lr=settings.scalar_lr,
        cautious=settings.cautious,
        average=settings.average,
    )


def compile_train_step(
    session: Session, options: Mapping[str, Any] | None = None
) -> microbatch.Program:
    """Returns the train step compiled for the session's shapes, and the seconds that took.

    The state is donated. `options` are XLA's, by name; they come before those of the environment.
    """
    if session.program is not None:
        return session.program
    started = time.monotonic()
    compiler_options = dict(options or {})
    compiled = lower_train_step(session).compile(compiler_options or None)
    return compiled, time.monotonic() - started


def lower_train_step(session: Session) -> jax.stages.Lowered:
    """Returns the train step traced for the session's shapes, ready to compile."""
    config, mesh = session.config, session.mesh
    shardings = jax.tree.map(lambda leaf: leaf.sharding, session.abstract)
    grad_shardings = shardings.params if mesh.size > 1 else None
    step = make_train_step(
        session.objective,
        session.optimizer,
        clip_norm=config.optimizer.clip_norm,
        dynamic_scale=session.dynamic_scale,
        mesh=mesh,
        grad_shardings=grad_shardings,
        noise_scale=config.log.noise_scale,
    )

    replicated = meshes.replicated(mesh)
    row_tokens = session.objective.row_tokens
    batch = jax.ShapeDtypeStruct(
        (session.max_microbatches, session.microbatch_size, row_tokens),
        session.token_dtype,
        sharding=meshes.batch_sharding(mesh, 3, 1),
    )
    seed, lr, n_micro = (
        jax.ShapeDtypeStruct((), dtype, sharding=replicated)
        for dtype in (jnp.uint32, jnp.float32, jnp.int32)
    )
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated))
    return jitted.lower(session.abstract, batch, seed, lr, n_micro)


def describe(session: Session) -> str:
    """Returns one line on what runs where, for the terminal."""
    device = session.mesh.devices.flat[0]
    return (
        f"{session.n_params / 1e6:.1f}M parameters on {session.mesh.size} × {device.device_kind}, "
        f"{session.precision}, {session.attention} attention, "
        f"{session.microbatch_size} × {session.config.data.seq_len} tokens a pass, "
        f"batch {session.config.batch_size}"
    )
