"""Plans: does a configuration fit a device, how fast can it be there, what does its budget buy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from cramjax import start
from cramjax.config.resolve import changed
from cramjax.config.views import Config
from cramjax.console import Announce
from cramjax.errors import UserError
from cramjax.objectives.objective import Vocabulary
from cramjax.parallel import mesh as meshes
from cramjax.planning import expectation, ledger, roofline, targets
from cramjax.planning.cards import Card
from cramjax.planning.compiler import Compiler
from cramjax.planning.expectation import Expectation
from cramjax.training import remedies
from cramjax.training import session as sessions
from cramjax.training.session import Session
from cramjax.tuning import devices, microbatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Memory, rates and purchases of a configuration on a card.

    Bytes and rates are those of one device; FLOPs, tokens and steps are of all devices together.

    Attributes:
        card: the device.
        source: "compiled" for the card, or "analytic", by formula.
        precision: number format of the step.
        attention: kernel of attention.
        n_params: parameters of the network.
        batch_size: sequences a step.
        microbatch_size: the largest that fits, of all devices; None if none fits.
        configured_microbatch_size: the one of the configuration, or None if it names none.
        memory: bytes by kind with the largest microbatch that fits, or the smallest one. `needed`
            is their sum, `limit` what a step may take.
        measured: needed bytes by microbatch size, as compiled.
        flops: FLOPs of a step.
        peak_flops: dense FLOP/s of one device in the step's precision.
        step_s: the least a step can take, by "compute" and by "memory" traffic.
        tokens_per_s: the rate at the slower of the two.
        tokens: what the budget buys at that rate; likewise `steps` and `hours`.
        remedies: settings that fit, if the configuration does not.
        note: where the figures come from, if they are not compiled.
        expected: expected times, of a program compiled for a GPU.
        program: text of the optimised program, with the microbatch that the rates are of.
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
        """True if the configured microbatch fits, or any if the configuration names none."""
        if self.microbatch_size is None:
            return False
        return (self.configured_microbatch_size or 0) <= self.microbatch_size

    @property
    def why_not_expected(self) -> str:
        """The reason why there are no expected times; empty if there are."""
        if self.expected:
            return ""
        if self.card.gpu is None:
            return "no expected times: kernels of TPUs have not been measured"
        if self.source == "analytic":
            return "no expected times without the compiler"
        return "no expected times: the step does not fit"

    def entry(self) -> dict[str, Any]:
        """Returns all fields but the program, named as in the file of `--json`."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("card", "program", "expected"):
            del fields[name]
        if self.expected:
            times = self.expected.entry()
        else:
            times = expectation.no_entry(self.why_not_expected)
        device = {
            "device": self.card.name,
            "device_kind": self.card.device_kind,
            "n_devices": self.card.n_devices,
            "fits": self.fits,
        }
        return {
            **device,
            **fields,
            **times,
            "remedies": list(self.remedies),
            "memory": dict(self.memory),
        }


def make(config: Config, card: Card, announce: Announce) -> Plan:
    """Returns the plan of `config` on `card`.

    It compiles the train step a few times if the card's compiler is installed.

    Raises:
        UserError: if the configuration does not suit the number of devices, or the compiler does
            not know the card.
    """
    vocabulary = sessions.AssumedVocabulary(
        vocab_size=config.data.vocab_size, extra_ids=config.data.extra_ids
    )
    to_install = targets.missing(card)
    if to_install:
        session = open_stand_in(config, card, vocabulary)
        return _analytic_plan(config, session, card, to_install)

    session = open_on_card(config, card, vocabulary)
    compiler = Compiler(session, card, announce)
    plan = _compiled_plan(config, session, card, compiler)
    if plan.fits:
        return plan

    # Each remedy is compiled as well, which takes minutes.
    announce(f"{card.name}: looking for settings that fit…")
    smaller = remedies.find(
        config,
        vocabulary,
        list(session.mesh.devices.flat),
        microbatch_size=config.microbatch_size or meshes.batch_shards(session.mesh),
        room=microbatch.HEADROOM * _limit_bytes(card),
    )
    return dataclasses.replace(plan, remedies=tuple(map(str, smaller)))


