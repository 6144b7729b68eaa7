"""A prepared dataset is read back as written; a damaged one is refused by the file's name."""

import errno
import json
import os

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from cramjax.data.dataset import TokenDataset
from cramjax.errors import UserError
from tests.data.shards import SPECIAL, write_dataset

TRAIN = ((1000, 50, 0, 777), (640,))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return TokenDataset.open(
        write_dataset(tmp_path_factory.mktemp("whole"), train=TRAIN, heldout=((300,), (99,)))
    )


def sequences_by_hand(dataset, split, source, seq_len):
    sequences = []
    for entry in dataset.manifest["shards"]:
        if (entry["split"], entry["source"]) == (split, source):
            tokens = np.fromfile(dataset.directory / entry["file"], dataset.manifest["dtype"])
            for start in range(0, len(tokens) - seq_len + 1, seq_len):
                sequences.append(tokens[start : start + seq_len])
    return np.array(sequences)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(
    st.integers(8, 300), st.sampled_from(["train", "heldout"]), st.integers(0, 1), st.randoms()
)
def test_sequences_never_straddle_shards_and_come_in_any_order(
    dataset, seq_len, split, source, random
):
    expected = sequences_by_hand(dataset, split, source, seq_len)
    assert dataset.n_sequences(split, seq_len)[source] == len(expected)
    if len(expected):
        wanted = np.array([random.randrange(len(expected)) for _ in range(40)])
        read = dataset.read(split, source, wanted, seq_len)
        assert read.dtype == np.uint16
        assert np.array_equal(read, expected[wanted])


def test_what_the_manifest_says(dataset, tmp_path):
    assert dataset.special_tokens == SPECIAL
    assert dataset.vocab_size == 500
    assert dataset.weights == (1.0, 1.0)
    assert dataset.unigram_counts.sum() == sum(map(sum, TRAIN))

    large = TokenDataset.open(write_dataset(tmp_path, vocab_size=70000, dtype="uint32"))
    assert large.read("train", 0, np.arange(20), 128).max() > 65536


def test_spread_rows_come_from_everywhere_in_the_shares_of_training(dataset, tmp_path):
    rows = dataset.spread(600, 64)
    by_hand = [sequences_by_hand(dataset, "train", source, 64) for source in (0, 1)]
    first, last = by_hand[0][[0, -1]], by_hand[1][[0, -1]]
    # Half of ten rows from each source, the first and the last among them.
    assert len(rows) == 10
    assert np.array_equal(rows[[0, 4]], first) and np.array_equal(rows[[5, 9]], last)
    # A source that has less gives what it has.
    assert len(dataset.spread(10**6, 64)) == sum(map(len, by_hand))


def test_numbers_outside_are_refused(dataset):
    for number in (-1, dataset.n_sequences("train", 64)[0]):
        with pytest.raises(IndexError):
            dataset.read("train", 0, np.array([number]), 64)
    with pytest.raises(ValueError, match="split"):
        dataset.n_sequences("test", 64)


@pytest.mark.parametrize("name", ["train-0-00000.bin", "train-0-00000.docs.npy", "unigram.npy"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_a_file_that_is_not_whole_is_named(tmp_path, name, damage):
    path = write_dataset(tmp_path) / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-6])
    else:
        path.write_bytes(b"")

    with pytest.raises(UserError, match=name) as caught:
        TokenDataset.open(tmp_path)
    assert "tools.prepare_data" in str(caught.value)


def test_a_disk_that_cannot_read_a_file_does_not_make_it_damaged(tmp_path, monkeypatch):
    def fail(path, **_):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(np.lib.format, "open_memmap", fail)
    with pytest.raises(UserError, match=r"npy cannot be read \(Input/output error\)"):
        TokenDataset.open(write_dataset(tmp_path))


def change(**values):
    return lambda manifest: manifest.update(values)


@pytest.mark.parametrize(
    "spoil, named",
    [
        (change(format=2), "format 2"),
        (change(dtype="int64"), "int64"),
        (change(vocab_size="many"), "vocab_size"),
        (change(special_tokens=SPECIAL | {"mask": 500}), "special_tokens.mask"),
        (change(sources=[{"spec": "x", "weight": -1}]), r"sources\[0\].weight"),
        (change(sources=[]), r"shards\[0\]"),
        (lambda manifest: manifest.pop("shards"), "shards"),
        (lambda manifest: manifest["shards"][1].pop("tokens"), r"shards\[1\].tokens"),
        (lambda manifest: manifest["shards"][0].update(split="test"), "'test'"),
    ],
)
def test_a_wrong_manifest_is_refused_in_a_sentence(tmp_path, spoil, named):
    path = write_dataset(tmp_path) / "manifest.json"
    manifest = json.loads(path.read_text())
    spoil(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=named) as caught:
        TokenDataset.open(tmp_path)
    assert "manifest.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[1]", "{", "null"])
def test_a_manifest_that_is_no_object_is_refused(tmp_path, content):
    (write_dataset(tmp_path) / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="manifest.json"):
        TokenDataset.open(tmp_path)


def test_a_directory_without_manifest_is_no_dataset(tmp_path):
    (write_dataset(tmp_path) / "manifest.json").unlink()
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="not a prepared dataset"):
            TokenDataset.open(directory)
