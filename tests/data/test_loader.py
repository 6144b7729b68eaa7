"""Batches are the same from every loader, from any row on, over any number of processes.

Also the thread that prefetches them.
"""

import importlib.util
import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from cramjax.data import index
from cramjax.data.dataset import TokenDataset
from cramjax.data.loader import DevicePrefetch, heldout_batches, open_loader
from cramjax.errors import UserError
from tests.data.shards import SPECIAL, write_dataset

SEQ_LEN = 16
ROOT = Path(__file__).parents[2]
needs_tensorflow = pytest.mark.skipif(
    not importlib.util.find_spec("tensorflow"), reason="no TensorFlow"
)
LOADERS = ["numpy", pytest.param("tfdata", marks=needs_tensorflow)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dataset")
    write_dataset(
        directory,
        train=((3000, 1000), (500,)),
        heldout=((1600,), (800,)),
        weights=[3, 1],
        sentence_order_seq_len=SEQ_LEN,
    )
    return TokenDataset.open(directory)


def take(dataset, n_units, *, first_row=0, unit_rows=8, loader="numpy", **options):
    opened = open_loader(dataset, **{"seed": 1, "seq_len": SEQ_LEN, "loader": loader} | options)
    units = list(itertools.islice(opened.stream(first_row, unit_rows), n_units))
    opened.close()
    return np.stack(units)


def test_batches_are_the_rows_of_the_index(dataset):
    batches = take(dataset, 40).reshape(-1, SEQ_LEN)
    sizes = dataset.n_sequences("train", SEQ_LEN)
    source, sequence = index.rows_at(1, np.arange(320), sizes, dataset.weights)
    for row, (number, position) in enumerate(zip(source, sequence, strict=True)):
        expected = dataset.read("train", number, np.array([position]), SEQ_LEN)[0]
        assert np.array_equal(batches[row], expected)


@pytest.mark.parametrize("loader", LOADERS)
def test_resumed_at_a_unit_it_goes_on_as_if_undisturbed(dataset, loader):
    # Units of 600 rows: several of them make a read for units of 8, none for these.
    for unit_rows in (8, 600):
        whole = take(dataset, 6, unit_rows=unit_rows, loader=loader)
        rest = take(dataset, 3, first_row=3 * unit_rows, unit_rows=unit_rows, loader=loader)
        assert np.array_equal(whole[3:], rest)
        assert not np.array_equal(whole[0], whole[1])


@needs_tensorflow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cls_token": True},
        {"order": "sentence_length"},
        {"seed": 7, "process_index": 1, "n_processes": 2, "first_row": 12345},
        {"unit_rows": 3000},
    ],
)
def test_tfdata_gives_the_numpy_batches_bit_for_bit(dataset, options):
    batches = [take(dataset, 5, loader=loader, **options) for loader in ("numpy", "tfdata")]
    assert batches[0].dtype == batches[1].dtype
    assert np.array_equal(*batches)


def test_processes_read_contiguous_slices_of_every_unit(dataset):
    whole = take(dataset, 5, unit_rows=12)
    parts = []
    for process in range(3):
        parts.append(take(dataset, 5, unit_rows=12, process_index=process, n_processes=3))
    assert np.array_equal(whole, np.concatenate(parts, axis=1))
    with pytest.raises(ValueError, match="processes"):
        take(dataset, 1, unit_rows=8, n_processes=3)


def test_cls_token_stands_before_sequences_one_shorter(dataset):
    rows = take(dataset, 4, cls_token=True).reshape(-1, SEQ_LEN)
    plain = take(dataset, 4, seq_len=SEQ_LEN - 1).reshape(-1, SEQ_LEN - 1)
    assert (rows[:, 0] == SPECIAL["cls"]).all()
    assert np.array_equal(rows[:, 1:], plain)


