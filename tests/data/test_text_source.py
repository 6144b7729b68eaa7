"""Files of text in every format: whole, in ranges, damaged and hostile."""

import bz2
import gzip
import json
import lzma
import os
import pickle
import random
import types

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cramjax.data import first_bytes, parquet_batches, plain_text, text_source, unpacking
from cramjax.data.sources import open_sources
from cramjax.errors import UserError

TEXTS = ["one document\nof two lines", "zwei — Ünïcode ✓", "three"]


def data(source, **changes):
    return types.SimpleNamespace(
        source=source,
        text_field="text",
        heldout=None,
        target_field=None,
        allow_build=False,
        keep=None,
        cache_dir=os.devnull,
        **changes,
    )


def read(pattern, field="text", weight=1.0):
    """Read a source, pickled as for a worker process.

    Returns:
        The texts, and reason → positions of what was dropped.
    """
    config = data([[f"text:{pattern}", weight]])
    config.text_field = field
    (source,) = open_sources(config)
    source = pickle.loads(pickle.dumps(source))

    dropped = {}

    def drop(reason, where):
        dropped.setdefault(reason, []).append(where)

    texts = []
    for part in source.parts():
        texts += source.read(part, drop)
    return texts, dropped


def packed(content, compression):
    if compression == ".gz":
        return gzip.compress(content)
    if compression == ".zst":
        return zstandard.ZstdCompressor().compress(content)
    if compression == ".bz2":
        return bz2.compress(content)
    if compression == ".xz":
        return lzma.compress(content)
    return content


@pytest.mark.parametrize("compression", ["", ".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".json", ".parquet"])
def test_every_format_gives_the_same_documents(tmp_path, kind, compression):
    if kind == ".txt":
        content = "\n\n".join(TEXTS).encode()
    elif kind == ".parquet":
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS, "other": [1, 2, 3]}), sink)
        content = sink.getvalue().to_pybytes()
    elif kind == ".json":
        content = json.dumps([{"text": text} for text in TEXTS]).encode()
    else:
        content = "\n".join(json.dumps({"text": text, "id": 3}) for text in TEXTS).encode()
    (tmp_path / f"corpus{kind}{compression}").write_bytes(packed(content, compression))
    assert read(tmp_path) == (TEXTS, {})


def test_several_archives_in_one_file_are_read_to_the_end(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"first\n\n") + gzip.compress(b"second"))
    # As pzstd begins a file.
    skipped = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"size"
    (tmp_path / "b.txt").write_bytes(skipped + packed(b"zeroth", ".zst"))
    for name in ("b.txt.zst", "c.txt.bz2", "d.txt.xz"):
        end = name[5:]
        content = packed(b"third\n\n", end) + packed(b"", end) + packed(b"fourth", end)
        (tmp_path / name).write_bytes(content)
    assert read(f"{tmp_path}/*") == (["first", "second", "zeroth", *["third", "fourth"] * 3], {})


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_the_beginning_of_a_truncated_archive_is_kept_and_the_end_counted(tmp_path, compression):
    documents = [f"document {number} {'x' * (number % 97)}" for number in range(20_000)]
    lines = "\n".join(json.dumps({"text": text}) for text in documents)
    archive = packed(lines.encode(), compression)
    path = tmp_path / f"cut.jsonl{compression}"
    path.write_bytes(archive[: len(archive) // 2])

    texts, dropped = read(path)
    assert texts == documents[: len(texts)] and len(texts) < 20_000
    assert dropped["truncated_archive"][0].startswith(f"{path}:")


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_nothing_readable_of_a_small_truncated_archive_is_lost(tmp_path, compression):
    lines = "".join(random.Random(number).randbytes(20).hex() + "\n\n" for number in range(30_000))
    archive = packed(lines.encode(), compression)
    path = tmp_path / f"cut.txt{compression}"
    path.write_bytes(archive[: len(archive) * 3 // 4])

    texts, dropped = read(path)
    assert len(dropped["truncated_archive"]) == 1
    assert 0.6 * 30_000 < len(texts) < 30_000  # zstd gives whole blocks of 128 KB


@pytest.mark.parametrize("rest", [b"\0" * 600, b"no archive at all"])
def test_what_stands_before_garbage_behind_an_archive_is_kept(tmp_path, rest):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"first\n\nsecond") + rest)
    assert read(tmp_path)[0] == ["first", "second"]


def parquet(path, column, **options):
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), path, **options)
    return path


