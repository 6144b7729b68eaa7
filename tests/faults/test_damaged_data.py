"""Prepared and half prepared data that are cut, flipped or hostile: one sentence, or made again."""

import json
import os
import shutil
import tracemalloc

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from cramjax.config import languages, schema
from cramjax.data import prepare
from cramjax.data.build import Builder
from cramjax.data.dataset import TokenDataset
from cramjax.data.loader import heldout_batches, open_loader
from cramjax.errors import RunFailed, UserError
from tests.data.executors import InThisProcess, Killed
from tests.data.shards import write_dataset
from tests.data.text_source import FakeSource

SEQ_LEN = 16


def cut(content):
    return content[: len(content) // 2]


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


DAMAGES = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "cut": cut,
    "flipped": flip,
    "braces": lambda content: b"{}\n",
}


def damage(path, how):
    content = DAMAGES[how](path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)


# Half prepared data.


def settings(cache):
    data = schema.defaults().data
    data.update(cache_dir=str(cache), vocab_size=120, heldout_fraction=0.2)
    data.update(max_shard_tokens=300, tokenizer_sample_mb=0.01, dedup_near=0.9)
    data.update(languages.choices(data))
    return data


SOURCE = FakeSource(parts_n=4, documents_n=8, texts=("the same in all parts " * 3,))


def files_of(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def prepare_here(cache, executor=None):
    return prepare.prepare(settings(cache), [SOURCE], executor=executor or InThisProcess())


def interrupt(cache, n_jobs):
    """Prepare until so many jobs are done; returns the unfinished folder."""
    with pytest.raises(Killed):
        prepare_here(cache, InThisProcess(n_before_kill=n_jobs))
    (partial,) = cache.glob("*.partial")
    return partial


@pytest.fixture(scope="module", autouse=True)
def many_jobs():
    """Each part goes through the stages by itself, and documents are compared in several ranges."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cramjax.data.build._GROUP_BYTES", 1)
        patch.setattr("cramjax.data.duplicates._RANGE_DOCUMENTS", 16)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The files of an undisturbed preparation, and the jobs that it takes, in order."""
    executor = InThisProcess()
    return files_of(prepare_here(tmp_path_factory.mktemp("whole"), executor)), executor.done


@pytest.mark.slow
def test_killed_after_any_job_it_goes_on_with_the_next(undisturbed, tmp_path):
    expected, done = undisturbed
    assert len(done) > 20 and len(set(done)) == len(done)
    for n_jobs in range(len(done)):
        cache = tmp_path / str(n_jobs)
        interrupt(cache, n_jobs)
        executor = InThisProcess()
        assert files_of(prepare_here(cache, executor)) == expected, n_jobs
        assert executor.done == done[n_jobs:]


def test_a_version_of_before_is_made_again(undisturbed, tmp_path, caplog):
    """Its files lie where ours do."""
    partial = interrupt(tmp_path, 3)
    (partial / "journal.jsonl").write_text("{}\n")
    (partial / "train-0-00077.bin").write_bytes(b"left over")
    (partial / "train-0-00077.docs.npy").write_bytes(b"left over")
    assert files_of(prepare_here(tmp_path)) == undisturbed[0]


# Stage of the unfinished preparation → its folders, with the endings of their files.
STAGES = {
    "index": ("spool/0-000003.json", "spool/0-000003.rows", "spool/0-000003.text.zst",
              "spool/0-000003.signatures", "index/000001.json", "index/000001.index",
              "index/000001.signatures"),
    "selection": ("comparison/000001.json", "comparison/000001.exact", "comparison/000001.near",
                  "selection/000001.json", "selection/000001.keep", "spool/0-000003.rows"),
    "encoded": ("selection/000003.json", "selection/000003.keep", "selection/000000.json",
                "tokenizer/tokenizer.json", "tokenizer.seal", "spool/0-000003.text.zst",
                "encoded/000000.json", "encoded/000000.train.bin",
                "encoded/000000.train.lengths", "encoded/000000.heldout.bin"),
    "shards": ("train-0-00000.bin", "train-0-00001.docs.npy", "train-0-00000.counts",
               "train-0-00000.json", "encoded/000003.train.bin"),
}  # fmt: skip


def half(cache, stage, done):
    """Prepare until two jobs of a stage are done."""
    folder = {"shards": "train-0"}.get(stage, f"{stage}/")
    numbers = [number for number, name in enumerate(done) if folder in name]
    return interrupt(cache, numbers[1] + 1)


@pytest.mark.parametrize(
    "stage, pattern", [(stage, pattern) for stage in STAGES for pattern in STAGES[stage]]
)
def test_whatever_is_damaged_the_next_start_makes_the_same_dataset(
    undisturbed, tmp_path, stage, pattern, caplog
):
    expected, done = undisturbed
    half(tmp_path / "half", stage, done)
    is_json = pattern.endswith(("json", "seal"))
    for how in DAMAGES if is_json else ("missing", "cut", "flipped"):
        copy = tmp_path / how
        shutil.copytree(tmp_path / "half", copy)
        (partial,) = copy.glob("*.partial")
        damage(partial / pattern, how)
        caplog.clear()
        directory = prepare_here(copy)
        assert files_of(directory) == expected, how
        assert list(copy.iterdir()) == [directory]
        n_warnings = len([1 for record in caplog.records if "damaged" in record.message])
        assert n_warnings <= 1, caplog.text
        if how == "flipped":
            assert n_warnings == 1, caplog.text


def test_leftovers_of_killed_workers_are_removed_at_the_next_start(tmp_path):
    partial = interrupt(tmp_path, 2)
    (partial / "spool" / "0-000003.rows.99.tmp").write_bytes(b"left over")
    (partial / "tokenizer.tmp").mkdir()
    interrupt(tmp_path, 0)
    assert not list(partial.rglob("*.tmp"))


@pytest.mark.parametrize("how", ["cut", "whole"])
@pytest.mark.parametrize("name", ["manifest.json", "train-0-00000.bin", "unigram.npy"])
def test_killed_before_the_last_renaming(undisturbed, tmp_path, name, how, monkeypatch):
    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(prepare.pack, "publish_finished", killed)
        with pytest.raises(Killed):
            prepare_here(tmp_path)
    (partial,) = tmp_path.glob("*.partial")
    if how != "whole":
        damage(partial / name, how)
    assert files_of(prepare_here(tmp_path)) == undisturbed[0]


def test_a_flipped_bit_in_a_finished_shard_is_not_sealed(
    undisturbed, tmp_path, monkeypatch, caplog
):
    check = Builder._check_shards
    calls = []

    def disturbed(builder, shard_jobs):
        if not calls:
            damage(builder._partial / "train-0-00000.bin", "flipped")
        calls.append(1)
        check(builder, shard_jobs)

    monkeypatch.setattr(Builder, "_check_shards", disturbed)
    assert files_of(prepare_here(tmp_path)) == undisturbed[0]
    assert "train-0-00000.bin" in caplog.text and len(calls) == 2


def test_a_disk_that_never_keeps_what_is_written_is_a_sentence(tmp_path, monkeypatch):
    check = Builder._check_shards

    def disturbed(builder, shard_jobs):
        damage(builder._partial / "train-0-00000.bin", "flipped")
        check(builder, shard_jobs)

    monkeypatch.setattr(Builder, "_check_shards", disturbed)
    with pytest.raises(RunFailed, match="check the disk"):
        prepare_here(tmp_path)


@pytest.mark.parametrize("number, raised", [(13, UserError), (30, UserError), (5, RunFailed)])
def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch, number, raised):
    def refused(path, *args, **kwargs):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("pathlib.Path.mkdir", refused)
    with pytest.raises(raised, match=os.strerror(number)) as caught:
        prepare.prepare(settings(tmp_path / "cache"), [SOURCE])
    assert str(tmp_path / "cache") in str(caught.value)


