"""Batches for training and evaluation: rows of `index.py` read from a `TokenDataset`, ahead of the step.

The NumPy loader lives here, TensorFlow's in `tfdata_loader.py`; both give the same batches bit for bit and
nothing downstream can tell which feeds it. Corruption (masking) is not data: it happens on the device, in
`objectives`.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from cramjax.data import index
from cramjax.data.dataset import TokenDataset
from cramjax.errors import UserError

logger = logging.getLogger("cramjax")

ROWS_A_READ = 2048
"""Rows gathered by one call: small units are read several together, for every call has a price of its own."""

_HELDOUT_KEY = (
    0  # not the run's seed: runs that differ in it are compared on the same held-out sequences
)


class BatchLoader(Protocol):
    """A source of training batches that can start at any row."""

    def stream(self, first_row: int, unit_rows: int) -> Iterator[np.ndarray]:
        """Endless units [unit_rows / n_processes, seq_len] in the dataset's dtype.

        Unit k holds this process's contiguous slice of rows [first_row + k * unit_rows, first_row + (k+1) *
        unit_rows).
        """
        ...

    def close(self) -> None:
        """Let go of threads and files; the streams end with it."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowReader:
    """Reads rows of training by number. `seq_len`: tokens a row, the [CLS] of `cls_token` included."""

    dataset: TokenDataset
    seed: int
    seq_len: int
    cls_token: bool
    sizes: tuple[int, ...]
    orders: tuple[np.ndarray | None, ...]
    process_index: int
    n_processes: int

    def local_rows(self, unit_rows: int) -> int:
        """Rows of a unit that this process reads."""
        if unit_rows < 1 or unit_rows % self.n_processes:
            raise ValueError(
                f"a unit of {unit_rows} rows cannot be split over {self.n_processes} processes"
            )
        return unit_rows // self.n_processes

    def units(self, first_row: int, unit_rows: int, first_unit: int, n_units: int) -> np.ndarray:
        """Tokens [n_units, local_rows, seq_len] from unit `first_unit` of the stream from `first_row`."""
        n_local = self.local_rows(unit_rows)
        start = first_row + self.process_index * n_local
        units = np.arange(first_unit, first_unit + n_units, dtype=np.int64)
        numbers = start + units[:, None] * unit_rows + np.arange(n_local, dtype=np.int64)
        return self.read(numbers.reshape(-1)).reshape(n_units, n_local, self.seq_len)

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Tokens [n, seq_len] of the rows numbered in `numbers` int64 [n]."""
        weights = self.dataset.weights
        if any(order is not None for order in self.orders):
            source, _, position = index.positions_at(self.seed, numbers, self.sizes, weights)
            sequence = np.empty_like(position)
            for number in np.unique(source):
                sequence[source == number] = self.orders[number][position[source == number]]
        else:
            source, sequence = index.rows_at(self.seed, numbers, self.sizes, weights)
        return _read_sequences(
            self.dataset, "train", source, sequence, self.seq_len, self.cls_token
        )


class NumpyLoader:
    """A `BatchLoader` that reads on the thread that asks; `DevicePrefetch` makes that a background thread."""

    def __init__(self, reader: RowReader):
        self._reader = reader

    def stream(self, first_row: int, unit_rows: int) -> Iterator[np.ndarray]:
        """See `BatchLoader.stream`."""
        n_units = units_a_read(self._reader.local_rows(unit_rows))

        def units():
            first_unit = 0
            while True:
                yield from self._reader.units(first_row, unit_rows, first_unit, n_units)
                first_unit += n_units

        return units()

    def close(self) -> None:
        """Nothing to let go of."""


def units_a_read(n_local: int) -> int:
    """How many units of `n_local` rows are gathered by one call."""
    return max(1, ROWS_A_READ // n_local)


def open_loader(
    dataset: TokenDataset,
    *,
    seed: int,
    seq_len: int,
    cls_token: bool = False,
    order: str = "shuffled",
    loader: str = "auto",
    process_index: int = 0,
    n_processes: int = 1,
) -> BatchLoader:
    """A loader of the training split; arguments are the keys of `data` in the configuration.

    `order="sentence_length"` reads every epoch in the dataset's sentence order (Cramming, arXiv 2212.14034,
    section 4.4). UserError if a source has no sequence of that length, the sentence order was not prepared,
    or TensorFlow is asked for and absent.
    """
    if cls_token and "cls" not in dataset.special_tokens:
        raise UserError(
            f"data.cls_token=True: {dataset.directory} has a T5's tokenizer, without such a token; set it to False"
        )
    sizes = _sizes(dataset, seq_len - cls_token)
    orders: tuple[np.ndarray | None, ...] = (None,) * len(sizes)
    if order == "sentence_length":
        orders = tuple(
            dataset.sentence_order(source, seq_len - cls_token) if weight else None
            for source, weight in enumerate(dataset.weights)
        )
    reader = RowReader(
        dataset=dataset,
        seed=seed,
        seq_len=seq_len,
        cls_token=cls_token,
        sizes=sizes,
        orders=orders,
        process_index=process_index,
        n_processes=n_processes,
    )
    return (
        NumpyLoader(reader)
        if loader == "numpy"
        else _tfdata_loader(reader, required=loader == "tfdata")
    )


def heldout_batches(
    dataset: TokenDataset, *, seq_len: int, batch_size: int, n_batches: int, cls_token: bool = False
) -> list[tuple[np.ndarray, np.ndarray]]:
    """At most `n_batches` held-out batches: (tokens [batch_size, seq_len], weights float32 [batch_size]).

    Always the same ones, none twice: spread over the held-out split by a fixed permutation, the sources in
    the shares of training as far as their held-out sequences go. Weights are 1, but if there are fewer
    sequences than one batch takes, that one batch is filled with repeats of weight 0. UserError if there is
    none at all.
    """
    available = [
        size if weight else 0
        for size, weight in zip(
            dataset.n_sequences("heldout", seq_len - cls_token), dataset.weights, strict=True
        )
    ]
    if not sum(available):
        raise UserError(
            f"{dataset.directory} holds out no sequence of {seq_len} tokens to evaluate on: raise "
            "data.heldout_fraction or data.max_mb, or lower data.seq_len."
        )
    n_full = min(n_batches, sum(available) // batch_size)
    n_rows = min(max(n_full, 1) * batch_size, sum(available))
    source, sequence = _spread(n_rows, available, dataset.weights)
    filled = np.arange(max(n_full, 1) * batch_size)
    tokens = _read_sequences(
        dataset, "heldout", source[filled % n_rows], sequence[filled % n_rows], seq_len, cls_token
    )
    weights = (filled < n_rows).astype(np.float32)
    return list(
        zip(tokens.reshape(-1, batch_size, seq_len), weights.reshape(-1, batch_size), strict=True)
    )


class DevicePrefetch:
    """Reads and places batches on a background thread while the device computes.

    Ask for step n+1 with `request` before waiting for step n's result; `get` gives batches in the order they
    were asked for.
    """

    def __init__(
        self,
        stream: Iterator[np.ndarray],
        place: Callable[[np.ndarray], Any],
        *,
        n_max_units: int,
        depth: int = 2,
    ):
        """`stream`: units [local_rows, seq_len]; `place` puts [n_max_units, local_rows, seq_len] on a device.

        The shape is the same for every step, so nothing is compiled twice. `depth`: requests that may be
        pending, at most.
        """
        self._stream, self._place = stream, place
        self._n_max_units, self._depth = n_max_units, depth
        self._pending: collections.deque[concurrent.futures.Future] = collections.deque()
        self._executor = concurrent.futures.ThreadPoolExecutor(
            1, thread_name_prefix="cramjax-prefetch"
        )
        self._error: BaseException | None = None

    def request(self, n_units: int) -> None:
        """Begin to read the next `n_units` units of the stream, from 1 to `n_max_units`."""
        if not 1 <= n_units <= self._n_max_units:
            raise ValueError(f"{n_units} units asked for, outside [1, {self._n_max_units}]")
        if len(self._pending) >= self._depth:
            raise RuntimeError(
                f"{self._depth} batches are pending: get() one before the next request()"
            )
        self._pending.append(self._executor.submit(self._fill, n_units))

    def get(self) -> tuple[Any, float]:
        """The oldest batch asked for, placed, zero beyond the units asked for; and the seconds waited for it.

        Raises what reading or placing raised, here and at every later call.
        """
        if not self._pending:
            raise RuntimeError("get() without a request()")
        started_s = time.perf_counter()
        batch = self._pending.popleft().result()
        return batch, time.perf_counter() - started_s

    def close(self) -> None:
        """Drop what is pending and end the thread and the stream. May be called twice."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()
        if hasattr(self._stream, "close"):
            self._stream.close()

    def __enter__(self) -> DevicePrefetch:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _fill(self, n_units: int) -> Any:
        if self._error is not None:
            raise self._error
        try:
            first = next(self._stream)
            # A new array each time: on the CPU a placed array may be this very memory.
            batch = np.zeros((self._n_max_units, *first.shape), first.dtype)
            batch[0] = first
            for unit in range(1, n_units):
                batch[unit] = next(self._stream)
            return self._place(batch)
        except StopIteration:
            self._error = RuntimeError("the stream of batches ended")
            raise self._error from None
        except BaseException as error:
            self._error = (
                error  # units are lost: what follows would be other rows than those asked for
            )
            raise


