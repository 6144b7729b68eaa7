"""Writes tiny prepared datasets (format 1) of random tokens, without the code under test."""

import functools
import hashlib
import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
MEAN_DOCUMENT = 40


def random_documents(rng: np.random.Generator, n_tokens: int, vocab_size: int, dtype):
    """Documents of random length, each ended by sep.

    Returns:
        tokens [n_tokens] and offsets uint64 [n_documents].
    """
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
    """Write a dataset, and return its directory.

    Args:
        directory: Where it goes.
        train: Tokens of each shard of each source.
        heldout: The same for the held-out split.
        weights: Weight of each source (None: all 1).
        vocab_size: Ids are below it.
        dtype: Type of the tokens.
        seed: Seed of the tokens.
        sentence_order_seq_len: Write a random sentence order for sequences of this length.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    counts = np.zeros(vocab_size, np.int64)
    entries = []
    for split, sources in (("train", train), ("heldout", heldout)):
        for source, shards in enumerate(sources):
            for number, n_tokens in enumerate(shards):
                little_endian = np.dtype(dtype).newbyteorder("<")
                tokens, offsets = random_documents(rng, n_tokens, vocab_size, little_endian)
                stem = f"{split}-{source}-{number:05d}"
                entries.append(write_shard(directory, stem, tokens, offsets))
                if split == "train":
                    counts += np.bincount(tokens, minlength=vocab_size)
    np.save(directory / "unigram.npy", counts)

    if sentence_order_seq_len:
        for source, shards in enumerate(train):
            n_sequences = sum(n_tokens // sentence_order_seq_len for n_tokens in shards)
            order = rng.permutation(n_sequences).astype(np.uint32)
            np.save(directory / f"sentence_order-{sentence_order_seq_len}-{source}.npy", order)

    (directory / "tokenizer").mkdir(exist_ok=True)
    (directory / "tokenizer" / "tokenizer.json").write_text(word_tokenizer(vocab_size))

    facts = {
        "fingerprint": f"random-{seed}",
        "vocab_size": vocab_size,
        "dtype": dtype,
        "shards": entries,
    }
    write_manifest(directory, facts, weights or [1.0] * len(train))
    return directory


@functools.cache
def word_tokenizer(vocab_size: int) -> str:
    """Text of a tokenizer.json with the special tokens and as many words as it takes."""
    words = {f"[{role.upper()}]": number for role, number in SPECIAL.items()}
    words |= {f"word{number}": number for number in range(len(SPECIAL), vocab_size)}
    return Tokenizer(WordLevel(words, unk_token="[UNK]")).to_str()


def write_shard(directory: Path, stem: str, tokens: np.ndarray, offsets: np.ndarray) -> dict:
    """Write a shard's two files, and return its entry in the manifest."""
    split, source, _ = stem.split("-")
    (directory / f"{stem}.bin").write_bytes(tokens.tobytes())
    np.save(directory / f"{stem}.docs.npy", offsets)
    return {
        "file": f"{stem}.bin",
        "split": split,
        "source": int(source),
        "tokens": len(tokens),
        "documents": len(offsets),
        "sha256": hashlib.sha256(tokens.tobytes()).hexdigest(),
        "boundaries": f"{stem}.docs.npy",
    }


def write_manifest(directory: Path, facts: dict, weights: list[float]) -> None:
    """Write the manifest: `facts`, and everything that follows from its shards."""
    shards = facts["shards"]
    sources = [
        {"spec": f"random:{number}", "weight": weight, "revision": None}
        for number, weight in enumerate(weights)
    ]
    manifest = facts | {
        "format": 1,
        "tokenizer_sha256": hashlib.sha256(
            (directory / "tokenizer" / "tokenizer.json").read_bytes()
        ).hexdigest(),
        "special_tokens": SPECIAL,
        "documents": sum(entry["documents"] for entry in shards),
        "tokens": sum(entry["tokens"] for entry in shards),
        "train_tokens": sum(entry["tokens"] for entry in shards if entry["split"] == "train"),
        "heldout_tokens": sum(entry["tokens"] for entry in shards if entry["split"] == "heldout"),
        "source": "random",
        "sources": sources,
        "filters": {},
        "dropped": {},
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
