"""Damaged shards are found before training or beside it, and nothing more is read from them."""

import json
import time

import numpy as np
import pytest

from cramjax.data.dataset import TokenDataset
from cramjax.data.loader import heldout_batches, open_loader
from cramjax.data.verification import Verification
from cramjax.errors import RunFailed
from tests.data.shards import write_dataset


def flip(path, offset=0):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def compare_beside(dataset):
    """Compare in the background, and raise what was found."""
    with dataset.verification.begin() as verification:
        while verification.is_running:
            time.sleep(0.001)
        verification.raise_damage()


def test_at_once_names_the_flipped_shard(tmp_path):
    dataset = TokenDataset.open(write_dataset(tmp_path))
    dataset.verification.at_once()
    flip(tmp_path / "heldout-0-00000.bin", 100)
    with pytest.raises(RunFailed, match=r"heldout-0-00000\.bin is damaged") as caught:
        TokenDataset.open(tmp_path).verification.at_once()
    assert "tools.prepare_data" in str(caught.value)


def test_in_the_background_it_ends_the_stream_of_batches(tmp_path):
    flip(write_dataset(tmp_path) / "train-0-00000.bin", 100)
    dataset = TokenDataset.open(tmp_path)
    stream = open_loader(dataset, seed=1, seq_len=16, loader="numpy").stream(0, 8)
    next(stream)
    with pytest.raises(RunFailed, match=r"train-0-00000\.bin is damaged"):
        compare_beside(dataset)
    with pytest.raises(RunFailed, match=r"train-0-00000\.bin is damaged"):
        next(stream)


def test_what_was_compared_is_read_again_only_when_it_changed(tmp_path, monkeypatch):
    write_dataset(tmp_path, train=((3000, 2000),))
    compare_beside(TokenDataset.open(tmp_path))
    compared = []
    compare = Verification._compare

    def noted(self, path, *rest):
        compared.append(path.name)
        compare(self, path, *rest)

    monkeypatch.setattr(Verification, "_compare", noted)
    compare_beside(TokenDataset.open(tmp_path))
    assert compared == []

    flip(tmp_path / "train-0-00001.bin")
    with pytest.raises(RunFailed, match="train-0-00001"):
        compare_beside(TokenDataset.open(tmp_path))
    assert compared == ["train-0-00001.bin"]


@pytest.mark.parametrize("content", ["", "[", "[1]", '{"train-0-00000.bin": 3}', "[" * 5000])
def test_a_damaged_memory_of_it_is_as_none(tmp_path, content):
    flip(write_dataset(tmp_path) / "train-0-00000.bin")
    (tmp_path / ".verified.json").write_text(content)
    with pytest.raises(RunFailed, match="train-0-00000"):
        compare_beside(TokenDataset.open(tmp_path))


def test_a_file_that_went_away_does_not_end_a_run(tmp_path, caplog):
    dataset = TokenDataset.open(write_dataset(tmp_path))
    (tmp_path / "train-0-00000.bin").unlink()
    compare_beside(dataset)
    assert "train-0-00000.bin: no such file" in caplog.text


def test_a_run_that_ends_before_says_so(tmp_path, caplog):
    dataset = TokenDataset.open(write_dataset(tmp_path))
    dataset.verification._stopping.set()
    with dataset.verification.begin():
        pass
    assert "0 of its 2 files were compared" in caplog.text


def with_foreign_id(tmp_path, name):
    """A dataset whose manifest agrees with a shard that holds an id over the vocabulary."""
    path = write_dataset(tmp_path) / name
    tokens = np.fromfile(path, np.uint16)
    tokens[:] = 500
    path.write_bytes(tokens.tobytes())
    return TokenDataset.open(tmp_path)


def test_an_id_over_the_vocabulary_is_not_trained_on(tmp_path):
    dataset = with_foreign_id(tmp_path, "train-0-00000.bin")
    stream = open_loader(dataset, seed=1, seq_len=16, loader="numpy").stream(0, 8)
    with pytest.raises(RunFailed, match=r"train-0-00000\.bin is damaged .*id 500 of 500"):
        next(stream)
    with pytest.raises(RunFailed, match=r"train-0-00000\.bin is damaged .*id 500 of 500"):
        dataset.verification.at_once()


def test_an_id_over_the_vocabulary_is_not_evaluated_on(tmp_path):
    dataset = with_foreign_id(tmp_path, "heldout-0-00000.bin")
    with pytest.raises(RunFailed, match=r"heldout-0-00000\.bin is damaged .*id 500 of 500"):
        heldout_batches(dataset, seq_len=16, batch_size=4, n_batches=1)


def test_other_files_that_the_manifest_knows_are_compared_too(tmp_path):
    path = write_dataset(tmp_path) / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"files": {"train-0-00000.docs.npy": "0" * 64}}))
    with pytest.raises(RunFailed, match=r"train-0-00000\.docs\.npy is damaged"):
        TokenDataset.open(tmp_path).verification.at_once()