def _sizes(dataset: TokenDataset, length: int) -> tuple[int, ...]:
    """Training sequences in each source; UserError if one with a weight has none, or none has a weight."""
    sizes = tuple(dataset.n_sequences("train", length))
    for source, (size, weight) in enumerate(zip(sizes, dataset.weights, strict=True)):
        if weight and not size:
            spec = dataset.manifest["sources"][source].get("spec", source)
            raise UserError(
                f"{dataset.directory}: source {spec!r} has no training sequence of {length} tokens: lower "
                "data.seq_len, or prepare more text (data.source, data.max_mb)."
            )
    if not any(dataset.weights):
        raise UserError(
            f"{dataset.directory}: no source has a weight above 0; set the weights of data.source."
        )
    return sizes


def _tfdata_loader(reader: RowReader, required: bool) -> BatchLoader:
    """The tf.data loader, or where it is not `required` and TensorFlow does not import, the NumPy one."""
    try:
        from cramjax.data.tfdata_loader import TfDataLoader

        return TfDataLoader(reader)
    except (
        Exception
    ) as error:  # a TensorFlow built for another NumPy or protobuf fails in ways of its own
        if required:
            raise UserError(
                f"data.loader='tfdata' needs TensorFlow, which does not import here ({error}): install "
                "tensorflow-cpu, or set data.loader='numpy' (the same batches)."
            ) from error
        if not isinstance(error, ModuleNotFoundError):
            logger.warning(
                "TensorFlow does not import (%s): the NumPy loader reads the same batches", error
            )
        return NumpyLoader(reader)


