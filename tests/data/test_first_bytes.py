"""Files are what their beginning says: encodings, layouts, and what is no text."""

import gzip
import io
import json
import random
import textwrap
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_text_source import packed, parquet, ranged, read
from text_source import document

from cramjax.data import first_bytes, text_source
from cramjax.data.first_bytes import look_at
from cramjax.errors import UserError

CHINESE = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能"


def sentences(n, seed=0):
    chooser = random.Random(seed)
    return [document(seed, number)[: chooser.randint(30, 150)] + " ." for number in range(n)]


def paragraphs(n):
    return [" ".join(sentences(6, seed=number)) for number in range(n)]


def chinese(n):
    chooser = random.Random(1)
    return ["".join(chooser.choices(CHINESE, k=chooser.randint(8, 40))) + "。" for _ in range(n)]


def wrapped(width, n=200):
    return "\n".join(textwrap.fill(text, width) for text in paragraphs(n))


@pytest.mark.parametrize(
    "name, text, by_lines",
    [
        ("sentences", "\n".join(sentences(1500)), True),
        ("sentences in Windows", "\r\n".join(sentences(1500)), True),
        ("without full stops", "\n".join(line[:-2] for line in sentences(1500)), True),
        ("paragraphs of a collection", "\n".join(paragraphs(1200)), True),
        ("Chinese sentences", "\n".join(chinese(1500)), True),
        ("reads of DNA of one length", "\n".join(["ACGTTGCA" * 19] * 1500), True),
        ("a title, then sentences", "A title\n\n" + "\n".join(sentences(2500)), True),
        ("blank lines at both ends", "\n\n" + "\n".join(sentences(1500)) + "\n\n\n", True),
        ("sentences between blank lines", "\n\n".join(map("\n".join, [sentences(40)] * 50)), False),
        ("an article of paragraphs", "\n".join(paragraphs(60)), False),
        ("wrapped at 72", wrapped(72), False),
        ("wrapped at 50", wrapped(50), False),
        ("wrapped Chinese", "\n".join(textwrap.wrap("".join(chinese(4000)), 35)), False),
        ("a word a line", "\n".join(" ".join(sentences(500)).split()), False),
        ("a word and its tag a line", "\n".join(f"{word}\tNOUN" for word in CHINESE * 60), False),
        ("one line", " ".join(sentences(5000)), False),
    ],
)
def test_lines_are_documents_where_that_is_what_they_are(tmp_path, name, text, by_lines):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    kind = look_at(str(path))
    assert kind.by_lines is by_lines, name
    assert kind.has_ranges


def test_a_file_that_goes_on_after_the_look_is_no_article(tmp_path, monkeypatch):
    monkeypatch.setattr(first_bytes, "LOOK_BYTES", 3000)
    path = tmp_path / "a.txt"
    path.write_text("\n".join(paragraphs(60)))
    assert look_at(str(path)).by_lines
    path.write_text(wrapped(70))
    assert not look_at(str(path)).by_lines


LINES = st.lists(st.text("ab .\r\t", max_size=30), max_size=40)


