"""Pairs of texts: their sources, their way through a preparation, and rows that hold several."""

import gzip
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cramjax.config.pairs import PairShape
from cramjax.config.resolve import get_config
from cramjax.data import index, loader, pair_packing, prepare, tokenizers
from cramjax.data.dataset import TokenDataset
from cramjax.data.pair_rows import PairRows, Pairs
from cramjax.data.pair_text import SIGN
from cramjax.data.sources import open_sources
from cramjax.errors import RunFailed, UserError

SEP, PAD = 3, 0
WORDS = {"eins": "one", "zwei": "two", "drei": "three", "vier": "four", "fünf": "five"}
SHAPE = PairShape(n_inputs=24, n_targets=20)
WIDE = PairShape(n_inputs=90, n_targets=80)


def config_of(folder, source, *overrides):
    # The recipe's values are large for a corpus of some words.
    return get_config(
        "t5_pairs:smoke",
        f"data.source={source}",
        f"data.cache_dir={folder / 'cache'}",
        "data.vocab_size=64",
        "data.tokenizer=wordpiece",
        "data.max_mb=None",
        "data.heldout_fraction=0.1",
        *overrides,
    )


def sentences(n, seed=0):
    chooser = np.random.default_rng(seed)
    pairs = []
    for number in range(n):
        words = list(chooser.choice(list(WORDS), chooser.integers(1, 9)))
        pairs.append((" ".join(words) + f" {number}", " ".join(map(WORDS.get, words))))
    return pairs


def write_parallel(folder, pairs, names=("a.de", "a.en.gz")):
    paths = [folder / name for name in names]
    for side, path in enumerate(paths):
        content = "".join(f"{pair[side]}\n" for pair in pairs).encode()
        if path.suffix == ".gz":
            content = gzip.compress(content)
        path.write_bytes(content)
    return f"pairs:{paths[0]},{paths[1]}"


def read(folder, source, *overrides):
    """The documents of a source, and what was dropped: (reason, place)."""
    dropped = []
    config = config_of(folder, source, *overrides)
    documents = []
    for opened in open_sources(config.data):
        for part in opened.parts():
            documents += opened.read(part, lambda *drop: dropped.append(drop))
    return [tuple(document.split(SIGN)) for document in documents], dropped


PAIRS = [("ein Haus\x1f", "a house"), ("", "nothing"), ("zwei, drei", "two,\tthree"), ("ä", "ö")]


def write_records(path, records):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize("name", ["r.jsonl", "r.parquet"])
@pytest.mark.parametrize("nested", [False, True])
def test_records_give_the_pairs_of_two_fields(tmp_path, name, nested):
    records = [{"de": source, "en": target} for source, target in PAIRS]
    fields = ["data.source_field=de", "data.target_field=en"]
    if nested:
        records = [{"translation": record} for record in records]
        fields = [field.replace("=", "=translation.") for field in fields]
    write_records(tmp_path / name, records)
    found, dropped = read(tmp_path, f"pairs:{tmp_path / name}", *fields)
    # The sign that parts a pair is in no text.
    assert found == [("ein Haus ", "a house"), PAIRS[2], PAIRS[3]]
    assert [reason for reason, _ in dropped] == ["empty_side"]
    assert dropped[0][1].startswith(str(tmp_path / name))


def test_parquet_is_read_packed_and_around_a_damaged_row_group(tmp_path):
    pairs = sentences(300)
    records = [{"source": source, "target": target, "no": "x" * 99} for source, target in pairs]
    path = tmp_path / "a.parquet"
    options = {"compression": "none", "use_dictionary": False, "row_group_size": 100}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path, **options)
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert read(tmp_path, f"pairs:{path}.gz") == (pairs, [])

    content = bytearray(path.read_bytes())
    middle = content.index(pairs[150][0].encode())
    content[middle - 4 : middle + 1000] = b"\xff" * 1004
    path.write_bytes(content)
    found, dropped = read(tmp_path, f"pairs:{path}")
    assert found == pairs[:100] + pairs[200:]
    assert dropped == [("damaged_row_group", f"{path}:100")]


def test_fields_that_no_record_has_are_told(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"source": "eins", "target": "one"}\n' * 2)
    source = f"pairs:{tmp_path}/a.jsonl"
    with pytest.raises(UserError, match="no record has a field 'score'.*--config.data.keep"):
        read(tmp_path, source, "data.keep=score > 1")
    # Both fields are there, though no record has both: it is no pair, and counted.
    (tmp_path / "a.jsonl").write_text('{"source": "eins"}\n{"target": "one"}\n')
    found, dropped = read(tmp_path, source)
    assert not found and [reason for reason, _ in dropped] == ["no_pair_field"] * 2


@pytest.mark.parametrize("names", [["source", "target", "target"], ["source", "Target"]])
def test_columns_that_are_missing_or_doubled_are_told(tmp_path, names):
    columns = [pyarrow.array(["a"])] * len(names)
    table = pyarrow.Table.from_arrays(columns, names=names)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="'target'.*; .*set --config.data.source_field and"):
        read(tmp_path, f"pairs:{tmp_path}/a.parquet")


def test_two_columns_and_parallel_files_give_the_same_pairs(tmp_path):
    pairs = sentences(20) + [("", "empty"), ("voll", "  ")]
    (tmp_path / "a.tsv").write_text(
        "".join(f"{source}\t{target}\n" for source, target in pairs) + "three\tcol\tumns\n"
    )
    found, dropped = read(tmp_path, f"pairs:{tmp_path / 'a.tsv'}", "data.source_prefix=de: ")
    assert found == [(f"de: {source}", target) for source, target in pairs[:20]]
    assert [reason for reason, _ in dropped] == ["empty_side", "empty_side", "not_two_columns"]
    assert dropped[-1][1].endswith("a.tsv:23")

    parallel, dropped = read(tmp_path, write_parallel(tmp_path, pairs), "data.source_prefix=de: ")
    assert parallel == found and [place[-5:] for _, place in dropped] == ["de:21", "de:22"]


def test_a_far_too_long_line_moves_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr("cramjax.data.plain_text.MAX_DOCUMENT_BYTES", 100)
    pairs = sentences(9)
    pairs[4] = (pairs[4][0], "word " * 300)
    found, dropped = read(tmp_path, write_parallel(tmp_path, pairs, ("a.de", "a.en")))
    assert found == pairs[:4] + pairs[5:]
    assert dropped == [("line_too_long", f"{tmp_path / 'a.de'}:5")]


@pytest.mark.parametrize(
    "source, message",
    [
        ("pairs:{0}/a.de,{0}/short.en", "short.en: ends after line 3, and {0}/a.de has 5 lines"),
        ("pairs:{0}/short.en,{0}/a.de", "short.en: ends after line 3, and {0}/a.de has 5 lines"),
        ("pairs:{0}/a.de,{0}/none.en", "none.en: no such file"),
        ("pairs:{0}/a.de,{0}", "is a folder; name two files of lines"),
        ("pairs:{0}/a.de,{0}/a.de,{0}/a.de", "names 3 files"),
        ("pairs:{0}", "is a folder; name files, as in"),
        ("pairs:{0}/*.csv", "no such file; give a file or a glob"),
        ("pairs:{0}/a.de", "a.de: not a format of pairs"),
        ("pairs:{0}/words.tsv", "words.tsv:1: has 1 column, and no line has a source, a tab"),
        ("pairs:{0}/r.jsonl", "r.jsonl: no record has a field 'source' (found: en, fr); set"),
        ("pairs:{0}/r.parquet", "r.parquet: not a readable parquet file"),
        ("pairs:{0}/list.json", "list.json: its records go over lines; give a record a line"),
    ],
)
def test_a_source_that_is_no_pairs_is_refused_in_one_sentence(tmp_path, source, message):
    (tmp_path / "a.de").write_text("eins\n" * 5)
    (tmp_path / "short.en").write_text("one\n" * 3)
    (tmp_path / "words.tsv").write_text("one\ntwo\n")
    (tmp_path / "r.jsonl").write_text('{"en": "one", "fr": "un"}\n' * 2)
    (tmp_path / "r.parquet").write_text("no parquet")
    (tmp_path / "list.json").write_text('[\n{"source": "one"}\n]')
    with pytest.raises(UserError) as error:
        read(tmp_path, source.format(tmp_path))
    assert message.format(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["data.source=text:a.txt"], "data.source=text:a.txt: holds no pairs"),
        (["data.source=hf:a/b:*.jsonl"], "name the fields of its pairs with data.source_field"),
        (["data.source_field=de"], "data.source_field='de': set data.target_field too"),
        (["data.max_chars=100"], "data.max_chars=100: must be None for pairs"),
        (["data.compressibility=0.3"], "data.compressibility=0.3: must be None"),
        (["data.heldout=text:a.txt"], "data.heldout=text:a.txt: holds no pairs"),
        (["data.source=prepared:d", "data.heldout=pairs:a,b"], "has its held-out text already"),
        (["objective.name=span_corruption"], "holds pairs; objective.name=text_to_text"),
        (["data.long_pairs=keep"], "must be one of cut, drop"),
    ],
)
def test_keys_that_do_not_fit_pairs_are_told_before_anything_starts(overrides, message):
    with pytest.raises(UserError) as error:
        get_config("t5_pairs:smoke", *overrides)
    assert message in str(error.value)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    pairs = sentences(400)
    config = config_of(folder, write_parallel(folder, pairs), "data.source_prefix=say: ")
    return pairs, TokenDataset.open(prepare.prepare(config.data, n_workers=1))


def pairs_in(rows, shape, sep=None, pad=None):
    """The pairs of rows, (source ids, target ids), by the ends of their texts alone."""
    found = []
    for row in np.asarray(rows).reshape(-1, shape.row_tokens).tolist():
        sides = []
        for side in (row[: shape.n_inputs], row[shape.n_inputs :]):
            texts = [[]]
            for token in side:
                texts[-1].append(token)
                if token == sep:
                    texts.append([])
            assert all(token == pad for token in texts.pop())
            sides.append(texts)
        found += zip(*sides, strict=True)
    return found


def all_rows(dataset, shape, split):
    (n_rows,) = dataset.n_sequences(split, shape)
    return dataset.read(split, 0, np.arange(n_rows), shape)


def test_a_dataset_holds_every_pair_once_with_its_own_target(prepared):
    pairs, dataset = prepared
    assert dataset.is_of_pairs and dataset.manifest["documents"] == 400
    tokenizer = tokenizers.load(dataset.directory / "tokenizer" / "tokenizer.json")[0]
    # Without sentinels it is a T5's all the same: nothing stands before a text.
    assert tokenizers.is_of_t5(tokenizer) and "cls" not in dataset.special_tokens
    special = {"sep": dataset.special_tokens["sep"], "pad": dataset.special_tokens["pad"]}

    texts = []
    for split in ("train", "heldout"):
        found = pairs_in(all_rows(dataset, WIDE, split), WIDE, **special)
        texts += [(tokenizer.decode(source), tokenizer.decode(target)) for source, target in found]
    assert 10 < len(found) < 100  # held out
    wanted = {" ".join(f"say: {source}".split()): target for source, target in pairs}
    undone = {source.replace(" : ", ": "): target for source, target in texts}
    assert len(texts) == 400 and undone == wanted


def test_pairs_without_tokens_or_without_room_are_counted_apart(tmp_path):
    pairs = [*sentences(60), ("eins " * 5000, "one"), ("\u200b", "two")]
    source = write_parallel(tmp_path, pairs)
    config = config_of(tmp_path, source, "data.max_shard_tokens=4096", "data.normalize=False")
    dataset = TokenDataset.open(prepare.prepare(config.data, n_workers=1))
    dropped = dataset.manifest["dropped"]
    assert dropped["pair_too_long"] == 1 and dropped["no_tokens"] == 1
    assert dataset.manifest["documents"] == 60


def test_label_counts_are_those_of_the_targets(prepared):
    _, dataset = prepared
    special = {"sep": dataset.special_tokens["sep"], "pad": dataset.special_tokens["pad"]}
    counts = np.zeros(dataset.vocab_size, np.int64)
    for _, target in pairs_in(all_rows(dataset, WIDE, "train"), WIDE, **special):
        counts += np.bincount(target, minlength=dataset.vocab_size)
    np.testing.assert_array_equal(dataset.label_counts, counts)
    assert counts.sum() < dataset.unigram_counts.sum()


def test_every_epoch_reads_every_row_once_and_a_row_is_a_function_of_its_number(prepared):
    _, dataset = prepared
    (n_rows,) = dataset.n_sequences("train", SHAPE)
    stream = loader.open_loader(dataset, seed=1, seq_len=SHAPE, loader="numpy").stream(0, n_rows)
    first, second = next(stream), next(stream)
    assert not np.array_equal(first, second)
    rows = all_rows(dataset, SHAPE, "train")
    for epoch in (first, second):
        np.testing.assert_array_equal(np.unique(epoch, axis=0), np.unique(rows, axis=0))
    later = loader.open_loader(dataset, seed=1, seq_len=SHAPE, loader="numpy").stream(n_rows + 3, 2)
    np.testing.assert_array_equal(next(later), second[3:5])


