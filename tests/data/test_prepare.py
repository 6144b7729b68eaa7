"""From sources to a published dataset: counts, filters, determinism, mixtures, refusals."""

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from executors import InThisProcess
from text_source import FakeSource, document

from cramjax.config import languages, schema
from cramjax.config.resolve import get_config
from cramjax.data import jobs, prepare, spool, tokenizers
from cramjax.data.clean import CleanRules, cut
from cramjax.data.dataset import TokenDataset
from cramjax.data.plan import plan_preparation
from cramjax.errors import RunFailed, UserError
from cramjax.models.layers import FLOAT32
from cramjax.objectives import families


def settings(tmp_path, **changes):
    data = schema.defaults().data
    data.update(
        cache_dir=str(tmp_path / "data"),
        vocab_size=300,
        heldout_fraction=0.1,
        max_shard_tokens=4096,
        language="cramming",
        compressibility=None,
    )
    data.update(changes)
    data.update(languages.choices(data))
    return data


def documents_of(directory, split):
    """Read the token ids of every document of a split, as tuples without their [SEP]."""
    dataset = TokenDataset.open(directory)
    sep = dataset.special_tokens["sep"]
    documents = []
    for entry in dataset.manifest["shards"]:
        if entry["split"] == split:
            tokens = np.fromfile(directory / entry["file"], dataset.dtype)
            offsets = np.append(np.load(directory / entry["boundaries"]), len(tokens)).astype(int)
            for start, end in zip(offsets, offsets[1:], strict=False):
                assert tokens[end - 1] == sep and not (tokens[start : end - 1] == sep).any()
                documents.append(tuple(tokens[start : end - 1].tolist()))
    return documents


