"""Everything about a run that follows from its configuration and its dataset, before the first step: devices, task, program."""

from __future__ import annotations

import dataclasses
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

from cramjax.console import Announce, silent
from cramjax.errors import UserError
from cramjax.models import kernels
from cramjax.objectives.masked_lm import masked_lm
from cramjax.objectives.objective import Task, Vocabulary
from cramjax.objectives.span_corruption import span_corruption
from cramjax.optim.build import make_optimizer
from cramjax.parallel import mesh as meshes
from cramjax.parallel import processes
from cramjax.training.state import TrainState, abstract_state
from cramjax.training.step import make_train_step
from cramjax.tuning import answers, attention_choice, devices, footprint, microbatch

TASKS = {"encoder": masked_lm, "t5": span_corruption}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AssumedVocabulary:
    """The vocabulary a configuration asks for, where no dataset is prepared: for planning, benchmarks and tests."""

    vocab_size: int
    extra_ids: int = 0

    @property
    def special_tokens(self) -> dict[str, int]:
        """Ids by role, as a tokenizer trained here has them."""
        roles = ("pad", "sep", "unk") if self.extra_ids else ("pad", "unk", "cls", "sep", "mask")
        return {role: number for number, role in enumerate(roles)}

    @property
    def dtype(self) -> np.dtype:
        """uint16 where it can hold every id."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """A configuration made concrete on the devices at hand.

    `attention`: name of the kernel; `abstract`: shapes and shardings of the state; `token_dtype`: of a batch;
    `peak_flops`: of all devices together, NaN of devices that are not here; `program`: the train step, where the search
    for a microbatch has compiled it.
    """

    config: Any
    mesh: Mesh
    precision: str
    attention: str
    task: Task
    optimizer: optax.GradientTransformation
    abstract: TrainState
    microbatch_size: int
    token_dtype: np.dtype
    peak_flops: float
    program: microbatch.Program | None = None

    @property
    def dynamic_scale(self) -> bool:
        """Whether the loss is scaled: float16 only."""
        return self.precision == "float16"

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
            n_targets=self.task.n_predicted,
            itemsize=jnp.dtype(self.precision).itemsize,
            fused=fused,
        )

    @property
    def max_microbatches(self) -> int:
        """Microbatches of a full batch: the leading axis of a batch on the device."""
        return self.config.batch_size // self.microbatch_size


def open_session(
    config: Any,
    vocabulary: Vocabulary,
    announce: Announce = silent,
    fastest: kernels.Choices | None = None,
) -> Session:
    """Decide mesh, precision, kernels and microbatch on the devices at hand, and build the task; nothing large is kept.

    Args:
        announce: is told what the timing of kernels and the search for a microbatch do, where there are such.
        fastest: what `fastest_kernels` has found; None: it is asked.

    Raises:
        UserError: when mesh, batch or memory do not fit the devices.
    """
    local = jax.devices()
    fastest = fastest_kernels(config, vocabulary, announce) if fastest is None else fastest
    made = session_on(config, vocabulary, local, fastest)
    shards = meshes.batch_shards(made.mesh)
    size, program = config.microbatch_size, None
    if size is None:
        size, program = _choose_microbatch(made, announce)
    for key, value in (("microbatch_size", size), ("eval.batch_size", config.eval.batch_size)):
        if value % shards:
            raise UserError(
                f"{key}={value}: must be a multiple of the {shards} devices along the batch"
            )
    if shards % processes.count():
        raise UserError(
            f"mesh.tensor={config.mesh.tensor}: spans processes; each of the {processes.count()} must hold whole sequences"
        )
    peak = devices.peak_flops(jax.local_devices()[0], made.precision) * len(local)
    return dataclasses.replace(made, microbatch_size=size, peak_flops=peak, program=program)


def _choose_microbatch(
    session: Session, announce: Announce
) -> tuple[int, microbatch.Program | None]:
    """The largest microbatch that fits, and its step where finding it has compiled one."""
    config, device = session.config, session.mesh.devices.flat[0]
    shards = meshes.batch_shards(session.mesh)
    sizes = microbatch.microbatch_sizes(most_sequences(config), shards)
    limit = devices.memory_bytes(jax.local_devices()[0])
    if limit is None:
        return microbatch.cpu_microbatch(sizes, shards=shards, seq_len=config.data.seq_len), None
    # Several processes share their autotuning: all have to compile the same, whatever each of them remembers.
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
    """What the largest microbatch depends on, as far as it is known before the step is traced."""
    config, mesh = session.config, session.mesh
    return {
        "network": session.task.description,
        "model": config.model.to_dict(),
        "objective": config.objective.to_dict(),
        "optimizer": {key: value for key, value in config.optimizer.items() if key != "lr"},
        "seed": config.seed,
        "precision": session.precision,
        "attention": session.attention,
        "batch_size": config.batch_size,
        "row_tokens": session.task.row_tokens,
        "noise_scale": config.log.noise_scale,
        "mesh": {axis: int(size) for axis, size in mesh.shape.items()},
        "device": mesh.devices.flat[0].device_kind,
        "limit_bytes": limit_bytes,
        "flags": os.environ.get("XLA_FLAGS", ""),
    }


def fastest_kernels(config: Any, vocabulary: Vocabulary, announce: Announce) -> kernels.Choices:
    """Times the kernels of attention that a step of `config` could use on this process's devices, if they are GPUs.

    Returns the fastest by call; nothing where the configuration names a kernel or a step is divided by XLA.
    """
    device = jax.local_devices()[0]
    mesh = meshes.make_mesh(**config.mesh.to_dict(), devices=jax.devices())
    if (
        config.model.attention != "auto"
        or device.platform not in kernels.GPUS
        or not owns_rows(config, mesh)
    ):
        return {}
    precision = devices.resolve_precision(config.precision, device)
    task = build_task(config, vocabulary, precision, mesh)
    calls = attention_calls(config, task, meshes.batch_shards(mesh), vocabulary.dtype)
    return attention_choice.fastest(calls, devices.make_precision(precision, device), announce)


def session_on(
    config: Any,
    vocabulary: Vocabulary,
    on: Sequence[jax.Device],
    chosen: kernels.Choices | None = None,
) -> Session:
    """The session of `config` on devices `on`, which need not be here; a microbatch that is not given is one sequence a device.

    `chosen`: kernels by call of attention; None: those that are likely to be fastest.

    Raises:
        UserError: when mesh or attention do not fit the devices.
    """
    mesh = meshes.make_mesh(**config.mesh.to_dict(), devices=on)
    precision = devices.resolve_precision(config.precision, on[0])
    task = build_task(config, vocabulary, precision, mesh)
    calls = attention_calls(config, task, meshes.batch_shards(mesh), vocabulary.dtype)
    if chosen is None:
        chosen = _promising(config, calls, mesh, on[0])
    task = build_task(config, vocabulary, precision, mesh, chosen)
    optimizer = build_optimizer(config, task)
    return Session(
        config=config,
        mesh=mesh,
        precision=precision,
        attention=_names(config, calls, on[0], chosen),
        task=task,
        optimizer=optimizer,
        abstract=abstract_state(task, optimizer, precision == "float16", mesh),
        microbatch_size=config.microbatch_size or meshes.batch_shards(mesh),
        token_dtype=vocabulary.dtype,
        peak_flops=math.nan,
    )


def describe_attention(session: Session, vocabulary: Vocabulary, device: jax.Device) -> str:
    """The names of the kernels that `session` would take on another `device`."""
    shards = meshes.batch_shards(session.mesh)
    calls = attention_calls(session.config, session.task, shards, vocabulary.dtype)
    return _names(
        session.config, calls, device, _promising(session.config, calls, session.mesh, device)
    )


def _promising(config, calls, mesh: Mesh, device: jax.Device) -> kernels.Choices:
    return (
        {call: kernels.promising(call, device) for call in calls} if owns_rows(config, mesh) else {}
    )


def _names(config, calls, device: jax.Device, chosen: kernels.Choices) -> str:
    names = {kernels.choose(config.model.attention, call, device, chosen) for call in calls}
    return " and ".join(sorted(names))


def owns_rows(config: Any, mesh: Mesh) -> bool:
    """Whether a step's program sees one device's sequences alone, so that a kernel of ours may stand in it.

    XLA's partitioner does not know how to divide such a kernel, and would gather its operands.
    """
    return mesh.size == 1 or (meshes.is_of_copies(mesh) and not config.log.noise_scale)


def most_sequences(config: Any) -> int:
    """The largest microbatch there may be: the batch, or half of it where the noise scale compares microbatches."""
    return config.batch_size // 2 if config.log.noise_scale else config.batch_size


def build_task(
    config: Any,
    vocabulary: Vocabulary,
    precision: str,
    mesh: Mesh,
    attention: kernels.Choices | None = None,
) -> Task:
    """The model and objective of `config` in the number format `precision` on the devices of `mesh`.

    `attention`: the kernel by call, where it is not the one that is always there.
    """
    number_format = devices.make_precision(precision, mesh.devices.flat[0])
    chosen = tuple((attention or {}).items())
    number_format = dataclasses.replace(
        number_format, rows=meshes.rows_of_sharded(mesh), kernels=chosen
    )
    return TASKS[config.model.family](config, vocabulary, number_format)


def attention_calls(
    config: Any, task: Task, n_rows: int, token_dtype: np.dtype
) -> set[kernels.AttentionCall]:
    """Returns the calls of attention in the loss of `task`, found by tracing it for `n_rows` sequences.

    Raises:
        UserError: if the kernel that the configuration names cannot do them.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((n_rows, task.row_tokens), token_dtype)
    rows = jax.ShapeDtypeStruct((n_rows,), jnp.int32)
    try:
        with kernels.noting() as calls:
            jax.eval_shape(task.loss, task.abstract, key, tokens, rows)
    except kernels.Unable as error:
        raise UserError(f"model.attention={config.model.attention}: {error}") from error
    return calls


