"""The shard writer: what it writes, where it cuts, and going back to a state."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cramjax.data import pack
from cramjax.data.sealed import Damaged

SEP = 3


def documents(rng, n):
    return [rng.integers(5, 90, rng.integers(1, 30)).astype(np.uint32) for _ in range(n)]


def writer(directory, max_tokens=100, dtype="uint16"):
    return pack.ShardWriter(directory, "train", 0, dtype=dtype, sep=SEP, max_tokens=max_tokens)


def content(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_shards_hold_each_document_and_a_sep(tmp_path, dtype):
    given_documents = documents(np.random.default_rng(0), 50)
    shards = writer(tmp_path, dtype=dtype)
    shards.add(given_documents)
    shards.close()
    entries = pack.finish(tmp_path, dtype=dtype, vocab_size=90)
    files = [entry["file"] for entry in entries]
    assert len(files) > 3 and files == sorted(files)

    written = []
    for entry in entries:
        tokens = np.fromfile(tmp_path / entry["file"], np.dtype(dtype).newbyteorder("<"))
        offsets = np.load(tmp_path / entry["boundaries"])
        assert offsets.dtype == np.uint64 and len(tokens) == entry["tokens"] <= 100
        assert len(offsets) == entry["documents"]
        written += np.split(tokens, offsets[1:].astype(int))
    assert len(written) == 50
    for tokens, original in zip(written, given_documents, strict=True):
        assert tokens.tolist() == [*original.tolist(), SEP]
    counts = np.bincount(np.concatenate(written), minlength=90)
    assert np.load(tmp_path / "unigram.npy").tolist() == counts.tolist()


def test_a_document_longer_than_a_shard_is_cut(tmp_path):
    shards = writer(tmp_path, max_tokens=10)
    shards.add([np.arange(5, 30, dtype=np.uint32)])
    shards.close()
    entries = pack.finish(tmp_path, dtype="uint16", vocab_size=90)
    assert [entry["tokens"] for entry in entries] == [10, 10, 8]
    tokens = np.concatenate([np.fromfile(tmp_path / entry["file"], "<u2") for entry in entries])
    assert tokens[tokens != SEP].tolist() == list(range(5, 30))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 2**31))
def test_resume_takes_the_files_back(tmp_path_factory, n_before, n_lost, seed):
    tmp_path = tmp_path_factory.mktemp("resume")
    rng = np.random.default_rng(seed)
    before = documents(rng, n_before)
    lost = documents(rng, n_lost)
    after = documents(rng, 10)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    straight = writer(tmp_path / "a")
    straight.add(before + after)
    straight.close()

    # Closed only at the end: what it wrote after `state` is what a kill leaves behind.
    killed = writer(tmp_path / "b")
    killed.add(before)
    killed.sync()
    states = killed.news()
    killed.add(lost)
    killed.sync()

    going_on = writer(tmp_path / "b")
    going_on.resume(states)
    going_on.add(after)
    going_on.close()
    killed.close()
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_resume_refuses_files_that_are_too_short(tmp_path):
    with pytest.raises(Damaged, match="train-0-00002.bin has 0 bytes instead of 20"):
        writer(tmp_path).resume([[2, 10, 1, "", ""]])


def test_sentence_order_counts_full_stops(tmp_path):
    rows = np.array(
        [[7, 8, 7, 9], [1, 7, 1, 1], [7, 7, 7, 7], [1, 1, 1, 1], [7, 1, 1, 1]], np.uint32
    )
    shards = pack.ShardWriter(tmp_path, "train", 0, dtype="uint16", sep=7, max_tokens=1000)
    # The last token makes room for the sep, which is a "." here.
    shards.add([rows.ravel()[:-1]])
    shards.close()
    entries = pack.finish(tmp_path, dtype="uint16", vocab_size=10)
    pack.write_sentence_order(tmp_path, entries, dtype="uint16", seq_len=4, period=7)
    order = np.load(tmp_path / "sentence_order-4-0.npy")
    assert order.dtype == np.uint32
    assert order.tolist() == [2, 0, 4, 1, 3]
