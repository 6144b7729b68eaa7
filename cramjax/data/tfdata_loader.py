"""The batches of `loader.RowReader` through a tf.data pipeline: the only TensorFlow on the training side.

There is no shuffle buffer: the order is already a permutation of all rows (`index.py`), better mixed than any
buffer and free of its memory and its filling time. So a pipeline element is its number: resuming means
starting the range elsewhere, nothing is replayed and no iterator state is saved.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from cramjax.data.loader import RowReader, units_a_read

_N_PARALLEL_READS = 2
_N_READS_AHEAD = 2


def _import_tensorflow() -> Any:
    """TensorFlow, told to be quiet and to leave the accelerator's memory to JAX."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault(
        "TF_ENABLE_ONEDNN_OPTS", "0"
    )  # no kernel of it is used here, but it announces itself
    import tensorflow as tf

    try:
        tf.config.set_visible_devices([], "GPU")
    except (
        RuntimeError
    ):  # a notebook has started TensorFlow on its GPU already: that was its user's decision
        pass
    return tf


class TfDataLoader:
    """A `BatchLoader` that reads ahead on tf.data's threads. Imports TensorFlow when made (seconds)."""

    def __init__(self, reader: RowReader):
        self._reader = reader
        self._tf = _import_tensorflow()
        self._streams: weakref.WeakSet[_Stream] = weakref.WeakSet()

    def stream(self, first_row: int, unit_rows: int) -> Iterator[np.ndarray]:
        """See `loader.BatchLoader.stream`."""
        tf, reader = self._tf, self._reader
        n_local = reader.local_rows(unit_rows)
        n_units = units_a_read(n_local)

        def read(number: np.ndarray) -> np.ndarray:
            return reader.units(first_row, unit_rows, int(number) * n_units, n_units)

        def element(number):
            tokens = tf.numpy_function(
                read, [number], tf.as_dtype(reader.dataset.dtype), stateful=False
            )
            return tf.ensure_shape(tokens, [n_units, n_local, reader.seq_len])

        options = tf.data.Options()
        options.deterministic = True
        options.threading.private_threadpool_size = (
            _N_PARALLEL_READS  # the cores belong to the step
        )
        reads = tf.data.Dataset.range(np.iinfo(np.int64).max // n_units)
        reads = reads.map(element, num_parallel_calls=_N_PARALLEL_READS).prefetch(_N_READS_AHEAD)
        stream = _Stream(reads.unbatch().with_options(options))
        self._streams.add(stream)
        return stream

    def close(self) -> None:
        """End the streams and their threads."""
        for stream in list(self._streams):
            stream.close()


class _Stream:
    """A tf.data dataset of single tensors as NumPy arrays; its threads end with `close`, or at exit.

    The finalizer is what makes a forgotten stream harmless: tf.data threads that call into Python while the
    interpreter is torn down wait for each other for ever.
    """

    def __init__(self, dataset: Any):
        self._iterators = [iter(dataset)]
        self.close = weakref.finalize(self, self._iterators.clear)

    def __iter__(self) -> _Stream:
        return self

    def __next__(self) -> np.ndarray:
        if not self._iterators:
            raise StopIteration
        return next(self._iterators[0]).numpy()
