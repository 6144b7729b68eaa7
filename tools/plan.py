"""`python -m tools.plan`: whether a configuration fits a device that is not here, and what its budget buys there."""

import argparse
import json
import pathlib
import sys

from cramjax.config.cli import add_config_flags, at_least, check_output, make_parser, run_command
from cramjax.console import announce
from cramjax.errors import RunFailed, UserError

EXAMPLE = """the table has a line for each device:
  fits, microbatch      of all devices; the largest that fits, with the share of memory left free that training leaves
  GiB needed, of        by a device, of what a step may take: parameters, optimizer, activations, temporaries (gradients and the rest)
  step ms, bound by     the least an optimizer step can take: FLOPs at the card's dense peak, or traffic at its memory's bandwidth
  tokens/s, tokens      at that rate, and what the budget buys of them: at most
  steps, hours          until the first limit of the budget
a second table has what is expected of GPUs: every kernel of the compiled step, at the rates that such kernels reached on an H100, scaled by
the card's peaks elsewhere; with the share of each kind of kernel in the step's time

The train step itself is compiled for the device, without it: GPUs need the wheels of jax[cuda12], TPUs those of jax[tpu]. Where they
are not installed, memory is by formula, and the line to install them is printed. With growth.stages it is the last stage that counts.

examples:
  python -m tools.plan --config configs/bert_1day.py --device rtx3060,t4,rtx4090
  python -m tools.plan --config configs/bert_24h_academic.py --device v5e-8 --json plan.json --plot plan.png
  python -m tools.plan --config configs/t5_1day.py --device all
  python -m tools.plan --config configs/bert_1day.py --device h100 --config.microbatch_size=512 --kernels 25 --program step.txt"""


def _plan(args: argparse.Namespace) -> int:
    from cramjax.config.resolve import resolve
    from cramjax.planning import cards

    check_output("--json", args.json)
    check_output("--plot", args.plot)
    check_output("--program", args.program)
    config = resolve(args.config, args.overrides)
    names = list(cards.CARDS) if args.device == "all" else args.device.split(",")
    chosen = list(dict.fromkeys(cards.find(name) for name in names))
    if args.program or args.kernels:
        _check_one_device(args, chosen)
    from cramjax.planning import environment

    environment.prepare()
    from cramjax.planning import targets

    line = targets.missing(chosen[0])
    if line and (args.program or args.kernels):
        raise UserError(
            f"--device {chosen[0].name}: no program without its compiler; install it: {line}"
        )
    from cramjax.planning import plan, report

    plans = []
    for number, card in enumerate(chosen, start=1):
        announce(f"{number}/{len(chosen)}  {card.name}")
        plans.append(plan.make(config, card, announce))
        if args.json:
            content = {"recipe": config.name, "plans": [made.entry() for made in plans]}
            args.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if args.plot:
            report.plot(plans, args.plot)
    print(report.table(plans))
    if args.program:
        _write_program(args.program, plans[0].program)
    if args.kernels and plans[0].expected:
        print("\n" + report.kernel_list(plans[0].expected.rows, args.kernels))
    return 0 if any(made.fits for made in plans) else 1


def _check_one_device(args: argparse.Namespace, chosen: list) -> None:
    """Raise a UserError unless the `chosen` cards are one, and a GPU where its kernels are wanted."""
    flag = "--program" if args.program else "--kernels"
    if len(chosen) > 1:
        names = ", ".join(card.name for card in chosen)
        raise UserError(
            f"{flag}: is of one device, and --device names {len(chosen)} ({names}); name one"
        )
    if args.kernels and chosen[0].gpu is None:
        raise UserError(
            f"--kernels: lists those of a GPU, and {chosen[0].name} is none; --program writes its program"
        )


def _write_program(path: pathlib.Path, program: str | None) -> None:
    if program is None:
        raise RunFailed(
            f"--program {path}: not written, since the compiler refuses the step for lack of memory"
        )
    path.write_text(program, encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); returns the exit code: 1 where nothing fits."""
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
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write everything there")
    parser.add_argument(
        "--plot", type=pathlib.Path, metavar="FILE.png", help="draw memory and tokens there"
    )
    parser.add_argument(
        "--program",
        type=pathlib.Path,
        metavar="FILE",
        help="write the optimised program there (HLO text): of the configured microbatch, or of the largest that fits",
    )
    parser.add_argument(
        "--kernels",
        type=at_least(1),
        metavar="N",
        help="list the N kernels of one GPU's step that take longest, as expected",
    )
    return run_command(_plan, argv, parser)


if __name__ == "__main__":
    sys.exit(main())