@settings(max_examples=60, deadline=None)
@given(
    LINES,
    st.sampled_from(["\n", "\r\n", "\n\n"]),
    st.integers(1, 60),
    st.integers(1, 40),
    st.integers(20, 400),
)
def test_ranges_of_every_kind_of_txt_are_the_whole(
    tmp_path_factory, lines, end, size, many, look_bytes
):
    path = tmp_path_factory.mktemp("ranges") / "corpus.txt"
    path.write_bytes(end.join(lines).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(first_bytes, "MANY_LINES", many)
        patch.setattr(first_bytes, "LOOK_BYTES", look_bytes)
        patch.setattr(first_bytes, "_SENTENCE_BYTES", 3)
        whole = read(path)
        patch.setattr(text_source, "RANGE_BYTES", size)
        assert read(path) == whole
    words = "".join(lines).split()
    assert "".join(words) == "".join("".join(whole[0]).split())


@pytest.mark.parametrize("language", ["English", "Chinese"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("compression", ["", ".gz"])
def test_text_in_other_encodings_of_unicode_is_read(tmp_path, language, encoding, compression):
    texts = sentences(30) if language == "English" else chinese(200)
    path = tmp_path / f"a.txt{compression}"
    path.write_bytes(packed("\n\n".join(texts).encode(encoding), compression))
    assert read(path) == (texts, {})

    path = tmp_path / f"a.jsonl{compression}"
    lines = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    path.write_bytes(packed(lines.encode(encoding), compression))
    assert read(path) == (texts, {})


ASSIGNED = st.characters(codec="utf-16", exclude_categories=("C", "Zl", "Zp"))
LATIN = st.characters(min_codepoint=32, max_codepoint=0x17F, exclude_categories=("C",))


@settings(max_examples=60, deadline=None)
@given(st.text(ASSIGNED, max_size=200), st.text(LATIN, max_size=200))
def test_utf16_is_read_with_a_mark_always_and_without_one_if_it_is_sure(
    tmp_path_factory, text, latin
):
    path = tmp_path_factory.mktemp("utf16") / "a.jsonl"
    for expected, encodings in (
        (text, ["utf-16"]),
        (f"{latin} of a text", ["utf-16", "utf-16-le", "utf-16-be"]),
    ):
        for encoding in encodings:
            path.write_bytes(json.dumps({"text": expected}, ensure_ascii=False).encode(encoding))
            assert read(path) == ([expected], {})


@settings(max_examples=60, deadline=None)
@given(st.text(ASSIGNED, min_size=1, max_size=200))
def test_utf8_is_never_taken_for_utf16(text):
    assert first_bytes._encoding(text.encode()) == "utf-8"


def test_text_in_utf8_with_zero_bytes_is_no_utf16(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(("\n\n".join(sentences(20)) + "\0\0\0").encode())
    assert len(read(path)[0]) == 20


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "text")
    return buffer.getvalue()


HTML = b"\n<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>"


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.parquet", "a.jsonl.gz"])
@pytest.mark.parametrize(
    "content, message",
    [
        (HTML, "is a web page.*download it again"),
        (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "is a web page"),
        (zipped(), "is a zip archive.*unpack it"),
        (b"%PDF-1.7 ...", "is a PDF; take its text out"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n", "git lfs pull"),
        (gzip.compress(gzip.compress(b"text")), "is packed twice; unpack it once"),
        (gzip.compress(HTML), "is a web page"),
        (random.Random(0).randbytes(5000), "binary data|not a readable parquet"),
        (("русский текст " * 99).encode("cp1251"), "convert it, as with iconv|not a readable"),
        (("中文文本很多字" * 99).encode("gb18030"), "convert it, as with iconv|not a readable"),
    ],
    ids=["page", "error", "zip", "pdf", "pointer", "twice", "packed page", "noise", "1251", "gb"],
)
def test_no_text_under_the_name_of_one_is_refused_in_a_sentence(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{path}: [^\n]*({message})"):
        read(path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.zst"])
def test_a_parquet_file_under_the_name_of_another_is_refused(tmp_path, name):
    path = parquet(tmp_path / name, ["text"])
    with pytest.raises(UserError, match="is a parquet file; name it .parquet"):
        read(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_a_plain_file_under_the_name_of_a_packed_one_is_read(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_text("one\n\ntwo")
    assert read(path) == (["one", "two"], {})
    path.write_text("")
    assert read(path) == ([], {})


def test_large_files_that_are_not_plain_lines_have_no_ranges(tmp_path, monkeypatch):
    for name, content in (
        ("a.jsonl", json.dumps([{"text": "a"}], indent=1).encode()),
        ("b.txt", "one\n\ntwo".encode("utf-16")),
        ("c.txt.xz", packed(b"one\n\ntwo", ".xz")),
    ):
        path = ranged(tmp_path, monkeypatch, name, "", 3)
        path.write_bytes(content)
        assert not look_at(str(path)).has_ranges
        assert read(path)[0] in (["a"], ["one", "two"])