def test_sentence_order_is_followed_in_every_epoch(tmp_path):
    dataset = TokenDataset.open(
        write_dataset(tmp_path, train=((640,),), sentence_order_seq_len=SEQ_LEN)
    )
    rows = take(dataset, 10, order="sentence_length").reshape(2, 40, SEQ_LEN)
    order = np.load(tmp_path / f"sentence_order-{SEQ_LEN}-0.npy")
    for epoch in rows:
        assert np.array_equal(epoch, dataset.read("train", 0, order, SEQ_LEN))
    with pytest.raises(UserError, match="sentence_order-32-0.npy.*prepare"):
        take(dataset, 1, order="sentence_length", seq_len=32)
    np.save(tmp_path / f"sentence_order-{SEQ_LEN}-0.npy", order[:-1])
    with pytest.raises(UserError, match="39"):
        take(dataset, 1, order="sentence_length")


@pytest.mark.parametrize("loader", LOADERS)
def test_a_dataset_smaller_than_a_unit_wraps_into_the_next_epochs(tmp_path, loader):
    dataset = TokenDataset.open(write_dataset(tmp_path, train=((3 * SEQ_LEN,),)))
    unit = take(dataset, 1, unit_rows=9, loader=loader)[0]
    for epoch in unit.reshape(3, 3, SEQ_LEN):
        assert len(np.unique(epoch, axis=0)) == 3


def test_no_sequence_of_that_length_is_said(dataset, tmp_path):
    with pytest.raises(UserError, match=r"random:1.*600 tokens.*data\.seq_len"):
        take(dataset, 1, seq_len=600)
    with pytest.raises(UserError, match="smaller data.seq_len"):
        heldout_batches(dataset, seq_len=2000, batch_size=4, n_batches=1)
    with pytest.raises(UserError, match="weight"):
        take(TokenDataset.open(write_dataset(tmp_path, weights=[0])), 1)


def heldout(dataset, batch_size, n_batches):
    return heldout_batches(dataset, seq_len=SEQ_LEN, batch_size=batch_size, n_batches=n_batches)


def test_heldout_batches_are_fixed_different_and_in_the_shares_of_training(dataset):
    batches = heldout(dataset, 8, 5)
    again = heldout(dataset, 8, 5)
    longer = heldout(dataset, 8, 7)
    assert len(batches) == 5 and len(longer) == 7
    for number, (tokens, weights) in enumerate(batches):
        assert tokens.shape == (8, SEQ_LEN) and tokens.dtype == np.uint16
        assert weights.dtype == np.float32 and (weights == 1).all()
        assert np.array_equal(tokens, again[number][0])
        assert np.array_equal(tokens, longer[number][0])

    rows = distinct_rows(batches)
    of_second_source = dataset.read("heldout", 1, np.arange(50), SEQ_LEN)
    second = {row.tobytes() for row in of_second_source}
    assert len(rows) == 40 and len(rows & second) == 10


def distinct_rows(batches):
    rows = set()
    for tokens, _ in batches:
        rows.update(row.tobytes() for row in tokens)
    return rows


def test_heldout_takes_all_there_is_and_no_more(dataset):
    batches = heldout(dataset, 10, 1000)
    assert len(batches) == 15  # 100 + 50 sequences
    assert len(distinct_rows(batches)) == 150


def test_less_than_a_heldout_batch_is_filled_up_at_weight_zero(dataset):
    ((tokens, weights),) = heldout(dataset, 200, 3)
    assert weights.sum() == 150 and (weights[:150] == 1).all()
    assert len(np.unique(tokens[:150], axis=0)) == 150
    assert np.array_equal(tokens[150:], tokens[:50])