def test_held_out_pairs_are_all_evaluated_where_the_batches_have_room(prepared):
    _, dataset = prepared
    (n_rows,) = dataset.n_sequences("heldout", SHAPE)
    batches = loader.heldout_batches(dataset, seq_len=SHAPE, batch_size=4, n_batches=100)
    assert sum(weights.sum() for _, weights in batches) == n_rows
    few = loader.heldout_batches(dataset, seq_len=SHAPE, batch_size=4, n_batches=1)
    assert len(few) == 1 and few[0][1].all()


def test_text_and_pairs_are_not_read_as_each_other(prepared, tmp_path):
    _, dataset = prepared
    with pytest.raises(UserError, match="holds pairs of texts: set objective.name"):
        loader.open_loader(dataset, seed=0, seq_len=16, loader="numpy")
    from tests.data.shards import write_dataset

    text = TokenDataset.open(write_dataset(tmp_path / "text"))
    with pytest.raises(UserError, match="holds text, and objective.name=text_to_text"):
        loader.heldout_rows(text, seq_len=SHAPE)


def test_a_held_out_set_of_its_own_is_taken_whole_and_never_trained_on(tmp_path):
    train, heldout = sentences(60), sentences(50, seed=5)[20:]
    # Ten of them stand in the training text, too.
    source = write_parallel(tmp_path, train + heldout[:10])
    other = write_parallel(tmp_path, heldout, ("b.de", "b.en"))
    config = config_of(tmp_path, source, f"data.heldout={other}")
    dataset = TokenDataset.open(prepare.prepare(config.data, n_workers=1))
    documents = {}
    for entry in dataset.manifest["shards"]:
        documents[entry["split"], entry["source"]] = entry["documents"]
    assert documents == {("heldout", 0): 30, ("train", 1): 60}
    assert dataset.manifest["dropped"] == {"duplicate": 10}
    assert dataset.weights == (0.0, 1.0) and dataset.heldout_weights(SHAPE) == (1.0, 0.0)
    batches = loader.heldout_batches(dataset, seq_len=SHAPE, batch_size=2, n_batches=99)
    assert sum(weights.sum() for _, weights in batches) == dataset.n_sequences("heldout", SHAPE)[0]
    unit = next(loader.open_loader(dataset, seed=0, seq_len=SHAPE, loader="numpy").stream(0, 4))
    assert unit.shape == (4, SHAPE.row_tokens)


def made_pairs(lengths, n_shards=1, seed=0):
    """Pairs of random tokens with these lengths, the ends included, in shards."""
    rng = np.random.default_rng(seed)
    shards, counts, whole = [], [], []
    for part in np.array_split(np.asarray(lengths, int).reshape(-1, 2), n_shards):
        tokens = []
        for pair in part:
            sides = [[*rng.integers(5, 99, n - 1).tolist(), SEP] for n in pair]
            whole.append(tuple(sides))
            tokens += sides[0] + sides[1]
        shards.append(np.array(tokens, np.uint16))
        counts.append(len(part))
    return Pairs.find(shards, counts, SEP), whole


LENGTHS = st.lists(st.tuples(st.integers(2, 30), st.integers(2, 30)), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 3), st.booleans(), st.integers(8, 26), st.integers(8, 26))
def test_rows_hold_every_pair_once_cut_or_left_out(lengths, n_shards, cuts, n_inputs, n_targets):
    shape = PairShape(n_inputs=n_inputs, n_targets=n_targets, cuts=cuts)
    pairs, whole = made_pairs(lengths, n_shards)
    rows = PairRows.of(pairs, shape)
    dtype = np.dtype(np.uint16)
    tokens = rows.read(np.arange(rows.n_rows), sep_id=SEP, pad_id=PAD, dtype=dtype)

    def cut(side, limit):
        return side if len(side) <= limit else [*side[: limit - 1], SEP]

    wanted = []
    for source, target in whole:
        is_long = len(source) > n_inputs or len(target) > n_targets
        if cuts or not is_long:
            wanted.append((cut(source, n_inputs), cut(target, n_targets)))
    assert sorted(pairs_in(tokens, shape, SEP, PAD)) == sorted(wanted)
    assert rows.n_long == sum(a > n_inputs or b > n_targets for a, b in lengths)
    if rows.n_rows:
        again = rows.read(np.array([rows.n_rows - 1, 0]), sep_id=SEP, pad_id=PAD, dtype=dtype)
        np.testing.assert_array_equal(again, tokens[[-1, 0]])


