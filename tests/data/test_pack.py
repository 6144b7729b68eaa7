"""Shards: where documents are cut, and what is written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cramjax.data import jobs, pack

SEP = 3


def encode(folder, groups, dtype="uint16"):
    """Write the files of an `EncodeJob` for each group, a list of documents; returns their stems.

    All documents are in the training split; each ends with [SEP].
    """
    folder.mkdir(parents=True, exist_ok=True)
    stems = []
    for number, documents in enumerate(groups):
        stem = folder / f"{number:06d}"
        tokens = np.concatenate([np.empty(0, np.int64), *documents])
        tokens.astype(np.dtype(dtype).newbyteorder("<")).tofile(f"{stem}.train.bin")
        np.array([len(tokens) for tokens in documents], "<u4").tofile(f"{stem}.train.lengths")
        stems.append(stem)
    return stems


def write_shards(folder, stems, *, max_tokens, dtype="uint16", vocab_size=90):
    """Write all shards of the training split; returns their jobs and records."""
    done = []
    for number, spans in enumerate(pack.plan_shards("train", stems, max_tokens)):
        job = pack.ShardJob(
            split="train",
            source=0,
            number=number,
            stem=folder / f"train-0-{number:05d}",
            spans=spans,
            dtype=dtype,
            vocab_size=vocab_size,
        )
        done.append((job, jobs.do(job)))
    return done


def documents(rng, n):
    lengths = rng.integers(1, 30, n)
    return [np.append(rng.integers(5, 90, length), SEP) for length in lengths]


def cut_one_by_one(lengths, max_tokens):
    """Lengths of the documents of each shard: one that does not fit begins the next."""
    shards = []
    for length in lengths:
        if not shards or sum(shards[-1]) + length > max_tokens:
            shards.append([])
        shards[-1].append(length)
    return shards


@given(st.integers(0, 2**31), st.lists(st.integers(0, 30), min_size=1, max_size=4))
def test_shards_hold_every_document_once_in_order(tmp_path_factory, seed, sizes):
    tmp_path = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(seed)
    dtype = ("uint16", "uint32")[seed % 2]
    groups = [documents(rng, n) for n in sizes]
    everything = [document for group in groups for document in group]
    stems = encode(tmp_path / "encoded", groups, dtype)
    done = write_shards(tmp_path, stems, max_tokens=100, dtype=dtype)
    entries = pack.finish(tmp_path, [job for job, _ in done], [record for _, record in done])

    written = []
    lengths = []
    for entry in entries:
        tokens = np.fromfile(tmp_path / entry["file"], np.dtype(dtype).newbyteorder("<"))
        offsets = np.load(tmp_path / entry["boundaries"])
        assert offsets.dtype == np.uint64 and len(tokens) == entry["tokens"] <= 100
        assert len(offsets) == entry["documents"]
        assert pack.file_sha256(tmp_path / entry["file"]) == entry["sha256"]
        written += np.split(tokens, offsets[1:].astype(int))
        lengths.append(np.diff(np.append(offsets, len(tokens)).astype(int)).tolist())
    assert [tokens.tolist() for tokens in written] == [tokens.tolist() for tokens in everything]
    assert lengths == cut_one_by_one(map(len, everything), 100)
    if everything:
        counts = np.bincount(np.concatenate(everything), minlength=90)
        assert np.load(tmp_path / "unigram.npy").tolist() == counts.tolist()


def test_how_documents_are_grouped_changes_no_byte(tmp_path):
    everything = documents(np.random.default_rng(0), 60)
    contents = []
    for name, cuts in (("one", []), ("many", [7, 7, 30, 59])):
        bounds = [0, *cuts, 60]
        groups = [everything[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
        folder = tmp_path / name
        write_shards(folder, encode(folder / "encoded", groups), max_tokens=100)
        contents.append({path.name: path.read_bytes() for path in folder.glob("*.bin")})
    assert contents[0] == contents[1] and len(contents[0]) > 3


def test_an_id_over_the_vocabulary_is_damage(tmp_path):
    stems = encode(tmp_path / "encoded", [[np.array([5, 95, SEP])]])
    with pytest.raises(pack.Damaged, match="over the vocabulary"):
        write_shards(tmp_path, stems, max_tokens=100)
