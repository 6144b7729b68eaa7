"""`python -m tools.shapes`: the shapes of T5 with their cost, and the one to take under a limit."""

import argparse
import json
import operator
import pathlib
import re
import sys

from cramjax.config.cli import check_output, make_parser, run_command
from cramjax.errors import UserError

EXAMPLE = """columns:
  name, enc, dec, d_model, d_ff, heads, head_dim
  params          parameters, with --vocab_size rows of embedding
  flops           training FLOPs an input token, at --seq_len inputs and their targets
  state_bytes     float32 parameters and optimizer state (--optimizer)

examples:
  python -m tools.shapes --filter 'params<300e6' --filter 'enc>=16' --sort flops
  python -m tools.shapes --recommend --max_params 220M
  python -m tools.shapes small-nl20 base-nl18-ff2000"""

COLUMNS = (
    "name",
    "enc",
    "dec",
    "d_model",
    "d_ff",
    "heads",
    "head_dim",
    "params",
    "flops",
    "state_bytes",
)
OPERATORS = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}


def _number(text: str) -> float:
    match = re.fullmatch(r"([\d.]+(?:e[+-]?\d+)?)([KMGBT]?)", text.strip())
    if not match:
        raise UserError(f"{text!r}: not a number; write 220M, 1.5B or 3e9")
    return float(match[1]) * UNITS[match[2]]


def _row(shape, args: argparse.Namespace) -> dict:
    from cramjax.budget.shapes import cost

    made = cost(shape, vocab_size=args.vocab_size, seq_len=args.seq_len, optimizer=args.optimizer)
    numbers = shape.model()
    names = ("n_layers", "n_decoder_layers", "d_model", "d_ff", "n_heads", "head_dim")
    return dict(zip(COLUMNS, [shape.name, *(numbers[name] for name in names), *made], strict=True))


def _keep(text: str):
    match = re.fullmatch(r"\s*(\w+)\s*(<=|>=|==|<|>)\s*(\S+)\s*", text)
    if not match or match[1] not in COLUMNS[1:]:
        raise UserError(
            f"--filter {text!r}: write a column, a comparison and a number, as in 'params<300e6'"
        )
    limit = _number(match[3])
    return lambda row: OPERATORS[match[2]](row[match[1]], limit)


def _print(rows: list[dict]) -> None:
    def shown(column, value):
        return value if column == "name" else f"{value:.3g}" if column == "flops" else f"{value:,}"

    table = [COLUMNS, *([shown(column, row[column]) for column in COLUMNS] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(COLUMNS))]
    for line in table:
        cells = [text.rjust(width) for text, width in zip(line, widths, strict=True)]
        print("  ".join([line[0].ljust(widths[0]), *cells[1:]]))


def _recommend(args: argparse.Namespace) -> list[dict]:
    from cramjax.config import shapes

    limits = {"params": args.max_params, "flops": args.max_flops}
    limits["state_bytes"] = f"{_number(args.max_state_gb)}B" if args.max_state_gb else None
    limits = {column: _number(text) for column, text in limits.items() if text}
    if not limits:
        raise UserError(
            "--recommend: give a limit, as in --max_params 220M, --max_flops 1.5G or --max_state_gb 2"
        )

    def fits(shape):
        row = _row(shape, args)
        return all(row[column] <= limit for column, limit in limits.items())

    best = shapes.deep_narrow(fits)
    if best is None:
        raise UserError(
            "--recommend: no T5 is within that limit, tiny with one layer included; raise it"
        )
    stock = [shapes.parse(size) for size in shapes.STOCK_WIDTHS if fits(shapes.parse(size))]
    rows = [_row(shape, args) for shape in [best, *stock[-1:]]]
    _print(rows)
    low, high = shapes.DEEP_LAYERS
    print(
        f"\n{best.name}: depth before width, up to {low}-{high} layers (Scale Efficiently, arXiv 2109.10686)",
        end="",
    )
    print(
        f"; the stock size within the limit is {stock[-1].name}."
        if stock
        else "; no stock size is within the limit."
    )
    print(
        "Against it: at a fixed time on one GPU, Cramming (arXiv 2212.14034, table 11) found nothing in deep-narrow shapes."
    )
    print(f"Train it: python -m cramjax.main --config configs/t5_efficient.py:{best.name}")
    return rows


def _list(args: argparse.Namespace) -> list[dict]:
    from cramjax.config import shapes

    names = args.shapes or [
        *shapes.RELEASED,
        *shapes.RECALLED,
        *(n for n in shapes.SIZES if n.startswith("v1_1")),
    ]
    keep = [_keep(text) for text in args.filter]
    rows = [
        row
        for row in (_row(shapes.parse(name), args) for name in names)
        if all(test(row) for test in keep)
    ]
    if args.sort:
        rows.sort(key=operator.itemgetter(args.sort))
    _print(rows)
    return rows


def _shapes(args: argparse.Namespace) -> None:
    check_output("--json", args.json)
    rows = _recommend(args) if args.recommend else _list(args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); returns the exit code."""
    parser = make_parser(
        "tools.shapes",
        "List the shapes of T5 with their cost, or recommend one under a limit.",
        EXAMPLE,
    )
    parser.add_argument(
        "shapes", nargs="*", metavar="NAME", help="shapes to show (default: all that were released)"
    )
    parser.add_argument("--sort", choices=COLUMNS, help="column to sort by (default: by family)")
    parser.add_argument(
        "--filter", action="append", default=[], metavar="TEST", help="'COLUMN<NUMBER'; repeatable"
    )
    parser.add_argument(
        "--recommend", action="store_true", help="the DeepNarrow shape under the limits below"
    )
    parser.add_argument("--max_params", metavar="N", help="parameters, as in 220M")
    parser.add_argument(
        "--max_flops", metavar="N", help="training FLOPs an input token, as in 1.5G"
    )
    parser.add_argument(
        "--max_state_gb", metavar="N", help="GB (10^9 bytes) of parameters and optimizer state"
    )
    parser.add_argument(
        "--optimizer",
        choices=("adafactor", "adamw"),
        default="adafactor",
        help="default: adafactor",
    )
    parser.add_argument(
        "--vocab_size",
        type=int,
        default=32128,
        metavar="N",
        help="rows of the embedding (default: 32128)",
    )
    parser.add_argument(
        "--seq_len", type=int, default=512, metavar="N", help="input tokens (default: 512)"
    )
    parser.add_argument(
        "--json", type=pathlib.Path, metavar="FILE", help="write the rows there as well"
    )
    return run_command(_shapes, argv, parser)


if __name__ == "__main__":
    sys.exit(main())