def test_a_cache_that_is_a_file_is_a_sentence(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match="cache_dir=.*cannot be written"):
        prepare.prepare(settings(tmp_path / "cache"), [SOURCE])


# Prepared data.


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("prepared"), sentence_order_seq_len=SEQ_LEN)


def use(directory):
    """Do with a dataset what a run does, the comparison of its shards included."""
    dataset = TokenDataset.open(directory)
    heldout_batches(dataset, seq_len=SEQ_LEN, batch_size=4, n_batches=2)
    loader = open_loader(dataset, seed=0, seq_len=SEQ_LEN, order="sentence_length", loader="numpy")
    next(loader.stream(0, 64))
    dataset.verification.at_once()


def refused(directory, *names):
    """Assert that a dataset is refused in one sentence that names one of the files."""
    with pytest.raises((UserError, RunFailed)) as caught:
        use(directory)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 600
    assert any(name in sentence for name in names), sentence


@pytest.mark.parametrize("how", [*DAMAGES, "fifo", "folder", "outside", "circle", "device"])
@pytest.mark.parametrize(
    "name",
    [
        "manifest.json", "train-0-00000.bin", "heldout-0-00000.bin", "train-0-00000.docs.npy",
        "unigram.npy", f"sentence_order-{SEQ_LEN}-0.npy", "tokenizer/tokenizer.json",
    ],
)  # fmt: skip
def test_each_file_of_a_dataset(prepared, tmp_path, name, how):
    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    path = copy / name
    if how in DAMAGES:
        damage(path, how)
    else:
        path.rename(tmp_path / "outside")
        if how == "fifo":
            os.mkfifo(path)
        elif how == "folder":
            path.mkdir()
        else:
            targets = {"outside": tmp_path / "outside", "circle": path, "device": "/dev/zero"}
            path.symlink_to(targets[how])

    # Nobody can tell a flipped offset of a document; nothing that trains reads them.
    if (name, how) == ("train-0-00000.docs.npy", "flipped"):
        use(copy)
    else:
        # A flipped digit of a digest looks like a damaged file of that digest.
        refused(copy, str(path), "is not a prepared dataset", "SHA-256 is not the manifest's")


