"""The same files are the same dataset wherever they lie, and other files are another."""

import json
import os
import shutil
import threading

import pytest
from test_prepare import hashes, settings
from text_source import document

from cramjax.data import contents, prepare, text_source
from cramjax.data.plan import plan_preparation
from cramjax.data.sources import open_sources
from cramjax.errors import UserError


def write_corpus(folder, seed=0):
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.txt", "b.txt", "sub/c.jsonl")):
        texts = [document(seed, 50 * number + place) for place in range(50)]
        content = "\n\n".join(texts)
        if name.endswith("jsonl"):
            content = "\n".join(json.dumps({"text": text}) for text in texts)
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_corpus(tmp_path / "c")


def plan_of(source, tmp_path, **changes):
    data = settings(tmp_path, source=source, **changes)
    return plan_preparation(data, open_sources(data))


def touch(path, seconds):
    """Set the time of a file to so many seconds ago."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - int(seconds * 1e9)))


def test_no_spelling_of_a_place_changes_the_fingerprint_or_the_order(corpus, tmp_path):
    copy = shutil.copytree(corpus, tmp_path / "else where[1]" / "named otherwise")
    touch(copy / "a.txt", 1e6)
    (tmp_path / "link").symlink_to(corpus)
    expected = plan_of("text:c", tmp_path)
    for source in (
        "text:c/", "text:./c", "text:c/../c", f"text:{corpus}", "text:link", f"text:{copy}",
        "text:c/**/*.*", f"text:{corpus}/**/*.[jt]*",
    ):  # fmt: skip
        plan = plan_of(source, tmp_path)
        assert plan.fingerprint == expected.fingerprint, source
        assert [part.name for part in plan.parts[0]] == [part.name for part in expected.parts[0]]
    assert {part.name for part in expected.parts[0]} == {"a.txt", "b.txt", "sub/c.jsonl"}


def test_a_file_alone_goes_by_its_name(corpus, tmp_path):
    shutil.copy(corpus / "a.txt", tmp_path / "a.txt")
    plans = [plan_of(f"text:{name}", tmp_path) for name in ("a.txt", "c/a.txt", "c/a.*")]
    assert len({plan.fingerprint for plan in plans}) == 1
    shutil.copy(corpus / "a.txt", tmp_path / "other.txt")
    assert plan_of("text:other.txt", tmp_path).fingerprint != plans[0].fingerprint


def test_another_content_is_another_dataset_whatever_its_size_and_time(corpus, tmp_path):
    path = corpus / "a.txt"
    touch(path, 100)
    stat = path.stat()
    before = plan_of("text:c", tmp_path).fingerprint
    path.write_text(path.read_text().upper())
    assert path.stat().st_size == stat.st_size
    assert plan_of("text:c", tmp_path).fingerprint != before
    os.rename(corpus / "b.txt", corpus / "other.txt")
    path.write_text(path.read_text().lower())
    assert plan_of("text:c", tmp_path).fingerprint != before


def test_a_moved_corpus_finds_its_dataset_and_a_copy_of_it_makes_the_same_bits(corpus, tmp_path):
    data = settings(tmp_path, source="text:c")
    directory = prepare.prepare(data, n_workers=1)
    moved = corpus.rename(tmp_path / "moved")
    again = settings(tmp_path, source=f"text:{moved}")
    assert prepare.prepare(again) == directory

    # A preparation under another name is gone on with.
    other = settings(tmp_path / "other", source="text:moved")
    unfinished = tmp_path / "other" / "data" / f"{directory.name}.partial"
    unfinished.mkdir(parents=True)
    prepared = prepare.prepare(other, n_workers=1)
    assert prepared.name == directory.name and not unfinished.exists()
    assert hashes(prepared) == hashes(directory)


def test_two_sources_may_have_files_of_one_name(corpus, tmp_path):
    write_corpus(tmp_path / "d", seed=1)
    mixture = [["text:c", 1.0], ["text:d", 1.0]]
    directory = prepare.prepare(settings(tmp_path, source=mixture), n_workers=1)
    manifest = prepare.read_manifest(directory)
    assert manifest["documents"] == 300
    other_way = [["text:d", 1.0], ["text:c", 1.0]]
    assert plan_of(other_way, tmp_path).fingerprint != manifest["fingerprint"]


def test_a_second_start_reads_nothing_and_a_file_of_just_now_is_not_remembered(
    corpus, tmp_path, monkeypatch
):
    read = []
    digest = contents._digest

    def noted(place):
        read.append(os.path.basename(place.path))
        return digest(place)

    monkeypatch.setattr(contents, "_digest", noted)
    for name in ("a.txt", "sub/c.jsonl"):
        touch(corpus / name, 10)
    keys = []
    for _ in range(3):
        keys.append([part.key for part in plan_of("text:c", tmp_path).parts[0]])
    assert keys[0] == keys[1] == keys[2]
    assert sorted(read) == ["a.txt", "b.txt", "b.txt", "b.txt", "c.jsonl"]

    # A damaged memory is made again.
    (tmp_path / "data" / "digests.json").write_text("{")
    plan_of("text:c", tmp_path)
    assert len(read) == 8


def test_a_corpus_over_the_limit_is_digested_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(contents, "BLOCK_BYTES", 100)
    path = tmp_path / "a.txt"
    content = bytearray(b"a" * 3999)

    def key():
        path.write_bytes(content)
        return contents.digests([path], "text:a.txt", str(tmp_path), lambda _: None)[0]

    first = key()
    content[50] = 98  # in the first block
    second = key()
    assert second != first
    content[150] = 98  # between two that are read
    assert key() == second
    content.append(97)
    assert key() != second


def test_what_is_no_text_is_refused_at_the_start_by_its_whole_path(corpus, tmp_path):
    (corpus / "sub" / "c.jsonl").write_text("<!doctype html><p>404")
    with pytest.raises(UserError, match=rf"^{corpus}/sub/c.jsonl: is a web page"):
        plan_of(f"text:{corpus}", tmp_path)


def test_long_reading_is_said(corpus, tmp_path, monkeypatch):
    said = threading.Event()
    digest = contents._digest

    def slow(place):
        assert said.wait(60)
        return digest(place)

    def noted(message, *values):
        assert "text:c: reading 3 files (0.0 GB) to tell if they are new, once" in message % values
        said.set()

    monkeypatch.setattr(contents, "_digest", slow)
    monkeypatch.setattr(contents, "_SAID_S", 0.01)
    monkeypatch.setattr(contents._LOG, "warning", noted)
    assert plan_of("text:c", tmp_path).fingerprint


@pytest.mark.parametrize(
    "pattern, folder",
    [("a/b/*.txt", "a/b"), ("a/*/c.txt", "a"), ("./*.txt", "."), ("/x/**/y.txt", "/x")],
)
def test_the_folder_of_a_glob_is_the_one_before_it(pattern, folder):
    assert str(text_source.named_folder(pattern)) == folder