def test_a_damaged_row_group_is_counted_and_the_others_are_read(tmp_path):
    texts = [f"document {number} " * 50 for number in range(2000)]
    options = {"compression": "none", "use_dictionary": False, "row_group_size": 500}
    path = parquet(tmp_path / "a.parquet", texts, **options)

    content = bytearray(path.read_bytes())
    middle = content.index(b"document 700 document")
    content[middle - 4 : middle + 3000] = b"\xff" * 3004
    path.write_bytes(content)

    kept, dropped = read(path)
    assert kept[:500] == texts[:500] and kept[-1000:] == texts[1000:]
    assert len(dropped["damaged_row_group"]) == 1


def test_parquet_text_that_is_no_utf8_is_repaired_and_counted(tmp_path):
    raw = pyarrow.array([b"good", b"bro\xffken"], pyarrow.binary())
    unchecked = pyarrow.Array.from_buffers(pyarrow.string(), 2, raw.buffers())
    path = parquet(tmp_path / "a.parquet", unchecked)
    assert read(path) == (["good", "bro\ufffdken"], {"invalid_utf8_repaired": [f"{path}:1"]})

    large = pyarrow.array(["good"], pyarrow.large_string())
    for column in (raw[:1], raw[:1].dictionary_encode(), large):
        assert read(parquet(path, column)) == (["good"], {})

    parquet(path, pyarrow.array([None, "a"]))
    assert read(path) == (["a"], {"text_not_a_string": [f"{path}:0"]})
    with pytest.raises(UserError, match="holds list<.*no text"):
        read(parquet(path, [["a"]]))


