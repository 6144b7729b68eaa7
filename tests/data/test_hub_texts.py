"""The Hub's datasets that recipes name, against a stand-in with the real layout of each of them.

The layouts are those of the datasets' pages in November 2026, a few files of each folder.
"""

import gzip
import io
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from cramjax.config import schema, texts
from cramjax.config.recipes import RECIPES
from cramjax.config.resolve import get_config
from cramjax.data.dataset import TokenDataset
from cramjax.data.hub_tokenizer import with_local_tokenizer
from cramjax.errors import UserError
from tests.data.hub_stand_in import REVISION, serve
from tests.data.shards import word_tokenizer

READER = """
import json, sys, types
from cramjax.data.sources import open_sources
found = {}
for spec in sys.argv[2:]:
    data = types.SimpleNamespace(
        source=spec, text_field="text", keep=None, cache_dir=sys.argv[1], allow_build=False,
        heldout=None, target_field=None,
    )
    (source,) = open_sources(data)
    parts = source.parts()
    found[spec] = [[part.file for part in parts], None]
    if "_WordPiecex" not in spec:
        found[spec][1] = list(source.read(parts[0], print))
print(json.dumps(found))
"""
PREPARER = """
import sys
from cramjax.config import schema, texts
from cramjax.data import prepare
data = schema.defaults().data
data.update(cache_dir=sys.argv[1], heldout_fraction=0.2, **texts.IDS["pile_ids"])
print(prepare.prepare(data))
"""
STORY = "A page of the web."


def parquet(**columns):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": [STORY], **columns}), file)
    return file.getvalue()


def ids(n_rows, seed):
    rows = np.random.default_rng(seed).integers(5, 32768, (n_rows, 128)).tolist()
    file = io.BytesIO()
    column = pyarrow.array(rows, pyarrow.list_(pyarrow.int32()))
    pyarrow.parquet.write_table(pyarrow.table({"input_ids": column}), file)
    return file.getvalue()


C4 = gzip.compress(
    json.dumps({"text": STORY, "timestamp": "2019-04-25T12:57:54Z", "url": "http://a"}).encode()
)
EDU = parquet(
    id=["<urn:uuid:0>"], dump=["CC-MAIN-2013-20"], url=["http://a"], file_path=["s3://a"],
    language=["en"], language_score=[0.95], token_count=[5], score=[3.1], int_score=[3],
)  # fmt: skip
REPOSITORIES = {
    "allenai/c4": {
        "en/c4-train.00000-of-01024.json.gz": C4,
        "en/c4-train.01023-of-01024.json.gz": C4,
        "en/c4-validation.00000-of-00008.json.gz": C4,
        "en.noblocklist/c4-train.00000-of-01024.json.gz": C4,
        "realnewslike/realnewslike-train.00000-of-00512.json.gz": C4,
    },
    "HuggingFaceFW/fineweb-edu": {
        "README.md": b"a card",
        "data/CC-MAIN-2013-20/train-00000-of-00014.parquet": EDU,
        "sample/10BT/000_00000.parquet": EDU,
        "sample/100BT/000_00000.parquet": EDU,
        "sample/350BT/000_00000.parquet": EDU,
        "sample/350BT/001_00001.parquet": EDU,
    },
    "karpathy/climbmix-400b-shuffle": {
        "README.md": b"a card",
        "shard_00000.parquet": parquet(),
        "shard_06542.parquet": parquet(),
    },
    "JonasGeiping/the_pile_WordPiecex32768_2efdb9d060d1ae95faf952ec1a50f020": {
        "README.md": b"a card",
        "data/train-00000-of-00088-3c9c6b9b2a4d1f5e.parquet": ids(300, 0),
        "data/train-00087-of-00088-d5a6d8e03954adf9.parquet": ids(200, 1),
        "tokenizer/tokenizer.json": word_tokenizer(32768).encode(),
        "tokenizer/tokenizer_config.json": b"{}",
    },
}
WANTED = {
    texts.C4: [
        "en/c4-train.00000-of-01024.json.gz",
        "en/c4-train.01023-of-01024.json.gz",
    ],
    texts.WEB["fineweb_edu"]["source"]: [
        "sample/350BT/000_00000.parquet",
        "sample/350BT/001_00001.parquet",
    ],
    texts.WEB["climbmix"]["source"]: ["shard_00000.parquet", "shard_06542.parquet"],
    texts.IDS["pile_ids"]["source"]: [
        "data/train-00000-of-00088-3c9c6b9b2a4d1f5e.parquet",
        "data/train-00087-of-00088-d5a6d8e03954adf9.parquet",
    ],
}


@pytest.fixture
def hub():
    with serve(REPOSITORIES) as address:
        yield address


def run(root, tmp_path, script, *arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    clean |= {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(root), **environment}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "cache"), *arguments],
        env=clean,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_address_names_the_files_that_are_meant_and_their_text(hub, tmp_path, root):
    found = json.loads(run(root, tmp_path, READER, *WANTED, HF_ENDPOINT=hub))
    assert {spec: files for spec, (files, _) in found.items()} == WANTED
    read = [documents for _, documents in found.values()]
    assert read == [[STORY], [STORY], [STORY], None]


def test_the_tokenizer_of_ids_comes_from_beside_them_and_is_kept(hub, tmp_path, root):
    directory = run(root, tmp_path, PREPARER, HF_ENDPOINT=hub).strip()
    dataset = TokenDataset.open(directory)
    dataset.verification.at_once()
    n_rows = [dataset.n_sequences(split, 128)[0] for split in ("train", "heldout")]
    assert sum(n_rows) == 500 and all(n_rows) and dataset.vocab_size == 32768
    assert dataset.manifest["sources"][0]["revision"] == REVISION
    again = run(root, tmp_path, PREPARER, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert again.strip() == directory


@pytest.mark.parametrize("address", ["hf:a", "hf:a/b", "hf:a/b:"])
def test_an_address_of_a_tokenizer_without_a_file_is_refused(tmp_path, address):
    data = schema.defaults().data
    data.update(cache_dir=str(tmp_path), tokenizer=address)
    with pytest.raises(UserError, match="hf:OWNER/NAME:FILE"):
        with_local_tokenizer(data)


def test_every_recipe_that_reads_the_hub_names_one_of_these_and_has_the_others_as_variants():
    n_recipes = 0
    for path in sorted(RECIPES.glob("*.py")):
        config = get_config(path.stem)
        if not str(config.data.source).startswith("hf:"):
            assert texts.variants(config) == {}
            continue
        n_recipes += 1
        assert config.data.source == texts.C4
        for name, keys in texts.variants(config).items():
            changed = get_config(f"{path.stem}:{name}")
            assert changed.data.source in WANTED and changed.name == f"{path.stem}-{name}"
            assert {key: changed.data[key] for key in keys} == keys
            assert changed.model == config.model
    assert n_recipes >= 9


def test_ids_of_128_tokens_are_offered_where_they_fit():
    for recipe, has_ids in (
        ("bert_1day", True),
        ("bert_stack", True),
        ("bert_original", False),  # a [CLS] takes a place in every row
        ("bert_24h_academic", False),  # another vocabulary
        ("t5_1day", False),
    ):
        assert ("pile_ids" in texts.variants(get_config(recipe))) == has_ids, recipe