def _analytic_plan(config: Config, session: Session, card: Card, to_install: str) -> Plan:
    """Returns the plan by formula, with the pip line that installs the compiler."""
    shards = meshes.batch_shards(session.mesh)

    def measure(n_sequences: int) -> int:
        return session.step_bytes(n_sequences // shards)

    note = f"by formula; for the real compiler: {to_install}"
    return _plan(config, session, card, measure, source="analytic", note=note)


def _compiled_plan(config: Config, session: Session, card: Card, compiler: Compiler) -> Plan:
    """Returns the plan by compiled steps, with the program and, on a GPU, the expected times."""

    def measure(n_sequences: int) -> int | None:
        return microbatch.fitting_bytes(lambda: compiler.step(n_sequences))

    plan = _plan(config, session, card, measure, source="compiled", note="")
    return _with_program(plan, session, compiler)


def _limit_bytes(card: Card) -> int:
    """Returns the bytes of a device that a run may claim."""
    # On a GPU JAX claims a share of the memory when it starts, on a TPU all of it.
    share = 1 if card.topology else start.GPU_FRACTION
    return round(card.memory_bytes * share)


def _plan(
    config: Config,
    session: Session,
    card: Card,
    measure: Callable[[int], int | None],
    *,
    source: str,
    note: str,
) -> Plan:
    """Returns a plan without a program.

    `session` is open on the card's devices or on stand-ins, without the microbatch of `config`.
    `measure` maps a microbatch size to the bytes of a device that a step needs, or to None if it
    does not fit.
    """
    limit = _limit_bytes(card)
    shards = meshes.batch_shards(session.mesh)
    sizes = sessions.microbatch_sizes(config, shards)
    fitting = microbatch.search(measure, sizes, limit, lambda n: session.step_bytes(n // shards))
    # A plan that does not fit says what its smallest microbatch takes.
    size = fitting.largest or sizes[0]
    memory = _by_kind(session.state_bytes(), fitting.used[size], fitting.per_sequence * size)

    rate_size = config.microbatch_size or size
    bound = roofline.roofline(
        config,
        card,
        precision=session.precision,
        flops_per_sequence=session.objective.flops,
        microbatch_size=rate_size,
        memory=memory,
        activations_per_sequence=memory["activations"] / size,
    )
    bought = roofline.purchase(
        config,
        tokens_per_s=bound.tokens_per_s,
        flops_per_sequence=session.objective.flops,
        microbatch_size=rate_size,
    )
    return Plan(
        card=card,
        source=source,
        precision=session.precision,
        attention=session.attention,
        n_params=session.n_params,
        batch_size=config.batch_size,
        microbatch_size=fitting.largest,
        configured_microbatch_size=config.microbatch_size,
        memory=memory | {"limit": round(microbatch.HEADROOM * limit)},
        measured=dict(sorted(fitting.used.items())),
        flops=bound.flops,
        peak_flops=bound.peak_flops,
        step_s=bound.step_s,
        tokens_per_s=bound.tokens_per_s,
        tokens=bought.tokens,
        steps=bought.steps,
        hours=bought.hours,
        note=note,
    )


def _with_program(plan: Plan, session: Session, compiler: Compiler) -> Plan:
    """Returns the plan with the program of its microbatch and, on a GPU, the expected times."""
    config = session.config
    shards = meshes.batch_shards(session.mesh)
    size = plan.configured_microbatch_size or plan.microbatch_size or shards
    try:
        program = compiler.step(size).as_text()
    except jax.errors.JaxRuntimeError as error:
        if not microbatch.is_out_of_memory(error):
            raise
        program = None
    if program is None:
        return plan

    # Only kernels of GPUs have been measured.
    plan = dataclasses.replace(plan, program=program)
    if plan.card.gpu is None or not plan.fits:
        return plan

    rows, left_out = expectation.read(program, plan.card, config.batch_size // size)
    step_s = sum(row.seconds for row in rows)
    tokens_per_s = config.batch_size * config.data.seq_len / step_s
    bought = roofline.purchase(
        config,
        tokens_per_s=tokens_per_s,
        flops_per_sequence=session.objective.flops,
        microbatch_size=size,
    )
    expected = Expectation(
        basis=expectation.basis(plan.card),
        step_s=step_s,
        s_by_kind=ledger.by_kind(rows),
        rows=rows,
        tokens_per_s=tokens_per_s,
        mfu=plan.flops / (step_s * plan.peak_flops),
        tokens=bought.tokens,
        steps=bought.steps,
        hours=bought.hours,
        note="; ".join(filter(None, (compiler.note, left_out))),
    )
    return dataclasses.replace(plan, expected=expected)


def open_on_card(config: Config, card: Card, vocabulary: Vocabulary) -> Session:
    """Returns the session on the card's own devices, to compile for."""
    changes = {"microbatch_size": None}
    return sessions.session_on(changed(config, changes), vocabulary, targets.devices(card))


def open_stand_in(config: Config, card: Card, vocabulary: Vocabulary) -> Session:
    """Returns the session on as many CPU devices as the card has, for shapes alone.

    Its number format and its kernel of attention are those of the card.
    """
    local = jax.devices("cpu")
    if len(local) < card.n_devices:
        raise UserError(
            f"--device {card.name}: has {card.n_devices} devices, "
            f"and only {len(local)} can stand in for them"
        )

    device = _StandIn.of(card)
    changes = {
        "microbatch_size": None,
        "precision": devices.resolve_precision(config.precision, device),
        "model.attention": "auto",
    }
    session = sessions.session_on(changed(config, changes), vocabulary, local[: card.n_devices])
    attention = sessions.describe_attention(session, vocabulary, device)
    return dataclasses.replace(session, attention=attention)


@dataclasses.dataclass(frozen=True)
class _StandIn:
    """The parts of a device that choose precision and kernels, of a card without a compiler."""

    platform: str
    device_kind: str
    compute_capability: str

    @classmethod
    def of(cls, card: Card) -> _StandIn:
        if card.gpu is None:
            return cls("tpu", card.name, "")
        return cls("gpu", card.name, "{}.{}".format(*card.gpu.capability))

    def memory_stats(self) -> None:
        """Returns nothing: a stand-in has no memory."""


def _by_kind(state: Mapping[str, int], needed: int, activations: float) -> dict[str, int]:
    """Returns the `needed` bytes of a step by kind.

    Args:
        state: bytes of parameters and optimizer.
        needed: bytes of the step.
        activations: bytes of them that are said to be activations.
    """
    beside_state = needed - sum(state.values())
    sizes = dict(state)
    sizes["activations"] = max(0, min(round(activations), beside_state))
    sizes["temporaries"] = max(0, needed - sum(sizes.values()))
    sizes["needed"] = needed
    return sizes