@pytest.mark.parametrize("compression", [".gz", ".zst", ".bz2", ".xz"])
def test_a_truncated_list_is_counted_and_a_truncated_parquet_file_refused(tmp_path, compression):
    texts = [random.Random(number).randbytes(300).hex() for number in range(2000)]
    content = packed(json.dumps([{"text": text} for text in texts]).encode(), compression)
    path = tmp_path / f"a.json{compression}"
    path.write_bytes(content[: len(content) * 3 // 4])
    kept, dropped = read(path)
    assert kept == texts[: len(kept)] and len(dropped["truncated_archive"]) == 1
    # bzip2 unpacks blocks of 900 kB.
    assert kept or compression == ".bz2"

    content = parquet(tmp_path / "plain.parquet", ["x" * 500] * 50).read_bytes()
    path = tmp_path / f"a.parquet{compression}"
    path.write_bytes(packed(content, compression)[:-20])
    with pytest.raises(UserError, match=path.name):
        read(path)


def test_a_name_with_brackets_is_found(tmp_path):
    (tmp_path / "corpus[1].txt").write_text("here")
    assert read(tmp_path / "corpus[1].txt")[0] == ["here"]


def ranged(tmp_path, monkeypatch, name, content, size):
    monkeypatch.setattr(text_source, "RANGE_BYTES", size)
    path = tmp_path / name
    path.write_text(content)
    return path


@pytest.mark.parametrize("name, end", [("a.txt", "\n\n"), ("a.txt", "\n"), ("a.jsonl", "\n")])
def test_a_line_over_many_ranges_is_taken_once_and_loses_no_neighbour(
    tmp_path, monkeypatch, name, end
):
    monkeypatch.setattr(plain_text, "MAX_LINE_BYTES", 3000)
    monkeypatch.setattr(plain_text, "MAX_DOCUMENT_BYTES", 3000)
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", 256)
    monkeypatch.setattr(first_bytes, "MANY_LINES", 10)
    texts = [f"this is the document {number}" for number in range(20)]
    texts[5] = "x" * 8000
    lines = texts
    if name.endswith("jsonl"):
        lines = [json.dumps({"text": text}) for text in texts]
    kept, dropped = read(ranged(tmp_path, monkeypatch, name, end.join(lines), 1000))
    if name.endswith("jsonl"):
        assert kept == texts[:5] + texts[6:] and len(dropped["line_too_long"]) == 1
    else:
        assert kept[:5] + kept[8:] == texts[:5] + texts[6:] and not dropped
        assert "".join(kept[5:8]) == texts[5]


@pytest.mark.parametrize(
    "line", ["a line without a blank one anywhere\n", "one line without an end "]
)
def test_ranges_that_hold_no_beginning_are_not_read_to_the_end_of_the_file(
    tmp_path, monkeypatch, line
):
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", 100)
    monkeypatch.setattr(first_bytes, "LOOK_BYTES", 100)
    path = ranged(tmp_path, monkeypatch, "a.txt", line * 2000, 2000)
    read_blocks = unpacking.read_blocks
    n_blocks = 0

    def counted(*arguments, **options):
        nonlocal n_blocks
        for block in read_blocks(*arguments, **options):
            n_blocks += 1
            yield block

    monkeypatch.setattr(plain_text, "read_blocks", counted)
    texts, _ = read(path)
    assert "".join(texts).strip() == (line * 2000).strip()
    # The first range to the end, each other one through itself.
    assert n_blocks <= 2.2 * path.stat().st_size / 100


def test_a_range_with_other_records_is_no_mistake(tmp_path, monkeypatch):
    lines = ['{"text": "a"}'] * 100 + ['{"other": "b"}'] * 100
    kept, dropped = read(ranged(tmp_path, monkeypatch, "a.jsonl", "\n".join(lines), 500))
    assert kept == ["a"] * 100 and len(dropped["no_text_field"]) == 100
    with pytest.raises(UserError, match="no record has a field 'text'"):
        read(ranged(tmp_path, monkeypatch, "b.jsonl", "\n".join(lines[100:]), 500))


def test_hostile_lines_are_counted_with_file_and_line(tmp_path):
    path = tmp_path / "hostile.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "with a byte order mark"}\r\n'
        b"this is not json\n"
        b'{"text": "nul \\u0000 and a lone surrogate \\ud800"}\n'
        b'{"other": 1}\n'
        b"\n"
        b'{"text": 7}\n'
        b'{"text": "broken \xff\xfe utf-8"}\n'
        b'["a", "list"]\n'
        b'{"text": ""}\n' + b"[" * 100_000 + b"\n"
        b'{"text": "last, without a line end"}'
    )
    texts, dropped = read(path)
    assert len(texts) == 5
    assert texts[0] == "with a byte order mark"
    assert texts[-1] == "last, without a line end"
    assert dropped["not_json"] == [f"{path}:2", f"{path}:10"]
    assert dropped["no_text_field"] == [f"{path}:4", f"{path}:8"]
    assert dropped["text_not_a_string"] == [f"{path}:6"]
    assert dropped["invalid_utf8_repaired"] == [f"{path}:7"]


def test_a_line_of_twenty_megabytes_is_cut_between_words(tmp_path):
    path = tmp_path / "long.txt"
    path.write_bytes(b"before\n\n" + b"seven characters " * 1_250_000 + b"\n\nafter")
    texts, dropped = read(path)
    assert texts[0] == "before" and texts[-1] == "after" and not dropped
    assert all(len(text) <= plain_text.MAX_DOCUMENT_BYTES for text in texts)
    assert "".join(texts[1:-1]) == "seven characters " * 1_250_000
    assert all(text.startswith((" seven", "seven", " char")) for text in texts[1:-1])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.text("ab \r\t", max_size=12), max_size=4), max_size=30),
    st.integers(1, 40),
    st.sampled_from(["\n", "\r\n"]),
)
def test_ranges_of_a_text_file_give_every_document_once(tmp_path_factory, documents, size, end):
    path = tmp_path_factory.mktemp("ranges") / "corpus.txt"
    texts = [end.join(lines) for lines in documents]
    path.write_bytes((end * 2).join(texts).encode())
    expected = read(path)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_source, "RANGE_BYTES", size)
        assert read(path)[0] == expected


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=20), st.integers(1, 60))
def test_ranges_of_a_jsonl_file_give_every_record_once(tmp_path_factory, texts, size):
    path = tmp_path_factory.mktemp("ranges") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_source, "RANGE_BYTES", size)
        assert read(path)[0] == texts


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from([".txt", ".jsonl", ".json", ".txt.gz", ".jsonl.zst", ".parquet", ".json.gz"]),
)
def test_no_bytes_whatever_crash_the_readers(tmp_path_factory, content, suffix):
    path = tmp_path_factory.mktemp("garbage") / f"file{suffix}"
    path.write_bytes(content)
    try:
        read(path)
    except UserError as error:
        assert str(error).startswith(f"{path}: ")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 5000), st.binary(min_size=1, max_size=30), st.sampled_from(["", ".gz", ".zst"])
)
def test_no_damage_to_a_parquet_file_crashes_the_reader(
    tmp_path_factory, place, damage, compression
):
    folder = tmp_path_factory.mktemp("damaged")
    texts = [f"document {number}" for number in range(300)]
    content = parquet(folder / "whole", texts, row_group_size=100).read_bytes()

    place %= len(content)
    damaged = content[:place] + damage + content[place + len(damage) :]
    (folder / f"a.parquet{compression}").write_bytes(packed(damaged, compression))
    try:
        read(f"{folder}/a.*")
    except UserError as error:
        assert "a.parquet" in str(error)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("corpus.csv", b"a,b", "corpus.csv: not a text format"),
        ("corpus.parquet", b"no parquet", "not a readable parquet file"),
        ("corpus.jsonl", b'{"content": "a"}\n{"content": "b"}', "found: content"),
        ("corpus.jsonl", b'{"meta": {"text": "a"}, "n": 1}', "found: meta, n"),
        ("corpus.json", b'[{"content": "a"}, {"content": "b"}]', "found: content"),
    ],
)
def test_a_wrong_file_is_refused_in_a_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


