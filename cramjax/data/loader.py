"""Serves batches for training and evaluation from a `TokenDataset`, ahead of the step.

The NumPy loader is here, TensorFlow's is in `tfdata_loader.py`. Both give the same batches bit for
bit, and nothing downstream can tell which one feeds it. Masking is not done here: it happens on
the device, in `objectives`.
"""

from __future__ import annotations

import collections
import concurrent.futures
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from cramjax.config.pairs import PairShape, RowShape, in_words, n_tokens
from cramjax.data import index
from cramjax.data.dataset import TokenDataset
from cramjax.data.row_reader import RowReader, read_sequences, shorter, units_a_read
from cramjax.errors import UserError

logger = logging.getLogger("cramjax")

# Held-out sequences that a larger data.heldout_fraction is to give.
_HELDOUT_SEQUENCES = 8

# Not the run's seed: runs that differ in it are compared on the same held-out sequences.
_HELDOUT_KEY = 0


class BatchLoader(Protocol):
    """A source of training batches that can start at any row."""

    def stream(self, first_row: int, unit_rows: int) -> Iterator[np.ndarray]:
        """Return endless units [unit_rows / n_processes, row_tokens] in the dataset's dtype.

        Unit k holds this process's contiguous slice of the rows from first_row + k * unit_rows
        to first_row + (k + 1) * unit_rows (exclusive).

        Args:
            first_row: Row at which the stream begins.
            unit_rows: Rows in a unit, over all processes.
        """
        ...

    def close(self) -> None:
        """Release threads and files; the streams end."""
        ...


class NumpyLoader:
    """A `BatchLoader` that reads on the calling thread: a background one of `DevicePrefetch`."""

    def __init__(self, reader: RowReader):
        self._reader = reader

    def stream(self, first_row: int, unit_rows: int) -> Iterator[np.ndarray]:
        """See `BatchLoader.stream`."""
        # Checked now: the generator's own code runs only at its first unit.
        n_units = units_a_read(self._reader.local_rows(unit_rows))
        return self._units(first_row, unit_rows, n_units)

    def _units(self, first_row: int, unit_rows: int, n_units: int) -> Iterator[np.ndarray]:
        first_unit = 0
        while True:
            yield from self._reader.units(first_row, unit_rows, first_unit, n_units)
            first_unit += n_units

    def close(self) -> None:
        """Do nothing: there are no threads or files to release."""


