"""`python -m tools.shapes`: lists T5 shapes with their cost, or recommends one under a limit."""

import argparse
import dataclasses
import sys

from cramjax.budget import shape_table
from cramjax.config.cli import check_output, make_parser, path, run_command
from cramjax.errors import UserError
from cramjax.files import write_json

EXAMPLE = """columns:
  name, enc, dec, d_model, d_ff, heads, head_dim
  params          parameters, with --vocab_size rows of embedding
  flops           training FLOPs an input token, at --seq_len inputs and their targets
  state_bytes     float32 parameters and optimizer state (--optimizer)

examples:
  python -m tools.shapes --filter 'params<300e6' --filter 'enc>=16' --sort flops
  python -m tools.shapes --recommend --max_params 220M
  python -m tools.shapes small-nl20 base-nl18-ff2000"""


def _shapes(args: argparse.Namespace) -> None:
    check_output("--json", args.json)
    table = shape_table.ShapeTable(
        vocab_size=args.vocab_size, seq_len=args.seq_len, optimizer=args.optimizer
    )

    if args.recommend:
        rows = table.recommend(_limits(args))
        print(f"{shape_table.render(rows)}\n\n{shape_table.advice(rows)}")
    else:
        rows = table.select(args.shapes, args.filter, args.sort)
        print(shape_table.render(rows))

    if args.json:
        entries = [dataclasses.asdict(row) for row in rows]
        write_json(args.json, entries)


def _limits(args: argparse.Namespace) -> dict[str, float]:
    """Column → the limit that its flag sets."""
    limits = {}
    if args.max_params:
        limits["params"] = shape_table.parse_number(args.max_params)
    if args.max_flops:
        limits["flops"] = shape_table.parse_number(args.max_flops)
    if args.max_state_gb:
        limits["state_bytes"] = 1e9 * shape_table.parse_number(args.max_state_gb)
    if not limits:
        flags = "--max_params 220M, --max_flops 1.5G or --max_state_gb 2"
        raise UserError(f"--recommend: give a limit, as in {flags}")
    return limits


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "tools.shapes",
        "List the shapes of T5 with their cost, or recommend one under a limit.",
        EXAMPLE,
    )
    add = parser.add_argument
    add("shapes", nargs="*", metavar="NAME", help="shapes to show (default: all released ones)")
    add("--sort", choices=shape_table.COLUMNS, help="column to sort by (default: by family)")
    add(
        "--filter",
        action="append",
        default=[],
        metavar="TEST",
        help="'COLUMN<NUMBER'; repeatable",
    )

    add("--recommend", action="store_true", help="the DeepNarrow shape under the limits below")
    add("--max_params", metavar="N", help="parameters, as in 220M")
    add("--max_flops", metavar="N", help="training FLOPs an input token, as in 1.5G")
    add("--max_state_gb", metavar="N", help="GB (10^9 bytes) of parameters and optimizer state")

    add(
        "--optimizer",
        choices=("adafactor", "adamw"),
        default="adafactor",
        help="default: adafactor",
    )
    add(
        "--vocab_size",
        type=int,
        default=32128,
        metavar="N",
        help="rows of the embedding (default: 32128)",
    )
    add("--seq_len", type=int, default=512, metavar="N", help="input tokens (default: 512)")
    add("--json", type=path, metavar="FILE", help="write the rows there as well")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); returns the exit code."""
    return run_command(_shapes, argv, _make_parser())


if __name__ == "__main__":
    sys.exit(main())
