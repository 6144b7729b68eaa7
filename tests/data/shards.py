"""Tiny prepared datasets (format 1) of random tokens for tests, not written by the code under test."""

import hashlib
import json
from pathlib import Path

import numpy as np

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
MEAN_DOCUMENT = 40


def random_documents(rng: np.random.Generator, n_tokens: int, vocab_size: int, dtype):
    """(tokens [n_tokens], offsets uint64 [documents]): documents of random length, each ended by sep."""
    tokens = rng.integers(len(SPECIAL), vocab_size, n_tokens).astype(dtype)
    ends = np.flatnonzero(rng.random(n_tokens) < 1 / MEAN_DOCUMENT)
    ends = np.union1d(ends, [n_tokens - 1]) if n_tokens else ends
    tokens[ends] = SPECIAL["sep"]
    offsets = np.concatenate([[0], ends[:-1] + 1]) if n_tokens else ends
    return tokens, offsets.astype(np.uint64)


def write_dataset(
    directory: Path,
    *,
    train=((3000,),),
    heldout=((600,),),
    weights=None,
    vocab_size=500,
    dtype="uint16",
    seed=0,
    sentence_order_seq_len=None,
) -> Path:
    """Write a dataset; `train` and `heldout` give the tokens of each shard of each source."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    counts = np.zeros(vocab_size, np.int64)
    entries = []
    for split, sources in (("train", train), ("heldout", heldout)):
        for source, shards in enumerate(sources):
            for number, n_tokens in enumerate(shards):
                tokens, offsets = random_documents(
                    rng, n_tokens, vocab_size, np.dtype(dtype).newbyteorder("<")
                )
                name = f"{split}-{source}-{number:05d}"
                (directory / f"{name}.bin").write_bytes(tokens.tobytes())
                np.save(directory / f"{name}.docs.npy", offsets)
                if split == "train":
                    counts += np.bincount(tokens, minlength=vocab_size)
                entries.append(
                    {
                        "file": f"{name}.bin",
                        "split": split,
                        "source": source,
                        "tokens": n_tokens,
                        "documents": len(offsets),
                        "sha256": hashlib.sha256(tokens.tobytes()).hexdigest(),
                        "boundaries": f"{name}.docs.npy",
                    }
                )
    np.save(directory / "unigram.npy", counts)
    if sentence_order_seq_len:
        for source, shards in enumerate(train):
            n_sequences = sum(n_tokens // sentence_order_seq_len for n_tokens in shards)
            order = rng.permutation(n_sequences).astype(np.uint32)
            np.save(directory / f"sentence_order-{sentence_order_seq_len}-{source}.npy", order)
    weights = weights or [1.0] * len(train)
    manifest = {
        "format": 1,
        "fingerprint": f"random-{seed}",
        "tokenizer_sha256": "0" * 64,
        "vocab_size": vocab_size,
        "dtype": dtype,
        "special_tokens": SPECIAL,
        "documents": sum(entry["documents"] for entry in entries),
        "tokens": sum(entry["tokens"] for entry in entries),
        "train_tokens": sum(entry["tokens"] for entry in entries if entry["split"] == "train"),
        "heldout_tokens": sum(entry["tokens"] for entry in entries if entry["split"] == "heldout"),
        "source": "random",
        "sources": [
            {"spec": f"random:{i}", "weight": w, "revision": None} for i, w in enumerate(weights)
        ],
        "filters": {},
        "dropped": {},
        "shards": entries,
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory
