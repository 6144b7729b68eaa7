"""`python -m tools.report`: one page of HTML about runs, or a live one of runs that go on."""

import argparse
import sys

from cramjax.config.cli import at_least, check_output, make_parser, path, run_command
from cramjax.errors import UserError

EXAMPLE = """a PATH is the folder of a run, a sweep, a study, a track, a finetuning, a compression
or a dataset, a folder of runs, or a file of tools.plan --json; several stand side by side on one
page.

examples:
  python -m tools.report runs/quickstart --out report.html
  python -m tools.report runs/first runs/second runs/glue --out both.html --price 0.35
  python -m tools.report runs/bert_1day --serve

The page is one file: it opens from disk and loads nothing. With --serve it is at
http://127.0.0.1:8321 and follows the runs; it only reads, so it may start and stop at any time,
also on another machine that sees the folder. Ctrl-C ends it."""

PORT = 8321


def _report(args: argparse.Namespace) -> int:
    from cramjax.files import replacing
    from cramjax.reporting import page, server, subjects

    if (args.out is None) == (args.serve is None):
        raise UserError("give either --out FILE.html or --serve [PORT]")
    if args.serve is not None:
        return server.serve(args.paths, port=args.serve, price=args.price)

    check_output("--out", args.out)
    made = page.make(subjects.find(args.paths), price=args.price)
    text = page.render(made)
    with replacing(args.out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    for problem in made.problems:
        print(problem, file=sys.stderr)
    titles = ", ".join(section.title for section in made.sections)
    print(f"{args.out}: {len(text.encode()) / 1e6:.1f} MB, {titles}")
    return 0


def _price(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: must be a number") from None
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: must be at least 0")
    return value


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); returns the exit code."""
    parser = make_parser("tools.report", "Show runs on one page of HTML.", EXAMPLE)
    parser.add_argument(
        "paths", type=path, nargs="+", metavar="PATH", help="what the page is about"
    )
    parser.add_argument("--out", type=path, metavar="FILE", help="the page, a file")
    parser.add_argument(
        "--serve",
        type=at_least(0),
        nargs="?",
        const=PORT,
        metavar="PORT",
        help=f"serve the page on 127.0.0.1 instead and follow the runs (default port: {PORT}; "
        "0 takes a free one)",
    )
    parser.add_argument(
        "--price",
        type=_price,
        metavar="X",
        help="price of an hour of a run, in any currency; the page then says what each cost",
    )
    return run_command(_report, argv, parser)


if __name__ == "__main__":
    sys.exit(main())
