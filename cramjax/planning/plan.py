"""Whether a configuration fits a device, how fast it can be there at best, and what its budget buys."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cramjax import start
from cramjax.budget import schedules
from cramjax.config.resolve import changed
from cramjax.console import Announce
from cramjax.errors import UserError
from cramjax.objectives.objective import Vocabulary
from cramjax.parallel import mesh as meshes
from cramjax.planning import expectation, ledger, targets
from cramjax.planning.cards import Card
from cramjax.planning.compiler import Compiler
from cramjax.planning.expectation import Expectation
from cramjax.training import remedies, session
from cramjax.tuning import devices, microbatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a configuration takes on a card; bytes and rates are of one device, FLOPs, tokens and steps of all together.

    source: "compiled" for the card, or "analytic", by formula. microbatch_size: the largest that fits, of all devices; None: none does.
    memory: bytes by kind at that size, or at the smallest there is; `needed` is their sum and `limit` what a step may take.
    measured: needed bytes by microbatch size, as compiled. step_s: the least a step can take, by "compute" and by "memory" traffic.
    tokens, steps, hours: what the budget buys at that rate. remedies: settings that fit, where the configuration does not.
    expected: of a program compiled for a GPU. program: text of the optimised program, with the microbatch that the rates are of.
    """

    card: Card
    source: str
    precision: str
    attention: str
    n_params: int
    batch_size: int
    microbatch_size: int | None
    configured_microbatch_size: int | None
    memory: Mapping[str, int]
    measured: Mapping[int, int]
    flops: float
    peak_flops: float
    step_s: Mapping[str, float]
    tokens_per_s: float
    tokens: float
    steps: float
    hours: float
    remedies: tuple[str, ...] = ()
    note: str = ""
    expected: Expectation | None = None
    program: str | None = dataclasses.field(default=None, repr=False)

    @property
    def fits(self) -> bool:
        """With the microbatch of the configuration, or with any where it names none."""
        return (
            self.microbatch_size is not None
            and (self.configured_microbatch_size or 0) <= self.microbatch_size
        )

    @property
    def unexpected(self) -> str:
        """Why no expected figures are there; empty where they are."""
        if self.expected:
            return ""
        if self.card.gpu is None:
            return "nothing is expected of a TPU: none was measured"
        if self.source == "analytic":
            return "nothing is expected without the compiler"
        return "nothing is expected of what does not fit"

    def entry(self) -> dict[str, Any]:
        """All of it but the program, as in the file of `--json`."""
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        card, _, expected = content.pop("card"), content.pop("program"), content.pop("expected")
        content |= expected.entry() if expected else expectation.no_entry(self.unexpected)
        own = {
            "device": card.name,
            "device_kind": card.device_kind,
            "n_devices": card.n_devices,
            "fits": self.fits,
        }
        return own | content | {"remedies": list(self.remedies), "memory": dict(self.memory)}


