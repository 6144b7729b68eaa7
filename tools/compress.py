"""`python -m tools.compress`: prune and quantise trained models, and say what is left of them at which size."""

import argparse
import pathlib
import sys

from cramjax.config.cli import at_least, make_parser, run_command
from cramjax.console import announce

EXAMPLE = """written to --out:
  pareto.json                       an entry for each model, share and bits: score (median and all seeds), bytes, parameters that are not
                                    zero, latency of 1 and 32 examples, and whether it is on the front of each
  pareto.png                        the same as a picture
  <model>/seed-<n>/prune-…,bits-…/  each compressed model at its true size; cramjax.load and tools.export_hf read it

examples:
  python -m tools.compress --checkpoint runs/glue/models/rte/point-0/seed-0 --data_dir glue --prune 0,0.3,0.6,0.9 --bits 32,8,4 \\
      --out runs/small
  python -m tools.compress --checkpoint runs/large --checkpoint runs/base --task mrpc --data_dir glue --seeds 3 \\
      --prune 0,0.3,0.6 --bits 32,8,4 --out runs/pareto
  python -m tools.compress --checkpoint runs/quickstart --prune 0,0.3 --bits 32,8 --out runs/loss

A model that is not finetuned is finetuned for --task first; without --task it is judged by the held-out text of its run.
Run again with the same --out, it does only what is missing."""


def _numbers(text: str, kind: type, flag: str) -> tuple:
    from cramjax.errors import UserError

    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"{flag} {text}: must be numbers with commas between them") from error


def _compress(args: argparse.Namespace) -> int:
    shares, bits = _numbers(args.prune, float, "--prune"), _numbers(args.bits, int, "--bits")
    from cramjax import start
    from cramjax.compress import run

    start.start()
    plan = run.Plan(
        shares=shares,
        bits=bits,
        scope=args.scope,
        structured=args.structured,
        prune_embeddings=args.prune_embeddings,
        granularity=args.granularity,
        group_size=args.group_size,
        epochs=args.epochs,
        qat_epochs=args.qat_epochs,
        n_seeds=args.seeds,
    )
    request = run.Request(
        checkpoints=args.checkpoint,
        task=args.task,
        data_dir=args.data_dir,
        out=args.out,
        plan=plan,
        protocol=args.protocol,
        assignments=args.set,
    )

    entries = run.Compression(request, run.candidates(request, announce), announce).run()
    for entry in entries:
        print(
            f"{entry['model']}  prune {entry['prune']:g}  {entry['bits']:2} bits  {entry['bytes'] / 1e6:8.2f} MB  "
            f"{entry['metric']} {entry['value']:.3f}{'  on the front' if entry['pareto_bytes'] else ''}"
        )
    print(f"{args.out / 'pareto.json'}, {args.out / 'pareto.png'}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); returns the exit code."""
    parser = make_parser("tools.compress", "Prune and quantise trained models.", EXAMPLE)
    parser.add_argument(
        "--checkpoint",
        required=True,
        action="append",
        metavar="DIR",
        help="a finetuned model, or a run; several flags: compared",
    )
    parser.add_argument(
        "--prune", default="0", metavar="S1,S2,…", help="shares of the weights that become zero"
    )
    parser.add_argument(
        "--bits", default="32", metavar="B1,B2,…", help="of a weight: 32, 8, 6, 4, 3 or 2"
    )
    parser.add_argument(
        "--task", metavar="TASK", help="of GLUE or SuperGLUE; of a finetuned model its own"
    )
    parser.add_argument("--data_dir", metavar="DIR|tfds", help="where the data of the task are")
    parser.add_argument(
        "--out", type=pathlib.Path, required=True, metavar="DIR", help="folder of the results"
    )
    parser.add_argument(
        "--scope",
        default="global",
        help="what weights are compared with: global (all, default) or matrix",
    )
    parser.add_argument(
        "--structured",
        action="store_true",
        help="take out whole heads and feed-forward columns instead",
    )
    parser.add_argument(
        "--prune_embeddings",
        action="store_true",
        help="prune the embedding of the vocabulary as well",
    )
    parser.add_argument(
        "--granularity",
        default="channel",
        help="what shares a scale: tensor, channel (default) or group",
    )
    parser.add_argument("--group_size", type=int, default=64, metavar="N", help="rows of a group")
    parser.add_argument(
        "--epochs",
        type=at_least(0),
        default=1,
        metavar="N",
        help="of finetuning after each pruning",
    )
    parser.add_argument(
        "--qat_epochs",
        type=at_least(0),
        default=0,
        metavar="N",
        help="of quantisation-aware finetuning for each bits",
    )
    parser.add_argument(
        "--seeds",
        type=at_least(1),
        default=1,
        metavar="N",
        help="of finetuning; the median is reported",
    )
    parser.add_argument(
        "--protocol", metavar="NAME", help="of finetuning, as tools.finetune has it"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another finetuning setting, as tools.finetune has it",
    )
    return run_command(_compress, argv, parser)


if __name__ == "__main__":
    sys.exit(main())
