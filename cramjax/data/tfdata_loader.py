"""Reads the batches of `RowReader` through a tf.data pipeline: the only TensorFlow in training.

There is no shuffle buffer: the order is already a permutation of all rows (`index.py`). That mixes
better than any buffer and costs neither its memory nor its filling time. So an element of the
pipeline is its number: resuming means starting the range elsewhere, nothing is replayed, and no
iterator state is saved.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from cramjax.data.row_reader import RowReader, units_a_read

_N_PARALLEL_READS = 2
_N_READS_AHEAD = 2


class TfDataLoader:
    """A `BatchLoader` that reads ahead on tf.data's threads. Creating it imports TensorFlow."""

    def __init__(self, reader: RowReader):
        self._reader = reader
        self._tf = _import_tensorflow()
        self._streams: weakref.WeakSet[_Stream] = weakref.WeakSet()

    def stream(self, first_row: int, unit_rows: int) -> Iterator[np.ndarray]:
        """See `loader.BatchLoader.stream`."""
        tf = self._tf
        reader = self._reader
        n_local = reader.local_rows(unit_rows)
        n_units = units_a_read(n_local)

        def read(number: np.ndarray) -> np.ndarray:
            return reader.units(first_row, unit_rows, int(number) * n_units, n_units)

        def element(number: Any) -> Any:
            # tf.numpy_function loses the shape: [n_units, n_local, row_tokens].
            dtype = tf.as_dtype(reader.dataset.dtype)
            tokens = tf.numpy_function(read, [number], dtype, stateful=False)
            return tf.ensure_shape(tokens, [n_units, n_local, reader.row_tokens])

        # A private pool of few threads, because the cores belong to the training step.
        options = tf.data.Options()
        options.deterministic = True
        options.threading.private_threadpool_size = _N_PARALLEL_READS

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
    """Yields the single tensors of a tf.data dataset as NumPy arrays.

    Its threads end with `close`, or at exit. The finalizer makes a forgotten stream harmless:
    tf.data threads that call into Python while the interpreter is torn down wait for each other
    for ever.
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


def _import_tensorflow() -> Any:
    """Import TensorFlow, tell it to be quiet, and leave the accelerator's memory to JAX."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # No oneDNN kernel is used here, but oneDNN announces itself.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow as tf

    try:
        tf.config.set_visible_devices([], "GPU")
    except RuntimeError:
        # A notebook has started TensorFlow on its GPU already: that was its user's decision.
        pass
    return tf
