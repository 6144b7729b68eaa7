"""Remedies for a train step that does not fit a device: settings whose compiled step does fit."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from cramjax.config.resolve import changed
from cramjax.config.views import Config
from cramjax.errors import RunFailed, UserError
from cramjax.models.kernels import Device
from cramjax.objectives.objective import Vocabulary
from cramjax.parallel import mesh as meshes
from cramjax.training import session as sessions
from cramjax.tuning import devices, microbatch

# In the order of how little they change. First come the same updates by other work, then the same
# updates in the memory of more devices, then another optimizer.
_CHANGES: tuple[dict[str, Any], ...] = (
    {"model.remat": "dots"},
    {"model.remat": "full"},
    {"mesh.data": 1, "mesh.fsdp": -1},
    {"optimizer.name": "adafactor"},
    {"model.remat": "full", "optimizer.name": "adafactor"},
)
# A remedy may need this share of the step that ran out of memory. The rest is for memory that the
# compiler's analysis does not count.
_LESS = 0.85


@dataclasses.dataclass(frozen=True)
class Remedy:
    """Overrides of a configuration whose step needs `used_bytes` on a device."""

    overrides: Mapping[str, Any]
    used_bytes: int

    def __str__(self) -> str:
        flags = " ".join(f"--config.{key}={value}" for key, value in self.overrides.items())
        return f"{flags} ({self.used_bytes / 2**30:.1f} GiB)"


def find(
    config: Config,
    vocabulary: Vocabulary,
    on: Sequence[Device],
    *,
    microbatch_size: int,
    room: float,
    most: int = 3,
) -> list[Remedy]:
    """Returns the nearest settings whose step fits: a smaller microbatch first, then `_CHANGES`.

    Each of them is compiled.

    Args:
        config: the configuration whose step does not fit.
        vocabulary: the vocabulary of its data.
        on: the devices, which need not be this process's.
        microbatch_size: the microbatch that does not fit.
        room: bytes that a step may take on each device.
        most: the largest number of remedies.
    """
    remedies = _smaller(config, vocabulary, on, microbatch_size, room)
    for change in _CHANGES:
        if len(remedies) == most:
            break
        is_new = any(operator.attrgetter(key)(config) != value for key, value in change.items())
        is_possible = len(on) > 1 or "mesh.fsdp" not in change
        if not (is_new and is_possible):
            continue

        overrides = change | {"microbatch_size": microbatch_size}
        remedy = _fitting(config, overrides, vocabulary, on, room)
        if remedy:
            # The size is the one that the user has, so it is not named.
            remedies.append(dataclasses.replace(remedy, overrides=change))
    return remedies


def _smaller(
    config: Config,
    vocabulary: Vocabulary,
    on: Sequence[Device],
    microbatch_size: int,
    room: float,
) -> list[Remedy]:
    """Returns the largest microbatch below `microbatch_size` that fits, if there is one."""
    session = sessions.session_on(config, vocabulary, on)
    shards = meshes.batch_shards(session.mesh)
    sizes = sessions.microbatch_sizes(config, shards)
    sizes = [n for n in sizes if n < microbatch_size]
    if not sizes:
        return []

    def measure(n: int) -> int | None:
        smaller = dataclasses.replace(session, microbatch_size=n)
        return microbatch.fitting_bytes(lambda: sessions.compile_train_step(smaller)[0])

    def formula(n: int) -> int:
        return session.step_bytes(n // shards)

    # `search` takes a device's memory, and leaves headroom itself.
    limit = round(room / microbatch.HEADROOM)
    searched = microbatch.search(measure, sizes, limit, formula)
    if searched.largest is None:
        return []
    return [Remedy({"microbatch_size": searched.largest}, searched.used[searched.largest])]


def _fitting(
    config: Config,
    overrides: Mapping[str, Any],
    vocabulary: Vocabulary,
    on: Sequence[Device],
    room: float,
) -> Remedy | None:
    """Returns `overrides` as a remedy if their step fits `room`, or None."""
    try:
        session = sessions.session_on(changed(config, overrides), vocabulary, on)
    except UserError:
        # These devices cannot be arranged in this way.
        return None

    # The formula saves compilations that are hopeless.
    n_local = session.microbatch_size // meshes.batch_shards(session.mesh)
    if session.step_bytes(n_local) > microbatch.FORMULA_ERROR * room:
        return None
    used = microbatch.needed_bytes(lambda: sessions.compile_train_step(session)[0])
    return Remedy(overrides, used) if used <= room else None


@contextlib.contextmanager
def explained(session: sessions.Session, vocabulary: Vocabulary) -> Iterator[None]:
    """Inside, running out of a device's memory raises a `RunFailed` that says what would fit.

    Its sentence has the bytes that the step needs and the bytes of the device.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not microbatch.is_out_of_memory(error):
            raise
        raise RunFailed(_sentence(session, vocabulary)) from error


def _sentence(session: sessions.Session, vocabulary: Vocabulary) -> str:
    on = list(session.mesh.devices.flat)
    size = session.microbatch_size
    needed = microbatch.needed_bytes(lambda: sessions.compile_train_step(session)[0])

    # Some devices do not say how much memory they have.
    limit = devices.memory_bytes(on[0])
    room = _LESS * needed
    has = f"{on[0].device_kind} had less"
    if limit:
        room = min(room, microbatch.HEADROOM * limit)
        has = f"{on[0].device_kind} has {limit / 2**30:.1f} GiB"

    remedies = find(session.config, vocabulary, on, microbatch_size=size, room=room)
    advice = "take a smaller model"
    if remedies:
        advice = f"these fit: {', '.join(map(str, remedies))}"
    return (
        f"out of memory: a step of {size} sequence(s) a pass needs {needed / 2**30:.1f} GiB, "
        f"{has}; {advice}; checkpoints are kept, run again in the same workdir"
    )