class CheckedLoader:
    """A `BatchLoader` that gives no row of a dataset that is known to be damaged."""

    def __init__(self, loader: BatchLoader, dataset: TokenDataset):
        self._loader = loader
        self._dataset = dataset

    def stream(self, first_row: int, unit_rows: int) -> Iterator[np.ndarray]:
        """See `BatchLoader.stream`; a unit with a foreign id raises RunFailed."""
        return self._checked(self._loader.stream(first_row, unit_rows))

    def _checked(self, units: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        try:
            for unit in units:
                self._dataset.verification.raise_damage()
                self._dataset.refuse_foreign(unit, "train")
                yield unit
        finally:
            # That of tf.data has threads.
            close_units = getattr(units, "close", None)
            if close_units is not None:
                close_units()

    def close(self) -> None:
        """Release threads and files; the streams end."""
        self._loader.close()


def open_loader(
    dataset: TokenDataset,
    *,
    seed: int,
    seq_len: RowShape,
    cls_token: bool = False,
    order: str = "shuffled",
    loader: str = "auto",
    process_index: int = 0,
    n_processes: int = 1,
) -> BatchLoader:
    """Open a loader of the training split.

    Args:
        dataset: The dataset.
        seed: Seed of the order.
        seq_len: Tokens in a row, including [CLS]; or the form of a row of pairs.
        cls_token: Begin each row with [CLS].
        order: "shuffled", or one of `orders` to read every epoch in that order (Cramming,
            arXiv 2212.14034, section 4.4).
        loader: "numpy", "tfdata", or "auto" for tf.data if TensorFlow imports.
        process_index: Index of this process.
        n_processes: Processes that share every unit.

    Raises:
        UserError: if a source has no sequence of that length, the order was not prepared, or
            TensorFlow is asked for and does not import.
    """
    sizes, orders = training_rows(dataset, seq_len=seq_len, cls_token=cls_token, order=order)
    reader = RowReader(
        dataset=dataset,
        seed=seed,
        shape=seq_len,
        cls_token=cls_token,
        sizes=sizes,
        weights=dataset.row_weights(shorter(seq_len, int(cls_token))),
        orders=orders,
        process_index=process_index,
        n_processes=n_processes,
    )

    opened: BatchLoader = NumpyLoader(reader)
    if loader != "numpy":
        opened = _tfdata_loader(reader, required=loader == "tfdata")
    return CheckedLoader(opened, dataset)


def training_rows(
    dataset: TokenDataset, *, seq_len: RowShape, cls_token: bool = False, order: str = "shuffled"
) -> tuple[tuple[int, ...], tuple[np.ndarray | None, ...]]:
    """Return the training sequences in each source and their order, as a `RowReader` takes them.

    See `open_loader` for the arguments and the errors.
    """
    if cls_token and "cls" not in dataset.special_tokens:
        raise UserError(
            f"data.cls_token=True: {dataset.directory} has a T5's tokenizer, without such a token; "
            "set it to False"
        )
    _refuse_other_rows(dataset, seq_len)
    read = shorter(seq_len, int(cls_token))
    return _sizes(dataset, read), _orders(dataset, order, read)


def _refuse_other_rows(dataset: TokenDataset, shape: RowShape) -> None:
    """Raise a UserError if text is to be read as pairs, or pairs as text."""
    wants_pairs = isinstance(shape, PairShape)
    if wants_pairs and not dataset.is_of_pairs:
        raise UserError(
            f"{dataset.directory} holds text, and objective.name=text_to_text learns from pairs: "
            "name a source of pairs in data.source"
        )
    if dataset.is_of_pairs and not wants_pairs:
        raise UserError(
            f"{dataset.directory} holds pairs of texts: set objective.name=text_to_text, or name "
            "another data.source"
        )


def describe_pairs(dataset: TokenDataset, shape: PairShape) -> list[str]:
    """Return lines that say how the training pairs lie in rows, and how many are too long."""
    lines = []
    for source, weight in enumerate(dataset.weights):
        if not dataset.is_of_pairs or not weight:
            continue
        rows = dataset.pair_rows("train", source, shape)
        inputs, targets = rows.filled()
        name = "pairs"
        if sum(map(bool, dataset.weights)) > 1:
            name = f"pairs of {dataset.manifest['sources'][source].get('spec', source)}"
        lines.append(
            f"{len(rows.order):,} {name} in {rows.n_rows:,} rows of {in_words(shape)} "
            f"({inputs:.0%} and {targets:.0%} full)"
        )
        if rows.n_long:
            verb = "are cut" if shape.cuts else "are left out"
            lines.append(
                f"  {rows.n_long:,} have a longer side and {verb} (data.long_pairs); raise "
                "data.seq_len or data.target_len"
            )
    return lines


def heldout_rows(dataset: TokenDataset, *, seq_len: RowShape, cls_token: bool = False) -> list[int]:
    """Return the held-out sequences in each source, 0 for a source that is not trained on.

    Raises:
        UserError: if no sequence is held out.
    """
    _refuse_other_rows(dataset, seq_len)
    available = dataset.n_sequences("heldout", shorter(seq_len, int(cls_token)))
    # A source without a weight is not trained on, so it is not evaluated on.
    weights = dataset.heldout_weights(shorter(seq_len, int(cls_token)))
    available = [size if weight else 0 for size, weight in zip(available, weights, strict=True)]
    if not sum(available):
        raise UserError(
            f"{dataset.directory} holds out no sequence of {in_words(seq_len)} to evaluate on: "
            f"{_cure_of_no_heldout(dataset, n_tokens(seq_len))}"
        )
    return available


def _cure_of_no_heldout(dataset: TokenDataset, row_tokens: int) -> str:
    """Returns what to do about held-out text of less than a sequence."""
    if any(source.get("split") == "heldout" for source in dataset.manifest["sources"]):
        return "give more text in data.heldout, or a smaller data.seq_len"
    n_there = dataset.manifest["train_tokens"] + dataset.manifest["heldout_tokens"]
    if n_there < 2 * _HELDOUT_SEQUENCES * row_tokens:
        return (
            f"there are {n_there:,} tokens of text in all; give more text, or a smaller "
            "data.seq_len"
        )
    # Whole documents are held out by chance, so more than one sequence is aimed at.
    fraction = dataset.manifest["filters"].get("heldout_fraction") or 0.0
    wanted = max(2 * fraction, _HELDOUT_SEQUENCES * row_tokens / n_there)
    return f"raise data.heldout_fraction to {min(0.5, math.ceil(wanted * 100) / 100):g}"


def heldout_batches(
    dataset: TokenDataset,
    *,
    seq_len: RowShape,
    batch_size: int,
    n_batches: int,
    cls_token: bool = False,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read held-out batches: always the same ones, and no sequence twice.

    They are spread over the held-out split by a fixed permutation. The sources have the shares of
    training, as far as their held-out sequences go.

    Args:
        dataset: The dataset.
        seq_len: Tokens in a row, including [CLS]; or the form of a row of pairs.
        batch_size: Rows in a batch.
        n_batches: The most batches to read.
        cls_token: Begin each row with [CLS].

    Returns:
        At most `n_batches` pairs (tokens [batch_size, row_tokens], weights float32 [batch_size]).
        Weights are 1. If there are fewer sequences than one batch takes, that one batch is filled
        with repeats of weight 0; and so is the last one of rows of pairs, which are all read where
        the batches have room.

    Raises:
        UserError: if no sequence is held out.
        RunFailed: if a sequence holds an id that is not below the dataset's `vocab_size`.
    """
    available = heldout_rows(dataset, seq_len=seq_len, cls_token=cls_token)
    n_available = sum(available)

    n_wanted = n_available // batch_size
    if isinstance(seq_len, PairShape):
        n_wanted = math.ceil(n_available / batch_size)
    n_rows = max(min(n_batches, n_wanted), 1) * batch_size
    n_different = min(n_rows, n_available)
    weights = dataset.heldout_weights(shorter(seq_len, int(cls_token)))
    source, sequence = _spread(n_different, available, weights)

    # Rows beyond the different ones repeat the first ones.
    rows = np.arange(n_rows)
    tokens = read_sequences(
        dataset,
        "heldout",
        source[rows % n_different],
        sequence[rows % n_different],
        seq_len,
        cls_token,
    )
    dataset.refuse_foreign(tokens, "heldout")
    row_weights = (rows < n_different).astype(np.float32)

    batched_tokens = tokens.reshape(-1, batch_size, n_tokens(seq_len))
    batched_weights = row_weights.reshape(-1, batch_size)
    return list(zip(batched_tokens, batched_weights, strict=True))


class DevicePrefetch:
    """Reads and places batches on a background thread while the device computes.

    Call `request` for step n+1 before waiting for step n's result. `get` returns batches in the
    order of the requests.
    """

    def __init__(
        self,
        stream: Iterator[np.ndarray],
        place: Callable[[np.ndarray], Any],
        *,
        n_max_units: int,
        depth: int = 2,
    ):
        """Start the thread.

        Args:
            stream: Yields units [local_rows, seq_len].
            place: Puts [n_max_units, local_rows, seq_len] on a device. The shape is the same for
                every step, so nothing is compiled twice.
            n_max_units: The most units in a batch.
            depth: The most requests that may be pending.
        """
        self._stream = stream
        self._place = place
        self._n_max_units = n_max_units
        self._depth = depth

        self._pending: collections.deque[concurrent.futures.Future] = collections.deque()
        self._executor = concurrent.futures.ThreadPoolExecutor(
            1, thread_name_prefix="cramjax-prefetch"
        )
        self._error: BaseException | None = None

    def request(self, n_units: int) -> None:
        """Begin to read the next `n_units` units of the stream.

        Raises:
            ValueError: if `n_units` is outside [1, n_max_units].
            RuntimeError: if `depth` requests are pending.
        """
        if not 1 <= n_units <= self._n_max_units:
            raise ValueError(f"{n_units} units asked for, outside [1, {self._n_max_units}]")
        if len(self._pending) >= self._depth:
            raise RuntimeError(
                f"{self._depth} batches are pending: get() one before the next request()"
            )
        self._pending.append(self._executor.submit(self._fill, n_units))

    def get(self) -> tuple[Any, float]:
        """Wait for the oldest request.

        Returns:
            The placed batch, zero beyond the requested units, and the seconds waited for it.

        Raises:
            RuntimeError: without a request, or if the stream has ended.
            Exception: what reading or placing raised, now and at every later call.
        """
        if not self._pending:
            raise RuntimeError("get() without a request()")
        started_s = time.perf_counter()
        batch = self._pending.popleft().result()
        return batch, time.perf_counter() - started_s

    def close(self) -> None:
        """Drop pending requests, and end the thread and the stream. May be called twice."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()
        # Generators have it, other iterators need not.
        close_stream = getattr(self._stream, "close", None)
        if close_stream is not None:
            close_stream()

    def __enter__(self) -> DevicePrefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fill(self, n_units: int) -> Any:
        """Read `n_units` units into a zeroed batch and place it; runs on the thread."""
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
            # Units are lost: later requests would get other rows than those they asked for.
            self._error = error
            raise


def _sizes(dataset: TokenDataset, shape: RowShape) -> tuple[int, ...]:
    """Count the training sequences, or the rows of pairs, in each source.

    Raises:
        UserError: if a source with a weight has no sequence, or no source has a weight.
    """
    sizes = tuple(dataset.n_sequences("train", shape))
    for source, (size, weight) in enumerate(zip(sizes, dataset.weights, strict=True)):
        if weight and not size:
            spec = dataset.manifest["sources"][source].get("spec", source)
            raise UserError(
                f"{dataset.directory}: source {spec!r} has no training sequence of "
                f"{in_words(shape)}: lower data.seq_len, or prepare more text (data.source, "
                "data.max_mb)."
            )
    if not any(dataset.weights):
        raise UserError(
            f"{dataset.directory}: no source has a weight above 0; set the weights of data.source."
        )
    return sizes


def _orders(dataset: TokenDataset, order: str, shape: RowShape) -> tuple[np.ndarray | None, ...]:
    """Return the prepared order of each source, or None for a source to shuffle or to leave out."""
    orders: list[np.ndarray | None] = [None] * len(dataset.weights)
    # Pairs are shuffled alone.
    if order != "shuffled" and isinstance(shape, int):
        for source, weight in enumerate(dataset.weights):
            if weight:
                orders[source] = dataset.order(order, source, shape)
    return tuple(orders)


def _tfdata_loader(reader: RowReader, required: bool) -> BatchLoader:
    """Return the tf.data loader; the NumPy one if TensorFlow is not required and not importable."""
    try:
        from cramjax.data.tfdata_loader import TfDataLoader

        return TfDataLoader(reader)
    except Exception as error:
        # Not only ImportError: a TensorFlow built for another NumPy or protobuf fails in its own
        # ways.
        if required:
            raise UserError(
                "data.loader='tfdata' needs TensorFlow, which does not import here "
                f"({error}): install tensorflow-cpu, or set data.loader='numpy' (the same batches)."
            ) from error
        if not isinstance(error, ModuleNotFoundError):
            logger.warning(
                "TensorFlow does not import (%s): the NumPy loader reads the same batches", error
            )
        return NumpyLoader(reader)


def _spread(
    n_rows: int, available: list[int], weights: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Choose `n_rows` different sequences, the sources interleaved in the shares of `weights`.

    Rank r of a source is due at (r + 1/2) / weight, and the rows that are due first are taken. So
    a source that runs out leaves its place to the others in their shares, and asking for more
    rows only adds rows at the end.

    Args:
        n_rows: Rows to choose, at most the sum of `available`.
        available: Sequences in each source.
        weights: Weight of each source.

    Returns:
        source int64 [n_rows] and sequence int64 [n_rows].
    """
    counts = np.minimum(available, n_rows)
    source = np.repeat(np.arange(len(counts)), counts)
    rank = np.concatenate([np.arange(count) for count in counts])
    due = (rank + 0.5) / np.asarray(weights)[source]
    first = np.argsort(due, kind="stable")[:n_rows]
    source = source[first]
    sequence = rank[first]

    # Ranks become sequences all over the split.
    for number in np.unique(source):
        is_of_source = source == number
        sequence[is_of_source] = index.permute(
            sequence[is_of_source], available[number], _HELDOUT_KEY
        )
    return source, sequence