def run_python(code, *args):
    command = [sys.executable, "-c", code, *map(str, args)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


BLOCKED = """
import sys
from unittest import mock
with mock.patch.dict(sys.modules, {"tensorflow": None, "jax": None}):
    from cramjax.data.dataset import TokenDataset
    from cramjax.data.loader import open_loader
    dataset = TokenDataset.open(sys.argv[1])
    loader = open_loader(dataset, seed=1, seq_len=16, loader="auto")
    print(int(next(loader.stream(0, 8)).sum()))
    try:
        open_loader(dataset, seed=1, seq_len=16, loader="tfdata")
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_without_tensorflow_auto_reads_with_numpy(dataset):
    done = run_python(BLOCKED, dataset.directory)
    total, refusal = done.stdout.splitlines()
    assert int(total) == take(dataset, 1).sum()
    assert refusal.startswith("UserError") and "data.loader='numpy'" in refusal
    assert done.stderr == ""


# Slow reads are under way when the interpreter ends: without the stream's finalizer that hangs or
# aborts.
FORGOTTEN = """
import sys, time
from cramjax.data.dataset import TokenDataset
from cramjax.data.loader import open_loader
from cramjax.data.row_reader import RowReader
read = RowReader.units
def read_slowly(*arguments):
    time.sleep(0.3)
    return read(*arguments)
RowReader.units = read_slowly
loader = open_loader(TokenDataset.open(sys.argv[1]), seed=1, seq_len=16, loader="tfdata")
stream = loader.stream(0, 2048)
next(stream)
"""


@pytest.mark.slow
@needs_tensorflow
def test_a_forgotten_tfdata_stream_neither_hangs_the_exit_nor_writes(dataset):
    done = run_python(FORGOTTEN, dataset.directory)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_tensorflow
def test_a_closed_tfdata_loader_ends_its_streams(dataset):
    loader = open_loader(dataset, seed=1, seq_len=SEQ_LEN, loader="tfdata")
    stream = loader.stream(0, 8)
    next(stream)
    loader.close()
    assert next(stream, None) is None


def units(n):
    return (np.full((2, 4), number, np.uint16) for number in range(n))


def prefetch_threads():
    return [
        thread for thread in threading.enumerate() if thread.name.startswith("cramjax-prefetch")
    ]


def test_prefetch_fills_what_was_asked_for_in_order():
    with DevicePrefetch(units(9), lambda batch: batch, n_max_units=3) as prefetch:
        prefetch.request(1)
        batches = []
        for n_units in (3, 2):
            prefetch.request(n_units)
            batches.append(prefetch.get())
        batches.append(prefetch.get())
        assert prefetch_threads()
    assert not prefetch_threads()
    assert [batch[:, 0, 0].tolist() for batch, _ in batches] == [[0, 0, 0], [1, 2, 3], [4, 5, 0]]
    assert all(batch.shape == (3, 2, 4) and waited_s >= 0 for batch, waited_s in batches)
    assert not np.shares_memory(batches[0][0], batches[1][0])


def test_prefetch_works_while_the_caller_does_something_else():
    placed = threading.Event()
    with DevicePrefetch(units(1), lambda batch: placed.set(), n_max_units=1) as prefetch:
        prefetch.request(1)
        assert placed.wait(10)


def failing(n):
    yield from units(n)
    raise OSError("the disk is gone")


def test_prefetch_raises_what_reading_raised_and_again(caplog):
    with DevicePrefetch(failing(1), lambda batch: batch, n_max_units=2) as prefetch:
        for n_units in (1, 2):
            prefetch.request(n_units)
        assert prefetch.get()[0][0, 0, 0] == 0
        prefetch.request(1)
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                prefetch.get()
    assert not prefetch_threads()


def test_prefetch_raises_what_placing_raised_and_a_stream_that_ends():
    def place(batch):
        raise MemoryError("full")

    for prefetch, kind in (
        (DevicePrefetch(units(2), place, n_max_units=1), MemoryError),
        (DevicePrefetch(units(0), lambda batch: batch, n_max_units=1), RuntimeError),
    ):
        prefetch.request(1)
        with pytest.raises(kind):
            prefetch.get()
        prefetch.close()


def test_prefetch_refuses_misuse_and_closes_twice_with_requests_pending():
    prefetch = DevicePrefetch(units(9), lambda batch: batch, n_max_units=2, depth=2)
    with pytest.raises(RuntimeError, match="without"):
        prefetch.get()
    for n_units in (0, 3):
        with pytest.raises(ValueError, match="units"):
            prefetch.request(n_units)
    prefetch.request(1)
    prefetch.request(1)
    with pytest.raises(RuntimeError, match="pending"):
        prefetch.request(1)
    prefetch.close()
    prefetch.close()
    assert not prefetch_threads()
