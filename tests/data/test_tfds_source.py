"""The TFDS source on real datasets that TFDS builds here, in both of its file formats."""

import errno
import json
import os
import re
import subprocess
import sys
import types

import pytest

from cramjax.data import tfds_source
from cramjax.errors import UserError

pytest.importorskip("tensorflow_datasets")

BUILD = """
import sys
import tensorflow as tf
import tensorflow_datasets as tfds

class Tales(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="short")]
    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "year": tf.int64})
        return tfds.core.DatasetInfo(builder=self, features=features)
    def _split_generators(self, dl_manager):
        broken = ((i, {"text": b"bro\\xffken", "year": i}) for i in range(3))
        train, test = self._generate_examples(120), self._generate_examples(7)
        return {"train": train, "test": test, "broken": broken}
    def _generate_examples(self, n):
        for i in range(n):
            yield i, {"text": f"täle number {i} " + "so it goes " * (i % 5), "year": i}

builder = Tales(config="short", data_dir=sys.argv[1], file_format=sys.argv[2])
builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
"""
READ = """
import json, pickle, sys, types
from cramjax.errors import UserError
from cramjax.data.sources import open_sources
data = types.SimpleNamespace(
    source=sys.argv[1], text_field=sys.argv[2], cache_dir="unused", allow_build=False, keep=None,
    heldout=None, target_field=None,
)
try:
    (source,) = open_sources(data)
    source = pickle.loads(pickle.dumps(source))
    parts = source.parts()
    dropped = []
    texts = []
    for part in parts:
        texts += source.read(part, lambda *record: dropped.append(record))
    result = {"parts": len(parts), "texts": texts, "revision": source.revision, "dropped": dropped}
    print(json.dumps(result))
except UserError as error:
    sys.exit(str(error))
"""


def python(code, *arguments, root, data_dir):
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "TFDS_DATA_DIR": str(data_dir),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    environment.pop("XLA_FLAGS", None)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_a_dataset_built_by_tfds_is_read_whole(tmp_path, root, file_format):
    built = python(BUILD, str(tmp_path), file_format, root=root, data_dir=tmp_path)
    assert built.returncode == 0, built.stderr[-2000:]

    def read(name, field="text"):
        return python(READ, f"tfds:tales/{name}", field, root=root, data_dir=tmp_path)

    done = read("short")
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["revision"] == "1.0.0" and result["parts"] == 3
    expected = {f"täle number {i} " + "so it goes " * (i % 5) for i in range(120)}
    assert len(result["texts"]) == 120 and set(result["texts"]) == expected

    assert len(json.loads(read("short@test").stdout)["texts"]) == 7
    broken = json.loads(read("short@broken").stdout)
    assert broken["texts"] == ["bro\ufffdken"] * 3
    assert broken["dropped"] == [
        ["invalid_utf8_repaired", f"tfds:tales/short:broken/{i}:0"] for i in range(3)
    ]

    wrong = read("short", field="content")
    assert wrong.returncode == 1 and "found: text, year" in wrong.stderr
    wrong = read("short@dev")
    assert wrong.returncode == 1 and "train" in wrong.stderr


def test_a_build_that_fails_is_a_sentence_and_a_full_disk_stays_one():
    def failing(error):
        def download_and_prepare():
            raise error

        return types.SimpleNamespace(download_and_prepare=download_and_prepare)

    message = "tfds:a/b.*cannot build it .ConnectionError: no route.*installed-docs"
    with pytest.raises(UserError, match=message):
        tfds_source.build(failing(ConnectionError("no route\nto host")), "tfds:a/b")
    with pytest.raises(OSError, match="No space"):
        tfds_source.build(failing(OSError(errno.ENOSPC, "No space left")), "tfds:a/b")


@pytest.mark.parametrize(
    "known, recorded, words",
    [
        (3e9, [1], "3.00 GB"),
        (None, [4e7, None], "unknown size .0.04 GB for all"),
        (0, [], "nothing"),
    ],
)
def test_the_size_of_a_build_is_not_made_small(known, recorded, words):
    urls = {str(n): types.SimpleNamespace(size=size) for n, size in enumerate(recorded)}
    builder = types.SimpleNamespace(
        name="c4", info=types.SimpleNamespace(download_size=known), url_infos=urls
    )
    assert re.search(words, tfds_source.download_size(builder))


@pytest.mark.slow
def test_nothing_is_built_unasked_and_unknown_names_are_refused(tmp_path, root):
    done = python(READ, "tfds:glue/cola", "text", root=root, data_dir=tmp_path)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "allow_build=True" in done.stderr and "GB" in done.stderr, done.stderr[-2000:]

    done = python(READ, "tfds:no_such_thing", "text", root=root, data_dir=tmp_path)
    assert done.returncode == 1
    assert "no_such_thing" in done.stderr and "Traceback" not in done.stderr
