"""`python -m cramjax.main --config configs/NAME.py[:ARG]`: pretrain inside a budget.

Prepares the data, trains, and writes the summary.
"""

import argparse
import pathlib
import sys

from cramjax import streams
from cramjax.config.cli import add_config_flags, at_least, make_parser, path, run_command
from cramjax.console import announce
from cramjax.errors import UserError

EXAMPLE = """example:
  python -m cramjax.main --config configs/quickstart.py
  python -m cramjax.main --config configs/bert_1day.py --workdir runs/mine --config.budget.hours=12

Run again with the same workdir, it resumes. All keys: cramjax/config/schema.py."""


def _train(args: argparse.Namespace) -> int:
    from cramjax.config.resolve import resolve

    config = resolve(args.config, args.overrides)
    workdir = args.workdir or pathlib.Path("runs") / config.name
    if args.show_batch:
        from cramjax.training.preview import preview

        for line in preview(config, args.show_batch):
            print(line)
        return 0

    # These import JAX, so they wait until the configuration is known to be sound.
    from cramjax.parallel import processes
    from cramjax.training import run

    code = run.train_until_stopped(config, workdir)
    # One process of several cannot load the model alone.
    if code == 0 and config.log.fill_masks and processes.count() == 1:
        _show(workdir, config.log.fill_masks)
    # The result is in the workdir, whatever has become of these lines.
    streams.waive_output()
    return code


def _show(workdir: pathlib.Path, n_examples: int) -> None:
    """Print what the model makes of held-out text; the run is done, whether or not that works."""
    from cramjax.demonstration import show

    try:
        lines = show(workdir, n_examples)
    except UserError as error:
        announce(f"no held-out sentences to show ({error})")
        return
    for line in lines:
        print(line)


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); returns the exit code."""
    parser = make_parser(
        "cramjax.main",
        "Pretrain a model inside a budget (hours, steps, tokens or FLOPs); "
        "resume in the same workdir.",
        EXAMPLE,
    )
    add_config_flags(parser)
    parser.add_argument(
        "--workdir", type=path, metavar="DIR", help="folder of the run (default: runs/NAME)"
    )
    parser.add_argument(
        "--show_batch",
        type=at_least(1),
        metavar="N",
        help="print the first N training examples, the model's inputs and targets, and exit",
    )
    return run_command(_train, argv, parser)


if __name__ == "__main__":
    sys.exit(main())
