"""Ready-made token ids: read exactly, kept as rows, trained on like the text they were made of."""

import json
import logging

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_source import FakeSource

import cramjax
from cramjax.config import languages, schema
from cramjax.config.resolve import get_config
from cramjax.data import id_rows, loader, prepare, ready_made
from cramjax.data.dataset import TokenDataset
from cramjax.errors import UserError
from tests import stepping
from tests.data.shards import word_tokenizer

ROW = 32
KINDS = (
    pyarrow.list_(pyarrow.int32()),
    pyarrow.large_list(pyarrow.uint16()),
    pyarrow.list_(pyarrow.int64(), ROW),
    pyarrow.list_view(pyarrow.int32()),
    pyarrow.large_list_view(pyarrow.uint64()),
)


def write(path, rows, kind=KINDS[0], field="input_ids", **options):
    column = pyarrow.array([None if row is None else list(row) for row in rows], kind)
    pyarrow.parquet.write_table(pyarrow.table({field: column}), path, **options)
    return path


def random_rows(n, seed=0, vocab_size=60):
    return np.random.default_rng(seed).integers(5, vocab_size, (n, ROW))


def settings(tmp_path, **changes):
    tokenizer = tmp_path / "tokenizer.json"
    if not tokenizer.exists():
        tokenizer.write_text(word_tokenizer(64))
    data = schema.defaults().data
    data.update(
        source=f"text:{tmp_path}/ids/*.parquet",
        text_field="input_ids",
        tokenizer=str(tokenizer),
        cache_dir=str(tmp_path / "data"),
        heldout_fraction=0.2,
        seq_len=ROW,
    )
    data.update(changes)
    data.update(languages.choices(data))
    return data


@pytest.fixture
def ids(tmp_path):
    """Two files of 500 and 300 rows."""
    (tmp_path / "ids").mkdir()
    first, second = random_rows(500, 1), random_rows(300, 2)
    write(tmp_path / "ids" / "a.parquet", first, row_group_size=37)
    write(tmp_path / "ids" / "b.parquet", second)
    return np.concatenate([first, second])


def rows_of(dataset, split):
    n_rows = dataset.n_sequences(split, ROW)[0]
    return dataset.read(split, 0, np.arange(n_rows), ROW).astype(int)


def as_set(rows):
    return {tuple(row) for row in rows.tolist()}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_rows_of_every_list_type_are_read_exactly(tmp_path, kind):
    rows = random_rows(200)
    path = write(tmp_path / "a.parquet", rows, kind, row_group_size=30)
    assert id_rows.is_list_of_ids(path, "input_ids") and id_rows.usual_length(path, "input_ids")
    dropped = []
    read = list(id_rows.read_rows(path, "input_ids", ROW, None, lambda *what: dropped.append(what)))
    assert np.array_equal(np.concatenate(read), rows) and not dropped


@given(
    st.lists(
        st.one_of(
            st.none(),
            st.lists(st.one_of(st.integers(0, 2**31 - 1), st.none()), max_size=5),
            st.lists(st.integers(0, 9), min_size=3, max_size=3),
        ),
        max_size=40,
    ),
    st.sampled_from([KINDS[0], KINDS[3]]),
    st.integers(1, 9),
)
def test_whatever_a_column_holds_rows_are_whole_or_counted(tmp_path_factory, rows, kind, group):
    path = tmp_path_factory.mktemp("column") / "a.parquet"
    write(path, rows, kind, row_group_size=group)
    dropped = []
    read = list(id_rows.read_rows(path, "input_ids", 3, None, lambda *what: dropped.append(what)))
    whole = [row for row in rows if row is not None and len(row) == 3 and None not in row]
    assert [row for batch in read for row in batch.tolist()] == whole
    assert len(dropped) == len(rows) - len(whole)
    first = [row for batch in id_rows.read_rows(path, "input_ids", 3, 2, print) for row in batch]
    assert [row.tolist() for row in first] == whole[:2]
    blocks = list(id_rows.blocks(iter(read), 4))
    assert [row for block in blocks for row in block.tolist()] == whole
    assert all(len(block) == 4 for block in blocks[:-1])


