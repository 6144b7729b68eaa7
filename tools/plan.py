"""`python -m tools.plan`: plans a run on a device that is not here."""

import argparse
import pathlib
import sys
from typing import TYPE_CHECKING

from cramjax.config.cli import (
    add_config_flags,
    at_least,
    check_output,
    make_parser,
    path,
    run_command,
)
from cramjax.console import announce
from cramjax.errors import RunFailed, UserError
from cramjax.files import write_json

if TYPE_CHECKING:
    from cramjax.planning.cards import Card
    from cramjax.planning.plan import Plan

EXAMPLE = """the table has a line for each device:
  fits, microbatch      the largest that fits, of all devices, with the share of memory left free
                        that training leaves
  GiB needed, of        by a device, and what a step may take: parameters, optimizer, activations,
                        temporaries (gradients and the rest)
  step ms, bound by     the least an optimizer step can take: FLOPs at the card's dense peak, or
                        traffic at its memory's bandwidth
  tokens/s, tokens      at that rate, and how many the budget buys: at most
  steps, hours          until the first limit of the budget
a second table has the expected times on GPUs: every kernel of the compiled step, at the rates that
such kernels reached on an H100, scaled by the card's peaks elsewhere; with the share of each kind
of kernel in the step's time

The train step itself is compiled for the device, without the device: GPUs need the wheels of
jax[cuda12], TPUs those of jax[tpu]. If they are not installed, memory is by formula, and the line
that installs them is printed. With growth.stages the last stage counts.

examples:
  python -m tools.plan --config configs/bert_1day.py --device rtx3060,t4,rtx4090
  python -m tools.plan --config configs/bert_24h_academic.py --device v5e-8 --json plan.json
  python -m tools.plan --config configs/t5_1day.py --device all --plot plan.png
  python -m tools.plan --config configs/bert_1day.py --device h100 --config.microbatch_size=512 \\
      --kernels 25 --program step.txt"""


def _plan(args: argparse.Namespace) -> int:
    from cramjax.config.resolve import resolve
    from cramjax.planning import cards, environment

    for flag in ("json", "plot", "program"):
        check_output(f"--{flag}", getattr(args, flag))
    config = resolve(args.config, args.overrides)
    chosen = cards.parse(args.device)
    if args.program or args.kernels:
        _check_one_device(args, chosen)

    # The environment has to be set before the imports below start JAX.
    environment.prepare()
    if args.program or args.kernels:
        _check_compiler(chosen[0])
    from cramjax.planning import plan, report

    plans = []
    for number, card in enumerate(chosen, start=1):
        announce(f"{number}/{len(chosen)}  {card.name}")
        plans.append(plan.make(config, card, announce))
        if args.json:
            _write_json(args.json, config.name, plans)
        if args.plot:
            report.plot(plans, args.plot)

    print(report.table(plans))
    first = plans[0]
    if args.program:
        _write_program(args.program, first.program)
    if args.kernels and first.expected:
        print("\n" + report.kernel_list(first.expected.rows, args.kernels))
    return 0 if any(each.fits for each in plans) else 1


def _check_one_device(args: argparse.Namespace, chosen: list["Card"]) -> None:
    """Raise a UserError unless there is one card, and it is a GPU if its kernels are wanted."""
    flag = "--program" if args.program else "--kernels"
    if len(chosen) > 1:
        names = ", ".join(card.name for card in chosen)
        raise UserError(
            f"{flag}: is of one device, and --device names {len(chosen)} ({names}); name one"
        )
    if args.kernels and chosen[0].gpu is None:
        raise UserError(
            f"--kernels: lists the kernels of a GPU, and {chosen[0].name} is not a GPU; "
            "--program writes its program"
        )


def _check_compiler(card: "Card") -> None:
    """Raise a UserError if the compiler for `card` is not installed."""
    from cramjax.planning import targets

    line = targets.missing(card)
    if line:
        raise UserError(
            f"--device {card.name}: no program without its compiler; install it: {line}"
        )


def _write_json(path: pathlib.Path, recipe: str, plans: list["Plan"]) -> None:
    content = {"recipe": recipe, "plans": [each.entry() for each in plans]}
    write_json(path, content)


def _write_program(path: pathlib.Path, program: str | None) -> None:
    if program is None:
        raise RunFailed(
            f"--program {path}: not written, because the compiler refuses the step "
            "for lack of memory"
        )
    path.write_text(program, encoding="utf-8")


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "tools.plan",
        "Say whether a configuration fits a device, and what its budget buys there.",
        EXAMPLE,
    )
    add_config_flags(parser)
    parser.add_argument(
        "--device",
        required=True,
        metavar="NAME[,NAME…]",
        help="rtx3060, t4, a100, v5e-8, …, or all",
    )
    parser.add_argument("--json", type=path, metavar="FILE", help="write everything there")
    parser.add_argument(
        "--plot", type=path, metavar="FILE.png", help="draw memory and tokens there"
    )

    parser.add_argument(
        "--program",
        type=path,
        metavar="FILE",
        help="write the optimised program there (HLO text), with the configured microbatch or the "
        "largest that fits",
    )
    parser.add_argument(
        "--kernels",
        type=at_least(1),
        metavar="N",
        help="list the N kernels of one GPU's step that are expected to take longest",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own).

    Returns the exit code, which is 1 if the configuration fits no device.
    """
    return run_command(_plan, argv, _make_parser())


if __name__ == "__main__":
    sys.exit(main())