def test_rows_are_nearly_full():
    rng = np.random.default_rng(0)
    sources = np.clip(rng.lognormal(3.0, 0.6, 20_000), 2, 128)
    targets = np.clip(sources * rng.lognormal(0, 0.2, 20_000), 2, 128)
    lengths = np.stack([sources, targets], 1).astype(np.int32)
    order, ends = pair_packing.pack(lengths, np.array([128, 128], np.int32))
    assert sorted(order.tolist()) == list(range(20_000))
    filled = lengths.sum(axis=0) / (128 * len(ends))
    assert filled.min() > 0.93


def test_a_damaged_shard_is_named(prepared, tmp_path):
    import shutil

    _, dataset = prepared
    folder = tmp_path / "damaged"
    shutil.copytree(dataset.directory, folder)
    (entry,) = [entry for entry in dataset.manifest["shards"] if entry["split"] == "train"]
    path = folder / entry["file"]
    content = np.fromfile(path, "<u2")
    content[np.flatnonzero(content == dataset.special_tokens["sep"])[7]] = 9
    content.tofile(path)
    with pytest.raises(RunFailed, match=r"train-0-00000.bin is damaged \(it does not hold pairs"):
        loader.training_rows(TokenDataset.open(folder), seq_len=SHAPE)


def test_the_permutation_of_windows_is_one():
    # `pack` counts on it.
    numbers = index.permute(np.arange(1000, dtype=np.uint64), 1000, 0)
    assert sorted(numbers.tolist()) == list(range(1000))


def test_files_of_the_hub_and_examples_of_tfds_give_pairs_of_fields(tmp_path, monkeypatch):
    import types

    import huggingface_hub

    from cramjax.data import hub_source, tfds_source
    from cramjax.data.pair_text import PairForm

    form = PairForm(source_field="t.de", target_field="t.en", prefix="de: ")
    records = [{"t": {"de": source, "en": target}} for source, target in PAIRS]
    wanted = [f"de: ein Haus {SIGN}a house", *(f"de: {a}{SIGN}{b}" for a, b in PAIRS[2:])]
    write_records(tmp_path / "r.jsonl", records)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: tmp_path / "r.jsonl")
    common = {"spec": "x:y", "weight": 1.0, "index": 0, "field": "text", "form": form}
    files = hub_source.HubFiles(**common, repo="a/b", revision="1", files=(("r.jsonl", 9),))
    dropped = []
    (part,) = files.parts()
    assert list(files.read(part, lambda *drop: dropped.append(drop))) == wanted
    assert dropped == [("empty_side", f"{tmp_path / 'r.jsonl'}:2")]

    examples = []
    for source, target in PAIRS:
        examples.append({"t": {"de": source.encode(), "en": target.encode()}})
    info = types.SimpleNamespace(file_format=types.SimpleNamespace(value="array_record"))
    builder = types.SimpleNamespace(info=info, as_data_source=lambda split: examples)
    library = types.SimpleNamespace(builder=lambda name: builder)
    monkeypatch.setattr(tfds_source, "_tfds", lambda: library)
    split = tfds_source.TfdsSplit(
        **common, name="wmt", split="train", revision="1", shard_lengths=(4,)
    )
    (part,) = split.parts()
    assert list(split.read(part, lambda *drop: None)) == wanted
    with pytest.raises(UserError, match=r"no record has a field 't.de' \(found: text\); set"):
        tfds_source._check_fields(["text"], "data.source=tfds:wmt", "text", form, None)


def test_a_docstring_is_the_pair_of_its_first_paragraph_and_the_line_before(tmp_path, monkeypatch):
    from cramjax.data import installed_docs

    def docstring(text):
        return f'def f():\n    """{text}"""\n'

    filler = "It goes on for a while, so that the text is long enough to be taken. " * 4
    texts = [
        f"Return the answer.\n\n    {filler}\n    More of it.\n\n    Args:\n        x: A number.",
        f"{filler}",  # no line of its own
        f"No full stop\n\n    {filler}",
    ]
    (tmp_path / "module.py").write_text("".join(map(docstring, texts)))
    monkeypatch.setattr(installed_docs, "_roots", lambda: [str(tmp_path)])
    ((source, target),), dropped = read(tmp_path, "pairs:installed-docs")
    assert target == "Return the answer." and not dropped
    assert source.startswith("It goes on") and source.endswith("More of it.")