def test_a_dataset_behind_a_link_is_read(prepared, tmp_path):
    (tmp_path / "link").symlink_to(prepared)
    use(tmp_path / "link")


WRONG = [
    None, True, False, -1, 0, 1, 2**31, 2**64, 10**300, 1.5, float("nan"), float("inf"), "", "x",
    "../outside.bin", "/etc/passwd", "\0", "\ud800", [], [None], [[]], {}, {"x": {}},
]  # fmt: skip


def leaves(value, path=()):
    yield path
    children = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    for key, child in children:
        yield from leaves(child, (*path, key))


@hypothesis.settings(deadline=None, max_examples=150, derandomize=True, database=None)
@hypothesis.given(st.data())
def test_a_manifest_with_a_wrong_value_is_refused_or_does_no_harm(prepared, tmp_path_factory, data):
    manifest = json.loads((prepared / "manifest.json").read_text())
    path = data.draw(st.sampled_from(list(leaves(manifest))))
    value = data.draw(st.sampled_from(WRONG))
    node = {"root": manifest}
    for key in ("root", *path)[:-1]:
        node = node[key]
    before = node[("root", *path)[-1]]
    node[("root", *path)[-1]] = value
    root = manifest if path else value

    copy = tmp_path_factory.mktemp("copy")
    for file in prepared.rglob("*"):
        if file.is_file() and file.name != "manifest.json":
            (copy / file.relative_to(prepared)).parent.mkdir(exist_ok=True)
            os.link(file, copy / file.relative_to(prepared))
    (copy / "manifest.json").write_text(json.dumps(root))
    try:
        use(copy)
    except (UserError, RunFailed) as error:
        assert "\n" not in str(error) and str(copy) in str(error)
    else:
        free = {"fingerprint", "tokens", "documents", "source", "spec", "revision", "weight"}
        is_free = path[-1] in free or {"filters", "dropped", "special_tokens"} & set(path)
        assert is_free or value == before, path


@pytest.mark.parametrize("content", ["[" * 100_000, '{"format":' * 100_000, "9" * 10_000, "\0\1"])
def test_a_deeply_nested_or_huge_manifest_is_refused(prepared, tmp_path, content):
    shutil.copytree(prepared, tmp_path / "copy")
    (tmp_path / "copy" / "manifest.json").write_text(content)
    refused(tmp_path / "copy", "manifest.json")


def npy(header):
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (10000000000000,)}"),
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (" + "9" * 50 + ",)}"),
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (-5,)}"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (500,)}") + b"cos\nsystem\n",
        npy("[" * 3000),
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': 'x'}"),
        npy("("),
        b"PK\x03\x04" + bytes(100),
        b"\x80\x04cos\nsystem\n",
    ],
)
@pytest.mark.parametrize("name", ["unigram.npy", "train-0-00000.docs.npy"])
def test_a_hostile_header_of_an_array_is_refused(prepared, tmp_path, name, content):
    shutil.copytree(prepared, tmp_path / "copy")
    (tmp_path / "copy" / name).write_bytes(content + bytes(64))
    refused(tmp_path / "copy", name)


@pytest.mark.parametrize(
    "name", ["manifest.json", "unigram.npy", "train-0-00000.bin", "tokenizer/tokenizer.json"]
)
def test_a_file_that_is_a_terabyte_of_zeros_takes_no_memory(prepared, tmp_path, name):
    shutil.copytree(prepared, tmp_path / "copy")
    os.truncate(tmp_path / "copy" / name, 1 << 40)
    tracemalloc.start()
    try:
        refused(tmp_path / "copy", name)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_counts_that_overflow_to_the_right_sum_are_refused(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    counts = np.load(prepared / "unigram.npy")
    counts[:4] += np.int64(1) << 62
    np.save(tmp_path / "copy" / "unigram.npy", counts)
    refused(tmp_path / "copy", "unigram.npy")


def test_another_tokenizer_of_the_same_size_is_refused(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    path = tmp_path / "copy" / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace("word10", "mord10"))
    refused(tmp_path / "copy", "tokenizer.json is not the tokenizer of this dataset")
