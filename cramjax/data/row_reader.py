"""Reads rows of training by number: the part that both loaders share."""

from __future__ import annotations

import dataclasses

import numpy as np

from cramjax.config.pairs import RowShape, n_tokens
from cramjax.data import index
from cramjax.data.dataset import TokenDataset

ROWS_A_READ = 2048
"""Rows read by one call: every call has a fixed cost, so small units are read several together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowReader:
    """Reads rows of training by number, the same for every loader.

    Attributes:
        dataset: The dataset whose training split is read.
        seed: Seed of the order.
        shape: Tokens in a row, including the [CLS] of `cls_token`; or the form of a row of pairs.
        cls_token: Put [CLS] before every sequence.
        sizes: Training sequences in each source.
        weights: Share of each source in the rows, up to a factor.
        orders: The order in which each source is read, unsigned [size], or None for a shuffled
            order.
        process_index: Index of this process.
        n_processes: Processes that share every unit.
    """

    dataset: TokenDataset
    seed: int
    shape: RowShape
    cls_token: bool
    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    orders: tuple[np.ndarray | None, ...]
    process_index: int
    n_processes: int

    @property
    def row_tokens(self) -> int:
        """Tokens in a row."""
        return n_tokens(self.shape)

    def local_rows(self, unit_rows: int) -> int:
        """Return how many rows of a unit this process reads.

        Raises:
            ValueError: if the processes cannot share the unit equally.
        """
        if unit_rows < 1 or unit_rows % self.n_processes:
            raise ValueError(
                f"a unit of {unit_rows} rows cannot be split over {self.n_processes} processes"
            )
        return unit_rows // self.n_processes

    def units(self, first_row: int, unit_rows: int, first_unit: int, n_units: int) -> np.ndarray:
        """Read this process's slice of consecutive units.

        Args:
            first_row: Row at which the stream begins.
            unit_rows: Rows in a unit, over all processes.
            first_unit: First unit to read, counted from the stream's beginning.
            n_units: Units to read.

        Returns:
            Tokens [n_units, local_rows, row_tokens] in the dataset's dtype.
        """
        n_local = self.local_rows(unit_rows)
        start = first_row + self.process_index * n_local

        # [n_units, 1] + [n_local] → the number of every row.
        units = np.arange(first_unit, first_unit + n_units, dtype=np.int64)
        numbers = start + units[:, None] * unit_rows + np.arange(n_local, dtype=np.int64)
        return self.read(numbers.reshape(-1)).reshape(n_units, n_local, self.row_tokens)

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Return tokens [n, row_tokens] of the rows numbered in `numbers`, int64 [n]."""
        source, sequence = self._sequences(numbers)
        return read_sequences(self.dataset, "train", source, sequence, self.shape, self.cls_token)

    def _sequences(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (source int64 [n], sequence int64 [n]) of the rows numbered in `numbers`."""
        if all(order is None for order in self.orders):
            return index.rows_at(self.seed, numbers, self.sizes, self.weights)

        source, _, position = index.positions_at(self.seed, numbers, self.sizes, self.weights)
        sequence = np.empty_like(position)
        for number in np.unique(source):
            order = self.orders[number]
            assert order is not None  # every source that has a weight has one
            is_of_source = source == number
            sequence[is_of_source] = order[position[is_of_source]]
        return source, sequence


def shorter(shape: RowShape, n_special: int) -> RowShape:
    """Return the form of what is read from the dataset for rows that begin with special tokens."""
    return shape - n_special if isinstance(shape, int) else shape


def units_a_read(n_local: int) -> int:
    """Return how many units of `n_local` rows one call reads."""
    return max(1, ROWS_A_READ // n_local)


def read_sequences(
    dataset: TokenDataset,
    split: str,
    source: np.ndarray,
    sequence: np.ndarray,
    shape: RowShape,
    cls_token: bool,
) -> np.ndarray:
    """Read sequences of several sources into rows.

    Args:
        dataset: The dataset.
        split: "train" or "heldout".
        source: Source of each row, int64 [n].
        sequence: Sequence of each row within its source, int64 [n].
        shape: Tokens in a row, or the form of a row of pairs.
        cls_token: Begin each row with [CLS], followed by a sequence of one token less.

    Returns:
        Tokens [n, row_tokens] in the dataset's dtype.
    """
    tokens = np.empty((len(source), n_tokens(shape)), dataset.dtype)
    n_special = int(cls_token)
    if cls_token:
        tokens[:, 0] = dataset.special_tokens["cls"]

    for number in np.unique(source):
        is_of_source = source == number
        tokens[is_of_source, n_special:] = dataset.read(
            split, int(number), sequence[is_of_source], shorter(shape, n_special)
        )
    return tokens