def make(config: Any, card: Card, announce: Announce) -> Plan:
    """The plan of `config` on `card`; compiles the train step a few times where the compiler is installed.

    Raises:
        UserError: where the configuration does not suit the number of devices, or the compiler does not know the card.
    """
    line = targets.missing(card)
    vocabulary = session.AssumedVocabulary(
        vocab_size=config.data.vocab_size, extra_ids=config.data.extra_ids
    )
    made = (_open_stand_ins if line else _open_targets)(config, card, vocabulary)
    shards = meshes.batch_shards(made.mesh)
    sizes = microbatch.microbatch_sizes(session.most_sequences(config), shards)
    limit = round(card.memory_bytes * (1 if card.topology else start.GPU_FRACTION))
    state, compiler = made.state_bytes(), Compiler(made, card, announce)

    def measure(n: int) -> int | None:
        if line:
            return made.step_bytes(n // shards)
        return microbatch.fitting_bytes(lambda: compiler.step(n))

    searched = microbatch.search(measure, sizes, limit, lambda n: made.step_bytes(n // shards))
    size = searched.largest or sizes[0]
    memory = _by_kind(state, searched.used[size], searched.per_sequence * size)

    plan = Plan(
        card=card,
        source="analytic" if line else "compiled",
        precision=made.precision,
        attention=made.attention,
        n_params=made.n_params,
        batch_size=config.batch_size,
        microbatch_size=searched.largest,
        configured_microbatch_size=config.microbatch_size,
        memory=memory | {"limit": round(microbatch.HEADROOM * limit)},
        measured=dict(sorted(searched.used.items())),
        note=f"by formula; for the real compiler: {line}" if line else "",
        **_rates(
            made,
            card,
            config.microbatch_size or size,
            memory | {"activations": memory["activations"] / size},
        ),
    )

    if not line:
        plan = _with_program(plan, made, compiler)
    if plan.fits or line:
        return plan
    announce(f"{card.name}: looking for settings that fit…")
    on, room = list(made.mesh.devices.flat), microbatch.HEADROOM * limit
    found = remedies.find(
        config, vocabulary, on, microbatch_size=config.microbatch_size or shards, room=room
    )
    return dataclasses.replace(plan, remedies=tuple(map(str, found)))


def _with_program(plan: Plan, made: session.Session, compiler: Compiler) -> Plan:
    """The plan with the program of its microbatch and, of a GPU that it fits, what is expected there."""
    config, card = made.config, plan.card
    size = plan.configured_microbatch_size or plan.microbatch_size or meshes.batch_shards(made.mesh)
    try:
        program = compiler.step(size).as_text()
    except jax.errors.JaxRuntimeError as error:
        if not microbatch.is_out_of_memory(error):
            raise
        return plan

    plan = dataclasses.replace(plan, program=program)
    if card.gpu is None or not plan.fits:
        return plan

    rows, left_out = expectation.read(program, card, config.batch_size // size)
    step_s = sum(row.seconds for row in rows)
    tokens_per_s = config.batch_size * config.data.seq_len / step_s
    expected = Expectation(
        basis=expectation.basis(card),
        step_s=step_s,
        s_by_kind=ledger.by_kind(rows),
        rows=rows,
        tokens_per_s=tokens_per_s,
        mfu=plan.flops / (step_s * plan.peak_flops),
        note="; ".join(filter(None, (compiler.note, left_out))),
        **_bought(config, made.objective.flops, size, tokens_per_s),
    )
    return dataclasses.replace(plan, expected=expected)


def _open_targets(config: Any, card: Card, vocabulary: Vocabulary) -> session.Session:
    """The session on the card's own devices, to compile for."""
    return session.session_on(
        changed(config, {"microbatch_size": None}), vocabulary, targets.devices(card)
    )


def _open_stand_ins(config: Any, card: Card, vocabulary: Vocabulary) -> session.Session:
    """The session on as many CPUs, for shapes alone, with the number format and the kernel of the card."""
    local = jax.devices("cpu")
    if len(local) < card.n_devices:
        raise UserError(
            f"--device {card.name}: {card.n_devices} devices, and this process may pretend to {len(local)}"
        )
    capability = "{}.{}".format(*card.gpu.capability) if card.gpu else ""
    device = types.SimpleNamespace(
        platform="gpu" if card.gpu else "tpu", compute_capability=capability
    )
    precision = devices.resolve_precision(config.precision, device)
    formats = {"microbatch_size": None, "precision": precision, "model.attention": "auto"}
    made = session.session_on(changed(config, formats), vocabulary, local[: card.n_devices])
    return dataclasses.replace(made, attention=session.describe_attention(made, vocabulary, device))


def _by_kind(state: Mapping[str, int], needed: int, activations: float) -> dict[str, int]:
    """`needed` bytes of a step, of which so many are said to be `activations`, by kind."""
    kinds = dict(state) | {
        "activations": max(0, min(round(activations), needed - sum(state.values())))
    }
    return kinds | {"temporaries": max(0, needed - sum(kinds.values())), "needed": needed}


def _rates(
    made: session.Session, card: Card, size: int, memory: Mapping[str, float]
) -> dict[str, Any]:
    """FLOPs, the roofline of a step (Williams et al., 2009), and what the budget buys at that rate.

    Traffic counts what must pass through memory: weights three times a pass, the sum of gradients, activations out and back, and once a
    step the optimizer. `memory`: bytes of a device by kind; its activations are those of one sequence of a pass.
    """
    config, n_params = made.config, memory["parameters"] // 4
    peak = getattr(card.peak, made.precision) or card.peak.float32
    flops = config.batch_size * made.objective.flops
    one_pass = (3 * jnp.dtype(made.precision).itemsize + 8) * n_params + 2 * size * memory[
        "activations"
    ]
    traffic = config.batch_size / size * one_pass + 12 * n_params + 2 * memory["optimizer"]
    step_s = {
        "compute": flops / (peak * 1e12 * card.n_devices),
        "memory": traffic / (card.peak.bandwidth * 1e9),
    }
    tokens_per_s = config.batch_size * config.data.seq_len / max(step_s.values())
    return {
        "flops": flops,
        "peak_flops": peak * 1e12,
        "step_s": step_s,
        "tokens_per_s": tokens_per_s,
    } | _bought(config, made.objective.flops, size, tokens_per_s)


def _bought(
    config: Any, flops_per_sequence: float, size: int, tokens_per_s: float
) -> dict[str, float]:
    """Tokens, steps and hours until the first limit of the budget is reached; the batch may grow on the way there."""
    budget, seq_len, points = config.budget, config.data.seq_len, 1000
    batches = [
        size
        * schedules.n_microbatches(
            (i + 0.5) / points, config.schedule.batch_ramp, config.batch_size, size
        )
        for i in range(points)
    ]
    steps_per_s = tokens_per_s / seq_len * sum(1 / batch for batch in batches) / points
    limits = {
        "hours": None if budget.hours is None else 3600 * budget.hours,
        "tokens": None if budget.tokens is None else budget.tokens / tokens_per_s,
        "steps": None if budget.steps is None else budget.steps / steps_per_s,
        "flops": None
        if budget.flops is None
        else budget.flops / (flops_per_sequence * tokens_per_s / seq_len),
    }
    seconds = min(limit for limit in limits.values() if limit is not None)
    return {
        "tokens": tokens_per_s * seconds,
        "steps": steps_per_s * seconds,
        "hours": seconds / 3600,
    }