def build_optimizer(config: Any, task: Task) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer` for the parameters of `task`."""
    settings = config.optimizer
    return make_optimizer(
        settings.name,
        task.axes,
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        parameter_scale=settings.parameter_scale,
        relative_step=settings.relative_step,
    )


def compile_train_step(
    session: Session, options: Mapping[str, Any] | None = None
) -> microbatch.Program:
    """The train step compiled for the session's shapes, the state donated, and the seconds that took.

    Args:
        options: XLA's, by name; they come before those of the environment.
    """
    if session.program is not None:
        return session.program
    started = time.monotonic()
    compiled = lower_train_step(session).compile(options)
    return compiled, time.monotonic() - started


def lower_train_step(session: Session) -> jax.stages.Lowered:
    """The train step traced for the session's shapes, ready to compile."""
    config, mesh = session.config, session.mesh
    shardings = jax.tree.map(lambda leaf: leaf.sharding, session.abstract)
    step = make_train_step(
        session.task,
        session.optimizer,
        seed=config.seed,
        clip_norm=config.optimizer.clip_norm,
        dynamic_scale=session.dynamic_scale,
        mesh=mesh,
        grad_shardings=shardings.params if mesh.size > 1 else None,
        noise_scale=config.log.noise_scale,
    )
    whole = meshes.replicated(mesh)
    batch_shape = (session.max_microbatches, session.microbatch_size, session.task.row_tokens)
    batch = jax.ShapeDtypeStruct(
        batch_shape, session.token_dtype, sharding=meshes.batch_sharding(mesh, 3, 1)
    )
    lr = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    n_micro = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, whole))
    return jitted.lower(session.abstract, batch, lr, n_micro)


def describe(session: Session) -> str:
    """One line on what runs where, for the terminal."""
    device = session.mesh.devices.flat[0]
    return (
        f"{session.task.n_params / 1e6:.1f}M parameters on {session.mesh.size} × {device.device_kind}, {session.precision}, "
        f"{session.attention} attention, {session.microbatch_size} × {session.config.data.seq_len} tokens a pass, "
        f"batch {session.config.batch_size}"
    )