def hashes(directory):
    manifest = prepare.read_manifest(directory)
    shards = [(entry["file"], entry["sha256"]) for entry in manifest["shards"]]
    return shards, manifest["tokenizer_sha256"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The plain case: a little of everything is dropped. Source, settings and directory."""
    tmp_path = tmp_path_factory.mktemp("plain")
    source = FakeSource(texts=("", " \n\x00 ", "tiny", "the same twice " * 5, "漢字" * 30), bad=2)
    data = settings(tmp_path, min_chars=10)
    return source, data, prepare.prepare(data, [source], n_workers=1)


def test_every_document_is_counted_and_stands_once(prepared):
    source, data, directory = prepared
    manifest = prepare.read_manifest(directory)
    TokenDataset.open(directory).verification.at_once()
    # 6 parts have the same five texts: 2 empty, 1 short, and 2 that are kept once. Ideographs have
    # no tokens.
    dropped = {"empty": 12, "min_chars": 6, "duplicate": 10, "no_tokens": 1, "not_json": 12}
    assert manifest["dropped"] == dropped
    assert manifest["documents"] == 240 + 1
    assert manifest["documents_read"] == 240 + 12

    train = documents_of(directory, "train")
    heldout = documents_of(directory, "heldout")
    assert len(train) + len(heldout) == manifest["documents"]
    assert manifest["train_tokens"] == sum(map(len, train)) + len(train)
    assert manifest["tokens"] == manifest["train_tokens"] + manifest["heldout_tokens"]
    assert not set(train) & set(heldout) and 5 < len(heldout) < 60
    assert manifest["filters"]["min_chars"] == 10

    tokenizer = tokenizers.load(directory / "tokenizer" / "tokenizer.json")[0]
    expected = set()
    for number in range(240):
        encoding = tokenizer.encode(document(0, number), add_special_tokens=False)
        expected.add(tuple(encoding.ids))
    assert expected <= set(train) | set(heldout)
    assert len(manifest["shards"]) > 2


def test_unigram_counts_are_those_of_the_training_split(prepared):
    directory = prepared[2]
    with_sep = [np.append(ids, 3) for ids in documents_of(directory, "train")]
    vocab_size = prepare.read_manifest(directory)["vocab_size"]
    expected = np.bincount(np.concatenate(with_sep).astype(int), minlength=vocab_size)
    assert np.load(directory / "unigram.npy").tolist() == expected.tolist()


def test_documents_may_follow_each_other_without_an_end(prepared, tmp_path):
    source, data, directory = prepared
    without = data.copy_and_resolve_references()
    without.update(document_end=False, cache_dir=str(tmp_path), max_shard_tokens=1 << 20)
    other = prepare.prepare(without, [source], n_workers=1)
    dataset = TokenDataset.open(other)
    assert dataset.manifest["document_end"] is False
    assert prepare.read_manifest(directory)["document_end"] is True

    tokens = np.concatenate(dataset.shards["train", 0])
    expected = [token for ids in documents_of(directory, "train") for token in ids]
    assert tokens.tolist() == expected
    (entry,) = [entry for entry in dataset.manifest["shards"] if entry["split"] == "train"]
    starts = np.load(other / entry["boundaries"])
    lengths = [len(ids) for ids in documents_of(directory, "train")]
    assert starts.tolist() == np.cumsum([0, *lengths[:-1]]).tolist()

    # Where a document ends cannot be told any more.
    config = get_config(
        "bert_1day", f"data.source=prepared:{other}", "model.document_attention=True"
    )
    with pytest.raises(UserError, match="document_attention=True: tells documents by their ends"):
        families.build(config, dataset, FLOAT32)
    assert families.build(config, TokenDataset.open(directory), FLOAT32).network.document_attention


def test_leaves_nothing_but_the_dataset(prepared):
    directory = prepared[2]
    visible = [path.name for path in directory.parent.iterdir() if not path.name.startswith(".")]
    assert visible == [directory.name]
    assert {path.suffix for path in directory.iterdir()} == {".json", ".bin", ".npy", ""}
    assert [path.name for path in directory.iterdir() if path.is_dir()] == ["tokenizer"]


def test_a_prepared_dataset_is_returned_without_reading(prepared, tmp_path):
    source, data, directory = prepared
    manifest = directory / "manifest.json"
    written = manifest.stat().st_mtime_ns
    assert prepare.prepare(data, [source]) == directory

    # These settings are for reading, so they do not matter to a prepared dataset.
    of_other_length = data.copy_and_resolve_references()
    of_other_length.update(seq_len=32, loader="numpy", cls_token=True)
    assert prepare.prepare(of_other_length, [source]) == directory
    assert manifest.stat().st_mtime_ns == written

    of_other_length.source = f"prepared:{directory}"
    assert prepare.prepare(of_other_length) == directory


@pytest.mark.parametrize(
    "key, value",
    [
        ("vocab_size", 290),
        ("min_chars", 11),
        ("compressibility", 0.9),
        ("max_mb", 1.0),
        ("document_end", False),
    ],
)
def test_what_matters_changes_the_fingerprint(prepared, key, value):
    source, data, _ = prepared
    changed = data.copy_and_resolve_references()
    changed[key] = value
    name = plan_preparation(data, [source]).name
    assert plan_preparation(changed, [source]).name != name


def test_order_of_parts_and_number_of_workers_change_nothing(prepared, tmp_path):
    source, data, directory = prepared
    other = data.copy_and_resolve_references()
    other.cache_dir = str(tmp_path)
    reverse = FakeSource(texts=source.texts, bad=2, reverse=True)
    assert hashes(prepare.prepare(other, [reverse], n_workers=3)) == hashes(directory)


def test_mixture_takes_shares_of_max_mb_and_stops_reading(tmp_path):
    log = tmp_path / "log"
    log.mkdir()
    sources = [
        FakeSource(spec="fake:a", weight=3.0, seed=1, parts_n=80, log=str(log)),
        FakeSource(spec="fake:b", weight=1.0, seed=2, parts_n=80, log=str(log)),
    ]
    data = settings(tmp_path, max_mb=0.06, tokenizer_sample_mb=0.01)
    directory = prepare.prepare(data, sources, n_workers=1)
    dataset = TokenDataset.open(directory)
    tokens = [dataset.n_sequences("train", 1)[source] for source in (0, 1)]
    assert 2.2 < tokens[0] / tokens[1] < 4
    assert [source["weight"] for source in dataset.manifest["sources"]] == [3.0, 1.0]
    assert dataset.manifest["sources"][1]["spec"] == "fake:b"
    assert len(list(log.iterdir())) < 40
    assert dataset.manifest["documents_read"] == dataset.manifest["documents"]


def test_compressibility_keeps_documents_of_few_tokens_a_character(tmp_path):
    noise = " ".join(chr(33 + number * 7 % 90) for number in range(400))
    source = FakeSource(parts_n=1, documents_n=60, texts=(noise,))
    directory = prepare.prepare(settings(tmp_path, compressibility=0.4), [source], n_workers=1)
    assert prepare.read_manifest(directory)["dropped"] == {"compressibility": 1}


def test_near_duplicates_are_dropped(tmp_path):
    words = document(9, 1).split() * 6
    twin = [*words[:50], "otherwise", *words[51:]]
    source = FakeSource(parts_n=1, texts=(" ".join(words), " ".join(twin)))
    directory = prepare.prepare(settings(tmp_path, dedup_near=0.7), [source], n_workers=1)
    assert prepare.read_manifest(directory)["dropped"] == {"near_duplicate": 1}


def test_pieces_of_a_cut_document_stay_together(tmp_path):
    long_texts = []
    for number in range(20):
        sentences = [document(5, number * 50 + part) for part in range(6)]
        long_texts.append(" ".join(sentences))
    source = FakeSource(parts_n=2, documents_n=1, texts=tuple(long_texts))
    data = settings(tmp_path, max_chars=200, heldout_fraction=0.3, dedup_exact=True)
    directory = prepare.prepare(data, [source], n_workers=1)
    manifest = prepare.read_manifest(directory)
    assert manifest["dropped"] == {"duplicate": 20}
    tokenizer = tokenizers.load(directory / "tokenizer" / "tokenizer.json")[0]
    train = decoded(tokenizer, documents_of(directory, "train"))
    heldout = decoded(tokenizer, documents_of(directory, "heldout"))
    for text in long_texts:
        words = " ".join(tokenizer.decode(tokenizer.encode(text).ids).split())
        in_train = any(piece in words for piece in train if len(piece) > 100)
        in_heldout = any(piece in words for piece in heldout if len(piece) > 100)
        assert not (in_train and in_heldout)


def decoded(tokenizer, documents):
    return tokenizer.decode_batch([list(ids) for ids in documents])


def test_sentence_order_puts_short_sentences_first(tmp_path):
    data = settings(tmp_path, order="sentence_length", seq_len=16)
    directory = prepare.prepare(data, [FakeSource()], n_workers=1)
    dataset = TokenDataset.open(directory)
    order = dataset.order("sentence_length", 0, 16)
    period = tokenizers.load(directory / "tokenizer" / "tokenizer.json")[0].token_to_id(".")
    counts = (dataset.read("train", 0, order, 16) == period).sum(axis=1)
    assert (np.diff(counts) <= 0).all() and counts[0] > counts[-1]
    assert sorted(order.tolist()) == list(range(len(order)))


@pytest.mark.parametrize(
    "changes, sentence",
    [({"min_chars": 10**6}, "min_chars 240"), ({"compressibility": 0.0}, "compressibility 240")],
)
def test_nothing_left_is_a_sentence(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        prepare.prepare(settings(tmp_path, **changes), [FakeSource()], n_workers=1)


def test_no_parts_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="fake:docs: nothing to read"):
        prepare.prepare(settings(tmp_path), [FakeSource(parts_n=0)])


def test_a_damaged_unfinished_preparation_is_started_again(tmp_path, prepared):
    source, data, directory = prepared
    other = data.copy_and_resolve_references()
    other.cache_dir = str(tmp_path)
    partial = tmp_path / (directory.name + ".partial")
    (partial / "spool").mkdir(parents=True)
    entry = {"part": [0, 0], "writers": {"train": [2, 99999, 3]}}
    (partial / "journal.jsonl").write_text(json.dumps(entry) + "\n")
    summary = {"documents": 3, "bytes": 77, "dropped": {}, "examples": []}
    (partial / "spool" / "0-000001.json").write_text(json.dumps(summary))
    for end in ("rows", "signatures", "text.zst"):
        (partial / "spool" / f"0-000001.{end}").write_bytes(b"junk")
    assert hashes(prepare.prepare(other, [source], n_workers=2)) == hashes(directory)


def test_names_that_are_not_utf8(tmp_path, monkeypatch):
    # pytest's workers send captured text as UTF-8, and would die of the name in the warning.
    monkeypatch.setattr(logging.getLogger("cramjax"), "disabled", True)
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    texts = [json.dumps({"text": document(0, number)}) for number in range(40)]
    (folder / os.fsdecode(b"na\xefve.jsonl")).write_text("\n".join(["no json", *texts]))
    data = settings(tmp_path, source=f"text:{folder}", cache_dir=f"{folder}-data")
    directory = prepare.prepare(data, n_workers=1)
    manifest = prepare.read_manifest(directory)
    assert manifest["source"] == f"text:{folder}" and manifest["documents"] == 40
    assert prepare.prepare(data) == directory


def test_one_huge_document_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr("cramjax.data.spool.MAX_DOCUMENT_CHARS", 2000)
    huge = " ".join(document(1, number) for number in range(60))
    job = spool.ReadJob(
        source=FakeSource(texts=(huge,), documents_n=2),
        part=FakeSource().parts()[0],
        key=(0, 0),
        stem=tmp_path / "part",
        rules=CleanRules(normalize=True, min_chars=0, max_chars=None),
        with_signatures=False,
        limit_bytes=None,
    )
    assert jobs.do(job)["documents"] == len(cut(huge, 2000)) + 2


def test_the_sample_comes_from_all_of_a_corpus(tmp_path, monkeypatch):
    """Sorted by language, and with one document that is longer than the sample."""
    trained = []
    train = tokenizers.train

    def noted(kind, texts, **options):
        trained.extend(texts)
        return train(kind, texts, **options)

    monkeypatch.setattr("cramjax.data.build.tokenizers.train", noted)
    monkeypatch.setattr("cramjax.data.sample._UNIT_CHARS", 500)
    monkeypatch.setattr("cramjax.data.sample._UNIT_BYTES", 500)
    huge = " ".join(f"z{document(1, number)}" for number in range(500))
    halves = [f"{'xy'[number >= 400]}{document(2, number)}" for number in range(800)]
    source = FakeSource(texts=(huge, *halves), documents_n=0, parts_n=1)
    data = settings(tmp_path, tokenizer_sample_mb=0.05, heldout_fraction=0.0)
    directory = prepare.prepare(data, [source], executor=InThisProcess())
    n_bytes = sum(len(text.encode()) for text in trained)
    assert 50_000 <= n_bytes < 50_500 < len(huge)

    sizes = {"x": 0, "y": 0}
    for text in trained:
        if text[0] in sizes:
            sizes[text[0]] += len(text)
    assert min(sizes.values()) > 5_000 and n_bytes - sum(sizes.values()) > 10_000
    # The text itself is whole.
    assert prepare.read_manifest(directory)["documents_read"] == 801


def test_full_disk_is_a_sentence(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cramjax.data.jobs.CheckedFile.write", full)
    with pytest.raises(RunFailed, match="is full; free some space"):
        prepare.prepare(settings(tmp_path), [FakeSource(parts_n=1)], executor=InThisProcess())
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_mistake_found_while_reading_arrives_as_it_is(tmp_path):
    source = FakeSource(mistake="part-003 is no text; remove it")
    with pytest.raises(UserError, match=r"^part-003 is no text; remove it$"):
        prepare.prepare(settings(tmp_path), [source], n_workers=2)


def test_the_command_prints_where_the_dataset_is_and_refuses_in_a_sentence(
    prepared, tmp_path, root, capsys
):
    from tools import prepare_data

    recipe = ["--config", str(root / "configs" / "quickstart.py")]
    directory = prepared[2]
    assert prepare_data.main([*recipe, f"--config.data.source=prepared:{directory}"]) == 0
    out = capsys.readouterr().out
    assert str(directory) in out and "241" in out and "dropped: not_json" in out

    assert prepare_data.main([*recipe, f"--config.data.source=prepared:{tmp_path}"]) == 2
    assert "is not a prepared dataset" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_is_bounded_whatever_the_size(tmp_path, root):
    """CRAMJAX_BIG_MB=2500 is the full size.

    The bound is the one for 10 GB, where hashes of documents add 100 MB.
    """
    n_mb = int(os.environ.get("CRAMJAX_BIG_MB", "200"))
    script = f"""
import pathlib, resource, sys
sys.path[:0] = [{str(root)!r}, {str(root / "tests" / "data")!r}]
from text_source import BigSource
from cramjax.config import languages, schema
from cramjax.data import prepare
data = schema.defaults().data
data.update(cache_dir={str(tmp_path)!r}, vocab_size=4000, tokenizer_sample_mb=8.0)
data.update(languages.choices(data))
prepare.prepare(data, [BigSource(n_mb={n_mb})], n_workers=2)
# Of this process alone: getrusage would count the process that started it, up to its exec.
status = pathlib.Path("/proc/self/status").read_text()
main = int(status.partition("VmHWM:")[2].split()[0])
worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(main + 2 * worker)
"""

    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1_800_000, f"{done.stdout} kB"
    print(f"peak memory of all processes at most {int(done.stdout) / 1e3:.0f} MB")