def test_every_row_stands_in_one_split_as_it_was(ids, tmp_path):
    directory = prepare.prepare(settings(tmp_path))
    dataset = TokenDataset.open(directory)
    dataset.verification.at_once()
    train, heldout = rows_of(dataset, "train"), rows_of(dataset, "heldout")
    assert len(train) + len(heldout) == len(ids) == 800
    assert as_set(train) | as_set(heldout) == as_set(ids)
    assert not as_set(train) & as_set(heldout)
    # Neighbours are held out together, so that pieces of one document are on one side.
    assert len(heldout) % 64 in (0, 500 % 64, 300 % 64, (500 % 64 + 300 % 64) % 64)

    manifest = dataset.manifest
    assert manifest["row_tokens"] == ROW and manifest["documents"] == 800
    assert manifest["filters"] == {"heldout_fraction": 0.2, "max_mb": None}
    assert manifest["dropped"] == {} and manifest["source"].endswith("/ids/*.parquet")
    assert dataset.unigram_counts.sum() == train.size
    assert prepare.prepare(settings(tmp_path)) == directory
    # The split does not depend on how the rows lie in row groups.
    for name, rows in (("a", ids[:500]), ("b", ids[500:])):
        write(tmp_path / "ids" / f"{name}.parquet", rows, KINDS[1], row_group_size=111)
    again = prepare.prepare(settings(tmp_path, cache_dir=str(tmp_path / "again")))
    assert as_set(rows_of(TokenDataset.open(again), "heldout")) == as_set(heldout)


def test_a_dataset_written_as_ids_gives_the_batches_of_its_text(tmp_path):
    """Tokens of a prepared text, written as rows and read back, come in the same batches."""
    data = schema.defaults().data
    data.update(cache_dir=str(tmp_path / "text"), vocab_size=300, heldout_fraction=0.0)
    data.update(languages.choices(data))
    text = TokenDataset.open(prepare.prepare(data, [FakeSource(documents_n=100)], n_workers=1))
    (tmp_path / "ids").mkdir()
    write(tmp_path / "ids" / "a.parquet", rows_of(text, "train"))

    tokenizer = str(text.directory / "tokenizer" / "tokenizer.json")
    settled = settings(tmp_path, tokenizer=tokenizer, heldout_fraction=0.0)
    ids = TokenDataset.open(prepare.prepare(settled))
    assert ids.special_tokens == text.special_tokens and ids.vocab_size == text.vocab_size
    batches = []
    for dataset in (text, ids):
        opened = loader.open_loader(dataset, seed=3, seq_len=ROW, loader="numpy")
        stream = opened.stream(5, 16)
        batches.append(np.stack([next(stream) for _ in range(20)]))
        opened.close()
    assert np.array_equal(*batches)


def test_a_run_trains_on_ids_and_its_model_knows_their_tokenizer(ids, tmp_path):
    with stepping.one_device():
        summary = cramjax.train(
            get_config(
                "quickstart",
                *stepping.RECIPES["quickstart"],
                f"data.source=text:{tmp_path}/ids/*.parquet",
                "data.text_field=input_ids",
                f"data.tokenizer={settings(tmp_path).tokenizer}",
                f"data.cache_dir={tmp_path}/data",
                "data.heldout_fraction=0.2",
                "data.loader=numpy",
                "data.max_mb=None",
                "microbatch_size=16",
                "budget.hours=None",
                "budget.steps=4",
                "eval.batches=1",
                "log.tensorboard=False",
            ),
            tmp_path / "run",
        )
    assert summary["steps"] == 4 and np.isfinite(summary["eval_loss"])
    tokenizer = json.loads((tmp_path / "run" / "tokenizer" / "tokenizer.json").read_text())
    assert tokenizer["model"]["vocab"]["word63"] == 63


