"""`python -m tools.sweep`: a run for each point of a grid over a recipe, and their comparison."""

import argparse
import sys

from cramjax.config.cli import add_config_flags, add_jobs_flag, make_parser, path, run_command
from cramjax.console import announce

EXAMPLE = """written to --out:
  <point>/     the workdir of the point's run, with its output in log.txt
  sweep.csv    a row for each point: status, grid values, results, and whether it is on the Pareto
               front of held-out loss against parameters, FLOPs and seconds
  sweep.png    the same as a picture, with the curves of held-out loss

example:
  python -m tools.sweep --config configs/quickstart.py --config.budget.hours=0.02 \\
      --grid optimizer.lr=0.01,0.02,0.04 --grid seed=0,1 --out runs/lr_sweep

With the same --out again, finished points are left alone; stopped and failed ones run again. The
exit code is 1 if a point failed; the others are trained all the same."""


def _sweep(args: argparse.Namespace) -> int:
    from cramjax.sweeps import grid, sweep

    points = grid.points_of(args.config, args.overrides, grid.parse_grids(args.grid))
    if grid.differ_in_text(points):
        announce(
            "data.max_mb=budget: the points take different amounts of text, so each prepares a "
            "dataset of its own\n  to compare them on one: --config.data.max_mb=MB"
        )
    if not args.dry_run:
        return sweep.run_sweep(points, args.out, n_jobs=args.jobs)
    for result in sweep.find_results(points, args.out):
        print(f"{result.status:<10}{result.point.name}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); returns the exit code."""
    parser = make_parser(
        "tools.sweep", "Train every point of a grid over a recipe and compare the results.", EXAMPLE
    )
    add_config_flags(parser)

    parser.add_argument(
        "--grid",
        action="append",
        required=True,
        metavar="KEY=V1,V2,…",
        help="values of a configuration key; several grids make their cross product; a comma in "
        "brackets belongs to the value; the key `variant` is the recipe's argument after the colon",
    )
    parser.add_argument(
        "--out", type=path, required=True, metavar="DIR", help="folder of the sweep"
    )
    add_jobs_flag(parser)
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="list the points and which are finished, and run none",
    )

    return run_command(_sweep, argv, parser)


if __name__ == "__main__":
    sys.exit(main())
