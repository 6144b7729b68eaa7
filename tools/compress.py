"""`python -m tools.compress`: prune and quantise trained models; report quality at each size."""

import argparse
import sys

from cramjax.config.cli import (
    at_least,
    comma_separated,
    from_flags,
    in_home,
    make_parser,
    path,
    run_command,
)
from cramjax.console import announce
from cramjax.files import alone_in

EXAMPLE = """written to --out:
  pareto.json   an entry for each model, share and bits: score (median and all seeds), bytes,
                parameters that are not zero, latency of 1 and 32 examples, and whether it is on
                the front of each
  pareto.png    the same as a picture
  <model>/seed-<n>/prune-…,bits-…/
                each compressed model at its true size; cramjax.load and tools.export_hf read it

examples:
  python -m tools.compress --checkpoint runs/glue/models/rte/point-0/seed-0 --data_dir glue \\
      --prune 0,0.3,0.6,0.9 --bits 32,8,4 --out runs/small
  python -m tools.compress --checkpoint runs/large --checkpoint runs/base --task mrpc \\
      --data_dir glue --seeds 3 --prune 0,0.3,0.6 --bits 32,8,4 --out runs/pareto
  python -m tools.compress --checkpoint runs/quickstart --prune 0,0.3 --bits 32,8 --out runs/loss

A model that is not finetuned is finetuned for --task first; without --task it is judged by the
held-out text of its run. Run again with the same --out, it does only what is missing."""


def _compress(args: argparse.Namespace) -> int:
    from cramjax import start
    from cramjax.compress import run
    from cramjax.compress.candidates import load_candidates
    from cramjax.compress.plan import CompressionPlan, CompressionRequest

    start.start()
    plan = from_flags(CompressionPlan, args)
    request = from_flags(CompressionRequest, args, plan=plan)
    with alone_in(args.out, "--out"):
        candidates = load_candidates(request, announce)
        for entry in run.CompressionRun(request, candidates, announce).run():
            print(run.describe(entry))
    print(f"{args.out / 'pareto.json'}, {args.out / 'pareto.png'}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit code."""
    parser = make_parser("tools.compress", "Prune and quantise trained models.", EXAMPLE)
    _add_inputs(parser)
    _add_pruning(parser)
    _add_quantisation(parser)
    _add_finetuning(parser)
    return run_command(_compress, argv, parser)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        type=in_home,
        dest="checkpoints",
        required=True,
        action="append",
        metavar="DIR",
        help="a finetuned model, or a run; give several flags to compare models",
    )

    parser.add_argument(
        "--task",
        metavar="TASK",
        help="a task, or a task file, as in tools.finetune (default: a finetuned model's own)",
    )

    parser.add_argument(
        "--data_dir", type=in_home, metavar="DIR|tfds", help="folder with the data of the task"
    )
    parser.add_argument(
        "--out", type=path, required=True, metavar="DIR", help="folder of the results"
    )


def _add_pruning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prune",
        dest="shares",
        type=comma_separated(float, "numbers"),
        default="0",
        metavar="S1,S2,…",
        help="shares of the weights that become zero (default: 0)",
    )

    parser.add_argument(
        "--scope",
        default="global",
        help="weights that are compared with each other: global (all, default) or matrix",
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


def _add_quantisation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bits",
        type=comma_separated(int, "numbers"),
        default="32",
        metavar="B1,B2,…",
        help="bits of a weight: 32, 8, 6, 4, 3 or 2 (default: 32)",
    )

    parser.add_argument(
        "--granularity",
        default="channel",
        help="weights that share a scale: tensor, channel (default) or group",
    )

    parser.add_argument(
        "--group_size",
        type=int,
        default=64,
        metavar="N",
        help="rows of a group (default: 64)",
    )


def _add_finetuning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--epochs",
        type=at_least(0),
        default=1,
        metavar="N",
        help="epochs of finetuning after each pruning (default: 1)",
    )

    parser.add_argument(
        "--qat_epochs",
        type=at_least(0),
        default=0,
        metavar="N",
        help="epochs of quantisation-aware finetuning for each of --bits (default: 0)",
    )

    parser.add_argument(
        "--seeds",
        dest="n_seeds",
        type=at_least(1),
        default=1,
        metavar="N",
        help="seeds of finetuning; the median is reported (default: 1)",
    )

    parser.add_argument(
        "--protocol", metavar="NAME", help="finetuning protocol, as in tools.finetune"
    )

    parser.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a finetuning setting, as in tools.finetune",
    )


if __name__ == "__main__":
    sys.exit(main())