def test_an_amount_takes_whole_rows_from_the_first_files(ids, tmp_path):
    n_rows = 100
    max_mb = (n_rows + 0.5) * ROW * ready_made.BYTES_PER_ID / 1e6
    amount = settings(tmp_path, max_mb=max_mb, heldout_fraction=0.0)
    dataset = TokenDataset.open(prepare.prepare(amount))
    assert dataset.manifest["documents"] == n_rows
    kept = as_set(rows_of(dataset, "train"))
    assert kept in (as_set(ids[:100]), as_set(ids[500:600]))  # of the file that is read first


def test_an_amount_goes_on_to_the_next_file_where_rows_are_left_out(ids, tmp_path):
    for name, rows in (("a", ids[:500]), ("b", ids[500:])):
        lists = [row[:9] if number % 12 == 0 else row for number, row in enumerate(rows.tolist())]
        write(tmp_path / "ids" / f"{name}.parquet", lists)
    for n_rows in (299, 490, 700):
        max_mb = (n_rows + 0.5) * ROW * ready_made.BYTES_PER_ID / 1e6
        data = settings(tmp_path, max_mb=max_mb, heldout_fraction=0.0)
        manifest = prepare.read_manifest(prepare.prepare(data))
        assert manifest["documents"] == n_rows


def test_a_later_file_that_is_none_is_named(ids, tmp_path):
    for name in ("a", "b"):
        garbage = tmp_path / "ids" / f"{name}.parquet"
        content = garbage.read_bytes()
        garbage.write_bytes(b"no parquet at all")
        with pytest.raises(UserError, match=f"{name}.parquet: not a readable parquet file"):
            prepare.prepare(settings(tmp_path, max_mb=0.1), n_workers=1)
        with pytest.raises(UserError, match=f"{name}.parquet: not a readable parquet file"):
            prepare.prepare(settings(tmp_path), n_workers=1)
        garbage.write_bytes(content)


def test_long_files_become_several_shards_and_rows_stay_whole(ids, tmp_path):
    data = settings(tmp_path, max_shard_tokens=3000, order="sentence_length")
    dataset = TokenDataset.open(prepare.prepare(data))
    entries = [entry for entry in dataset.manifest["shards"] if entry["split"] == "train"]
    assert len(entries) > 5 and all(entry["tokens"] % ROW == 0 for entry in entries)
    assert sum(dataset.n_sequences("train", ROW)) == sum(entry["documents"] for entry in entries)
    assert len(dataset.order("sentence_length", 0, ROW)) == sum(
        entry["documents"] for entry in entries
    )


