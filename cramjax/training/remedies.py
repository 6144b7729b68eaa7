"""What to change when a train step does not fit a device: settings that were compiled for it and do."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from cramjax.config.resolve import changed
from cramjax.errors import RunFailed, UserError
from cramjax.objectives.objective import Vocabulary
from cramjax.parallel import mesh as meshes
from cramjax.training import session
from cramjax.tuning import devices, microbatch

# By how little they change: the same updates in another order of work, the same in more devices' memory, another optimizer.
_CHANGES: tuple[dict[str, Any], ...] = (
    {"model.remat": "dots"},
    {"model.remat": "full"},
    {"mesh.data": 1, "mesh.fsdp": -1},
    {"optimizer.name": "adafactor"},
    {"model.remat": "full", "optimizer.name": "adafactor"},
)
# Of what a step that ran out of memory needed: a setting has to be below it by more than the difference that is not accounted for.
_LESS = 0.85


@dataclasses.dataclass(frozen=True)
class Remedy:
    """Overrides of a configuration with which a step needs `used_bytes` a device."""

    overrides: Mapping[str, Any]
    used_bytes: int

    def __str__(self) -> str:
        flags = " ".join(f"--config.{key}={value}" for key, value in self.overrides.items())
        return f"{flags} ({self.used_bytes / 2**30:.1f} GiB)"


def find(
    config: Any,
    vocabulary: Vocabulary,
    on: Sequence[jax.Device],
    *,
    microbatch_size: int,
    room: float,
    most: int = 3,
) -> list[Remedy]:
    """The nearest settings whose step needs at most `room` bytes of each device of `on`: a smaller microbatch, then `_CHANGES`.

    At most so many; each one is compiled.
    """
    found = _smaller(config, vocabulary, on, microbatch_size, room)
    for change in _CHANGES:
        if len(found) == most:
            break
        is_new = any(operator.attrgetter(key)(config) != value for key, value in change.items())
        if is_new and (len(on) > 1 or "mesh.fsdp" not in change):
            remedy = _fitting(
                config, change | {"microbatch_size": microbatch_size}, vocabulary, on, room
            )
            if remedy:
                found.append(dataclasses.replace(remedy, overrides=change))
    return found


def _smaller(
    config: Any, vocabulary: Vocabulary, on: Sequence[jax.Device], microbatch_size: int, room: float
) -> list[Remedy]:
    """The largest microbatch below `microbatch_size` that fits, if one does."""
    made = session.session_on(config, vocabulary, on)
    shards = meshes.batch_shards(made.mesh)
    sizes = [
        n
        for n in microbatch.microbatch_sizes(session.most_sequences(config), shards)
        if n < microbatch_size
    ]
    if not sizes:
        return []

    def measure(n: int) -> int | None:
        return microbatch.fitting_bytes(
            lambda: session.compile_train_step(dataclasses.replace(made, microbatch_size=n))[0]
        )

    limit = round(room / microbatch.HEADROOM)
    searched = microbatch.search(measure, sizes, limit, lambda n: made.step_bytes(n // shards))
    if searched.largest is None:
        return []
    return [Remedy({"microbatch_size": searched.largest}, searched.used[searched.largest])]


def _fitting(
    config: Any,
    overrides: Mapping[str, Any],
    vocabulary: Vocabulary,
    on: Sequence[jax.Device],
    room: float,
) -> Remedy | None:
    try:
        made = session.session_on(changed(config, overrides), vocabulary, on)
    except UserError:  # these devices cannot be arranged so
        return None
    n_local = made.microbatch_size // meshes.batch_shards(made.mesh)
    if made.step_bytes(n_local) > microbatch.FORMULA_ERROR * room:
        return None
    used = microbatch.needed_bytes(lambda: session.compile_train_step(made)[0])
    return Remedy(overrides, used) if used <= room else None


@contextlib.contextmanager
def explained(made: session.Session, vocabulary: Vocabulary) -> Iterator[None]:
    """Inside, running out of a device's memory is a `RunFailed` that says what the step needs, what there is, and what would fit."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not microbatch.is_out_of_memory(error):
            raise
        raise RunFailed(_sentence(made, vocabulary)) from error


def _sentence(made: session.Session, vocabulary: Vocabulary) -> str:
    on = list(made.mesh.devices.flat)
    needed = microbatch.needed_bytes(lambda: session.compile_train_step(made)[0])
    limit = devices.memory_bytes(on[0])
    room = min(_LESS * needed, microbatch.HEADROOM * limit if limit else _LESS * needed)
    remedies = find(made.config, vocabulary, on, microbatch_size=made.microbatch_size, room=room)
    has = (
        f"{on[0].device_kind} has {limit / 2**30:.1f} GiB"
        if limit
        else f"{on[0].device_kind} had less"
    )
    fitting = f"these fit: {', '.join(map(str, remedies))}" if remedies else "take a smaller model"
    return (
        f"out of memory: a step of {made.microbatch_size} sequence(s) a pass needs {needed / 2**30:.1f} GiB, {has}; {fitting}; "
        "checkpoints are kept, run again in the same workdir"
    )