@pytest.mark.parametrize(
    "source, message",
    [
        ("text:/nowhere/*.txt", "no such file"),
        ("txt:a", "did you mean text"),
        ("instaled-docs", "did you mean installed-docs"),
        ([["prepared:x", 1.0], ["installed-docs", 1.0]], "cannot be part of a mixture"),
        ([["text:a.txt", -1]], "weight above 0"),
        ([["text:a.txt", "inf"]], "weight above 0"),
        (["text:a.txt"], "must be a pair"),
        ([], "at least one source"),
        ("hf:c4", "must have the form"),
    ],
)
def test_a_wrong_source_is_refused_in_a_sentence(source, message):
    with pytest.raises(UserError, match=message):
        for opened in open_sources(data(source)):
            opened.parts()


def write(path, *texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(texts))


def test_a_place_without_text_says_what_is_there(tmp_path):
    folder = tmp_path / "corpus" / "deep"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text("a,b")
    with pytest.raises(UserError, match=r"corpus: the folder holds none.*\.jsonl"):
        read(tmp_path / "corpus")
    write(folder / "a.txt", "one")
    with pytest.raises(UserError, match=r"corp\*: matches folders only.*with /\*\*/\*"):
        read(f"{tmp_path}/corp*")
    (folder / "a.csv").unlink()
    assert read(f"{tmp_path}/corp*/**/*")[0] == ["one"]


def test_a_folder_follows_its_links_once_and_leaves_out_hidden_files(tmp_path, caplog):
    corpus = tmp_path / "corpus"
    write(corpus / "a.txt", "one")
    write(corpus / "real" / "b.txt", "two")
    write(tmp_path / "elsewhere" / "deep" / "c.txt", "three")
    write(corpus / ".ipynb_checkpoints" / "a-checkpoint.txt", "old")
    write(corpus / "._a.txt", "of a Mac")
    (corpus / "link").symlink_to(tmp_path / "elsewhere")
    (corpus / "again").symlink_to(corpus / "real")
    (tmp_path / "elsewhere" / "loop").symlink_to(corpus)
    (corpus / "up").symlink_to(tmp_path)
    assert sorted(read(corpus)[0]) == ["one", "three", "two"]
    assert text_source.find_files(str(corpus))[1:] == [
        corpus / "link" / "deep" / "c.txt",
        corpus / "real" / "b.txt",
    ]
    assert "left out 2 hidden files and folders" in caplog.text


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_a_packed_file_under_a_plain_name_is_unpacked(tmp_path, compression, monkeypatch):
    content = "\n\n".join(TEXTS * 50).encode()
    (tmp_path / "a.txt").write_bytes(packed(content, compression))
    # Also where it is longer than a range.
    monkeypatch.setattr(text_source, "RANGE_BYTES", 64)
    assert read(tmp_path / "a.txt") == (TEXTS * 50, {})


def test_a_pointer_of_git_lfs_is_refused_at_the_start(tmp_path):
    write(tmp_path / "a.txt", "good")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    write(tmp_path / "b.txt", pointer)
    (source,) = open_sources(data(f"text:{tmp_path}"))
    with pytest.raises(UserError, match=r"b\.txt: only a pointer of Git LFS.*git lfs pull"):
        source.parts()


def test_two_columns_of_the_name_are_refused(tmp_path):
    column = pyarrow.array(["a"])
    table = pyarrow.Table.from_arrays([column, column], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="has 2 columns called 'text'; rename one"):
        read(tmp_path / "a.parquet")


def test_long_rows_of_a_parquet_file_are_read_few_at_a_time(tmp_path, monkeypatch):
    texts = [letter * 100 for letter in "abcdefgh"]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    for n_bytes in (1, 250, 10**6):
        monkeypatch.setattr(parquet_batches, "_BATCH_BYTES", n_bytes)
        assert read(tmp_path / "a.parquet") == (texts, {})
