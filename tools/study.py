"""`python -m tools.study`: runs the sweeps and compressions of a study and writes its tables."""

import argparse
import sys

from cramjax.config.cli import add_jobs_flag, at_least, in_home, make_parser, path, run_command
from cramjax.errors import UserError

EXAMPLE = """studies:
  growth        networks that grow beside one that does not, at equal wall-clock and at equal FLOPs
                (docs/studies/growth.md)
  train_large   four sizes at equal wall-clock, finetuned, pruned and quantised: which is best at
                equal bytes (docs/studies/train_large_compress.md)
  mt            four sizes of a translation model at equal wall-clock, pruned and quantised: BLEU
                over time and at equal bytes (docs/studies/translation.md)

  track         changes to a small BERT, each against the best before it, with several seeds and
                Welch's test (docs/guide/better_recipes.md)
  track_t5      the same of a small T5

written to --out:
  report.md            the tables
  <sweep>/sweep.png    curves and fronts of each sweep, with sweep.csv and the runs, as tools.sweep
                       writes them
  <task>/pareto.png    scores against bytes, with pareto.json and the models, as tools.compress
                       writes them

examples:
  python -m tools.study growth --out runs/growth --config.data.source=text:articles.jsonl.zst
  python -m tools.study train_large --out runs/train_large --data_dir glue \\
      --config.data.source=text:articles.jsonl.zst
  python -m tools.study mt --out runs/mt --data_dir multi30k

With the same --out again, it goes on where it was."""

SEEDS = 5


def _study(args: argparse.Namespace) -> int:
    from cramjax.sweeps import studies, track
    from cramjax.sweeps.catalogue import STUDIES, TRACKS

    if args.name in TRACKS:
        if args.data_dir:
            raise UserError(f"--data_dir: {args.name} finetunes nothing; leave it out")
        n_seeds = args.seeds or SEEDS
        code = track.run(
            TRACKS[args.name], args.overrides, args.out, n_seeds=n_seeds, n_jobs=args.jobs
        )
    elif args.name in STUDIES:
        if args.seeds:
            raise UserError(f"--seeds {args.seeds}: {args.name} names its seeds itself")
        code = studies.run(
            STUDIES[args.name],
            args.overrides,
            args.out,
            data_dir=args.data_dir,
            n_jobs=args.jobs,
        )
    else:
        raise UserError(f"{args.name}: no such study; there are {', '.join([*STUDIES, *TRACKS])}")
    report = args.out / "report.md"
    if report.exists():
        print(report.read_text(encoding="utf-8"))
    return code


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); returns the exit code."""
    parser = make_parser("tools.study", "Run all of a study and write its tables.", EXAMPLE)

    parser.add_argument("name", metavar="STUDY", help="which one")
    parser.add_argument(
        "--out", type=path, required=True, metavar="DIR", help="folder of the study"
    )
    parser.add_argument(
        "--data_dir",
        type=in_home,
        metavar="DIR|tfds",
        help="where the tasks are, for a study that finetunes, or its other files",
    )
    parser.add_argument(
        "--seeds",
        type=at_least(2),
        metavar="N",
        help=f"runs of each entry of a track (default: {SEEDS})",
    )
    add_jobs_flag(parser)

    return run_command(_study, argv, parser)


if __name__ == "__main__":
    sys.exit(main())
