"""Tables of T5 shapes with their cost: filtered, sorted, and the one to take under a limit."""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Callable, Mapping, Sequence

from cramjax.budget.shapes import cost
from cramjax.config import shapes
from cramjax.config.shapes import Shape
from cramjax.errors import UserError

_OPERATORS = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One shape with its cost, in the columns of the table.

    `flops` are training FLOPs an input token; `state_bytes` are float32 parameters and what the
    optimizer keeps beside them.
    """

    name: str
    enc: int
    dec: int
    d_model: int
    d_ff: int
    heads: int
    head_dim: int
    params: int
    flops: float
    state_bytes: int


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapeTable:
    """Rows for shapes at one vocabulary, input length and optimizer ("adamw" or "adafactor")."""

    vocab_size: int
    seq_len: int
    optimizer: str

    def row(self, shape: Shape) -> Row:
        """Returns the row of `shape`."""
        n_params, flops, state_bytes = cost(
            shape, vocab_size=self.vocab_size, seq_len=self.seq_len, optimizer=self.optimizer
        )
        return Row(
            name=shape.name,
            enc=shape.n_layers,
            dec=shape.n_decoder_layers,
            d_model=shape.d_model,
            d_ff=shape.d_ff,
            heads=shape.n_heads,
            head_dim=shape.head_dim,
            params=n_params,
            flops=flops,
            state_bytes=state_bytes,
        )

    def select(self, names: Sequence[str], tests: Sequence[str], sort: str | None) -> list[Row]:
        """Returns the rows of `names`, or of every released shape if there are no names.

        Args:
            names: names of shapes, with knobs as in `small-nl24`.
            tests: only rows that pass all of these stay, as "params<300e6".
            sort: column to sort by; None keeps the order of the names.

        Raises:
            UserError: for a name or a test that cannot be read.
        """
        keep = [parse_test(text) for text in tests]
        rows = []
        for name in names or _all_names():
            row = self.row(shapes.parse(name))
            if all(test(row) for test in keep):
                rows.append(row)
        if sort:
            rows.sort(key=operator.attrgetter(sort))
        return rows

    def recommend(self, limits: Mapping[str, float]) -> list[Row]:
        """Returns the DeepNarrow shape within `limits`, then the largest stock size within them.

        Args:
            limits: column → largest value. Without a stock size within them there is one row.

        Raises:
            UserError: if even the smallest shape exceeds a limit.
        """

        def fits(shape: Shape) -> bool:
            row = self.row(shape)
            return all(getattr(row, column) <= limit for column, limit in limits.items())

        best = shapes.deep_narrow(fits)
        if best is None:
            raise UserError(
                "--recommend: no T5 is within that limit, tiny with one layer included; raise it"
            )
        stock = [shape for shape in map(shapes.parse, shapes.STOCK_WIDTHS) if fits(shape)]
        return [self.row(shape) for shape in (best, *stock[-1:])]


def _all_names() -> list[str]:
    v11 = [name for name in shapes.SIZES if name.startswith("v1_1")]
    return [*shapes.RELEASED, *shapes.RECALLED, *v11]


def parse_number(text: str) -> float:
    """Returns the number that `text` writes, as 220M, 1.5B or 3e9. Raises UserError."""
    match = re.fullmatch(r"([\d.]+(?:e[+-]?\d+)?)([KMGBT]?)", text.strip())
    if not match:
        raise UserError(f"{text!r}: not a number; write 220M, 1.5B or 3e9")
    return float(match[1]) * _UNITS[match[2]]


def parse_test(text: str) -> Callable[[Row], bool]:
    """Returns the test of a row that `text` writes, as "params<300e6". Raises UserError."""
    match = re.fullmatch(r"\s*(\w+)\s*(<=|>=|==|<|>)\s*(\S+)\s*", text)
    if not match or match[1] not in COLUMNS[1:]:
        raise UserError(
            f"--filter {text!r}: write a column, a comparison and a number, as in 'params<300e6'"
        )
    column = match[1]
    compare = _OPERATORS[match[2]]
    limit = parse_number(match[3])
    return lambda row: compare(getattr(row, column), limit)


def render(rows: Sequence[Row]) -> str:
    """Returns the rows below a head, in aligned columns."""
    table = [list(COLUMNS)]
    for row in rows:
        table.append([_cell(row, column) for column in COLUMNS])
    widths = [max(map(len, texts)) for texts in zip(*table, strict=True)]

    lines = []
    for line in table:
        cells = [text.rjust(width) for text, width in zip(line, widths, strict=True)]
        lines.append("  ".join([line[0].ljust(widths[0]), *cells[1:]]))
    return "\n".join(lines)


def _cell(row: Row, column: str) -> str:
    value = getattr(row, column)
    if column == "name":
        return value
    return f"{value:.3g}" if column == "flops" else f"{value:,}"


def advice(recommended: Sequence[Row]) -> str:
    """Returns what speaks for and against a recommendation of `ShapeTable.recommend`."""
    best, *stock = (row.name for row in recommended)
    low, high = shapes.DEEP_LAYERS
    beside = "no stock size is within the limit"
    if stock:
        beside = f"the stock size within the limit is {stock[0]}"
    return "\n".join(
        [
            f"{best}: depth before width, up to {low}-{high} layers "
            f"(Scale Efficiently, arXiv 2109.10686); {beside}.",
            "Against it: at a fixed time on one GPU, Cramming (arXiv 2212.14034, table 11) "
            "found nothing in deep-narrow shapes.",
            f"Train it: python -m cramjax.main --config configs/t5_efficient.py:{best}",
        ]
    )