def _read_sequences(
    dataset: TokenDataset,
    split: str,
    source: np.ndarray,
    sequence: np.ndarray,
    seq_len: int,
    cls_token: bool,
) -> np.ndarray:
    """Tokens [n, seq_len] of (source, sequence) pairs; `cls_token`: [CLS] and a sequence of seq_len - 1."""
    tokens = np.empty((len(source), seq_len), dataset.dtype)
    if cls_token:
        tokens[:, 0] = dataset.special_tokens["cls"]
    for number in np.unique(source):
        of_source = source == number
        tokens[of_source, int(cls_token) :] = dataset.read(
            split, int(number), sequence[of_source], seq_len - cls_token
        )
    return tokens


def _spread(
    n_rows: int, available: list[int], weights: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """`n_rows` different (source, sequence) int64 pairs, the sources interleaved in the shares of `weights`.

    Rank r of a source is due at (r + 1/2) / weight, and the rows due first are taken: a source that runs out
    leaves its place to the others in their shares, and asking for more rows only adds rows at the end.
    """
    counts = np.minimum(available, n_rows)
    source = np.repeat(np.arange(len(counts)), counts)
    rank = np.concatenate([np.arange(count) for count in counts])
    first = np.argsort((rank + 0.5) / np.asarray(weights)[source], kind="stable")[:n_rows]
    source, sequence = source[first], rank[first]
    for number in np.unique(source):
        of_source = source == number
        sequence[of_source] = index.permute(sequence[of_source], available[number], _HELDOUT_KEY)
    return source, sequence
