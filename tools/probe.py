"""`python -m tools.probe`: measure what a model knows of grammar before it is finetuned (BLiMP)."""

import argparse
import sys

from cramjax.config.cli import at_least, check_output, in_home, make_parser, path, run_command

EXAMPLE = """a pair counts as right if the model finds the grammatical sentence more likely, by the
pseudo-log-likelihood of a masked language model (every token masked in turn) or the span scores
of a T5. The control is the same network with random weights.

printed: accuracy in percent by paradigm, by field and over all pairs; with --out FILE.json the same
as JSON, and FILE.md and FILE.png beside it

example:
  python -m tools.probe --checkpoint runs/bert_1day --suite blimp --data_dir blimp/data \\
      --out runs/blimp.json"""


def _probe(args: argparse.Namespace) -> int:
    from cramjax.errors import UserError
    from cramjax.probing import blimp, results

    if args.suite != "blimp":
        raise UserError(f"--suite {args.suite}: unknown; there is blimp")
    if args.out:
        results.check_out(args.out)
    check_output("--out", args.out)
    # Mistakes in the data are found before JAX starts.
    pairs = blimp.read(args.data_dir, args.limit)

    from cramjax import start
    from cramjax.probing import probe

    start.start()
    found = probe.probe(args.checkpoint, pairs, with_control=not args.no_control)
    print(results.table(found))
    if args.out:
        results.write(found, args.out)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit code."""
    parser = make_parser(
        "tools.probe",
        "Probe a checkpoint zero-shot on minimal pairs of sentences (BLiMP).",
        EXAMPLE,
    )
    parser.add_argument(
        "--checkpoint",
        type=in_home,
        required=True,
        metavar="WORKDIR|HF_DIR",
        help="a run's folder, or a Hugging Face model's",
    )
    parser.add_argument("--suite", required=True, metavar="NAME", help="blimp")
    parser.add_argument(
        "--data_dir",
        type=in_home,
        required=True,
        metavar="DIR",
        help="folder with BLiMP's .jsonl files, one for each paradigm",
    )

    parser.add_argument(
        "--out",
        type=path,
        metavar="FILE",
        help="accuracies as JSON, with a table and a picture beside it",
    )
    parser.add_argument(
        "--limit", type=at_least(1), metavar="N", help="only the first N pairs of each paradigm"
    )
    parser.add_argument(
        "--no_control", action="store_true", help="leave out the network with random weights"
    )
    return run_command(_probe, argv, parser)


if __name__ == "__main__":
    sys.exit(main())