def test_a_killed_preparation_goes_on_with_the_files_that_are_left(ids, tmp_path, monkeypatch):
    undisturbed = prepare.read_manifest(
        prepare.prepare(settings(tmp_path, cache_dir=str(tmp_path / "whole")))
    )
    read = []
    real = id_rows.read_rows

    def killed(path, *arguments):
        read.append(path)
        rows = real(path, *arguments)
        yield next(rows)
        if len(read) == 2:
            raise KeyboardInterrupt
        yield from rows

    monkeypatch.setattr(id_rows, "read_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(settings(tmp_path))
    manifest = prepare.read_manifest(prepare.prepare(settings(tmp_path)))
    assert len(read) == 3 and read[1] == read[2]  # the first file is not read again
    assert manifest["shards"] == undisturbed["shards"]


def test_a_damaged_shard_is_copied_again(ids, tmp_path, monkeypatch, caplog):
    whole = prepare.read_manifest(
        prepare.prepare(settings(tmp_path, cache_dir=str(tmp_path / "whole")))
    )
    real = ready_made.ReadyMade._publish

    def killed(self, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ready_made.ReadyMade, "_publish", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(settings(tmp_path))
    monkeypatch.setattr(ready_made.ReadyMade, "_publish", real)
    (partial,) = (tmp_path / "data").glob("*.partial")
    shard = sorted(partial.glob("train*.bin"))[-1]
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        manifest = prepare.read_manifest(prepare.prepare(settings(tmp_path)))
    assert "damaged" in caplog.text and manifest["shards"] == whole["shards"]


def test_rows_that_are_not_like_the_others_are_counted(tmp_path):
    (tmp_path / "ids").mkdir()
    rows = [list(map(int, row)) for row in random_rows(200)]
    rows[3], rows[7], rows[150] = None, rows[7][:5], [*rows[150][:5], None, *rows[150][6:]]
    write(tmp_path / "ids" / "a.parquet", rows)
    manifest = prepare.read_manifest(prepare.prepare(settings(tmp_path)))
    assert manifest["dropped"] == {"row_is_null": 2, "row_of_another_length": 1}
    assert manifest["documents"] == 197


def refusal(tmp_path, rows=None, **changes):
    (tmp_path / "ids").mkdir(exist_ok=True)
    if rows is None:
        rows = random_rows(100)
    write(tmp_path / "ids" / "a.parquet", rows)
    with pytest.raises(UserError) as error:
        prepare.prepare(settings(tmp_path, **changes))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "key, value",
    [("compressibility", 0.25), ("dedup_near", 0.8), ("min_chars", 9), ("max_chars", 99)],
)
def test_filters_of_text_are_refused_by_name(tmp_path, key, value):
    message = refusal(tmp_path, **{key: value})
    assert f"data.{key}={value}" in message and "token ids" in message and "set it to" in message


def test_ids_of_another_tokenizer_are_refused(tmp_path):
    for foreign in (64, 2**31 - 1, -1):
        rows = random_rows(100)
        rows[70, 3] = foreign
        message = refusal(tmp_path, rows)
        assert (
            f"the id {foreign}," in message and "from 0 to 63" in message and "a.parquet" in message
        )


def test_ids_need_their_tokenizer_and_rows_of_one_length(tmp_path):
    message = refusal(tmp_path, tokenizer="wordpiece")
    assert "--config.data.tokenizer=" in message
    documents = [list(range(5, 6 + number % 40)) for number in range(100)]
    message = refusal(tmp_path, documents)
    assert "other lengths" in message and "packed sequences" in message


def test_ids_and_text_do_not_mix(tmp_path):
    (tmp_path / "a.txt").write_text("a story\n")
    mixture = [[f"text:{tmp_path}/ids/*.parquet", 1], [f"text:{tmp_path}/a.txt", 1]]
    assert "a mixture is of ids alone or of text alone" in refusal(tmp_path, source=mixture)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a story"]}), tmp_path / "b.parquet")
    mixture[1][0] = f"text:{tmp_path}/b.parquet"
    assert "b.parquet: has no field 'input_ids'" in refusal(tmp_path, source=mixture)


def test_a_length_that_joins_rows_is_said(ids, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        prepare.prepare(settings(tmp_path, seq_len=16))
    assert "without a separator" not in caplog.text
    with caplog.at_level(logging.WARNING):
        prepare.prepare(settings(tmp_path, seq_len=48, cache_dir=str(tmp_path / "longer")))
    assert "data.seq_len=48" in caplog.text and "without a separator" in caplog.text


def test_text_with_a_tokenizer_of_its_own_is_text(tmp_path):
    pyarrow.parquet.write_table(
        pyarrow.table({"text": [f"word{number} word7 " * 9 for number in range(5, 60)]}),
        tmp_path / "a.parquet",
    )
    # The tokenizer takes a whole text for one word.
    data = settings(
        tmp_path, source=f"text:{tmp_path}/a.parquet", text_field="text", allow_loss=True
    )
    manifest = prepare.read_manifest(prepare.prepare(data, n_workers=1))
    assert "row_tokens" not in manifest and manifest["documents"] == 55
