"""`python -m tools.probe`: what a model knows of grammar before anybody trains it for a task (BLiMP)."""

import argparse
import pathlib
import sys
import time

from cramjax.config.cli import at_least, check_output, make_parser, run_command
from cramjax.console import Meter, Pace, announce, time_left

EXAMPLE = """a pair counts as right if the model finds the grammatical sentence more likely: pseudo-log-likelihood of a masked
language model (every token masked in turn), and span scores of a T5. The control is the same network with random weights.

printed: accuracy in percent by paradigm, field and over all pairs; with --out FILE.json the same as JSON, FILE.md and FILE.png

example:
  python -m tools.probe --checkpoint runs/bert_1day --suite blimp --data_dir blimp/data --out runs/blimp.json"""


def _probe(args: argparse.Namespace) -> int:
    from cramjax.errors import UserError

    if args.suite != "blimp":
        raise UserError(f"--suite {args.suite}: unknown; there is blimp")
    if args.out and args.out.suffix in (".md", ".png"):
        raise UserError(
            f"--out {args.out}: has to be a file of JSON, as runs/blimp.json; .md and .png are written beside it"
        )
    check_output("--out", args.out)
    from cramjax.probing import blimp

    pairs = blimp.read(args.data_dir, args.limit)
    from cramjax import inference, start
    from cramjax.files import write_json
    from cramjax.probing import results

    start.start()
    model = inference.load(args.checkpoint)
    began = time.monotonic()
    scores = _scores(model, pairs, "model")
    rate = len(pairs) / (time.monotonic() - began)
    control = (
        None if args.no_control else _scores(inference.untrained(model), pairs, "random weights")
    )
    found = {
        "suite": "blimp",
        "checkpoint": str(args.checkpoint),
        "method": "span" if model.is_t5 else "pll",
    }
    found |= results.accuracies(pairs, scores, control) | {"pairs_per_s": round(rate, 1)}
    print(results.table(found))
    if args.out:
        write_json(args.out, found)
        args.out.with_suffix(".md").write_text(
            results.table(found, markdown=True) + "\n", encoding="utf-8"
        )
        results.draw(found, args.out.with_suffix(".png"))
    return 0


def _scores(model, pairs, name):
    """Returns float64 [pairs, 2], the scores of good and bad sentences; shows the progress."""
    from cramjax.probing import likelihood

    announce(f"{name}: {len(pairs):,} pairs, compiling…")
    sentences, places = [], []
    for pair in pairs:
        sentences += [pair.good, pair.bad]
        places += [pair.where, pair.where]

    with Meter(announce) as meter:
        pace = Pace()

        def show(fraction: float) -> None:
            left_s = pace.left_s(fraction, 1.0)
            if left_s is not None and fraction < 1:
                rate = pace.rate(fraction) * len(pairs)
                text = f"  {fraction:4.0%}  {rate:,.0f} pairs/s  {time_left(left_s)}"
                meter.update(text, fraction)

        scores = likelihood.sentence_scores(model, sentences, where=places, progress=show)
    return scores.reshape(-1, 2)


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); returns the exit code."""
    parser = make_parser(
        "tools.probe",
        "Probe a checkpoint zero-shot on minimal pairs of sentences (BLiMP).",
        EXAMPLE,
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="WORKDIR|HF_DIR",
        help="a run's folder, or a Hugging Face model's",
    )
    parser.add_argument("--suite", required=True, metavar="NAME", help="blimp")
    parser.add_argument(
        "--data_dir",
        required=True,
        metavar="DIR",
        help="folder with BLiMP's .jsonl files, one a paradigm",
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
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
