"""Workdirs that version 0.1.0 wrote are read, and their training goes on to the same figures.

`written_by_0_1_0.tar.xz` holds three workdirs after 4 steps and the two prepared datasets they
read: an encoder (2 layers of width 8, by configs/quickstart.py), a growing one (2 layers, then 4)
and a T5 (1 + 1 layers, by configs/t5_1day.py). Their config.json has the keys of both families in
`model`. Pictures, environment.json and the copies of the tokenizers are left out. The figures are
those of version 0.1.0 on the same files.
"""

import json
import pathlib
import shutil
import tarfile

import jax
import numpy as np
import pytest

import cramjax
from cramjax.config import families, stored
from cramjax.config.resolve import changed
from cramjax.sweeps import grid, sweep
from tests import stepping

ARCHIVE = pathlib.Path(__file__).with_name("written_by_0_1_0.tar.xz")
DATASETS = {"encoder": "encoder-data", "grown": "encoder-data", "t5": "t5-data"}
SUMS_OF_SQUARES = {"encoder": 49.009312, "grown": 81.380605, "t5": 1478.449570}
FILLED = {
    "encoder": [("house", 0.00952464), ("a", 0.00940185), (".", 0.00922006)],
    "grown": [("house", 0.00952598), ("a", 0.00940264), (".", 0.00922022)],
}
# After training on from step 4 to step 6.
AFTER = {
    "grown": {
        "train_loss": 4.785669,
        "eval_loss": 4.776256,
        "unigram_loss": 3.295955,
        "params": 3829,
    },
    "t5": {"train_loss": 5.300119, "eval_loss": 5.109047, "unigram_loss": 3.159911, "params": 4024},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    for name, dataset in DATASETS.items():
        shutil.copytree(folder / dataset / "tokenizer", folder / name / "tokenizer")
    return folder


def config_of(folder, name, **values):
    """The configuration in a config.json, with its dataset where it lies now."""
    content = json.loads((folder / name / "config.json").read_text())
    source = f"prepared:{folder / DATASETS[name]}"
    return changed(stored.read(content, "config.json", ""), {"data.source": source, **values})


@pytest.mark.parametrize("name", DATASETS)
def test_the_configuration_has_the_keys_of_its_family(written, name):
    content = json.loads((written / name / "config.json").read_text())
    assert {"first_norm", "relative_buckets"} <= content["model"].keys()
    config = config_of(written, name)
    assert config.model.to_dict().keys() == families.model_keys(config.model.family).keys()
    younger = {"init_embeddings"}
    assert config.to_dict().keys() == content.keys() | younger
    assert stored.current(content, "config.json", "")["model"] == config.model.to_dict()


@pytest.mark.parametrize("name", DATASETS)
def test_the_model_is_loaded(written, name):
    model = cramjax.load(written / name)
    assert model.step == 4
    squares = [float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(model.params)]
    assert sum(squares) == pytest.approx(SUMS_OF_SQUARES[name], rel=1e-5)
    if name in FILLED:
        (filled,) = cramjax.fill_mask(model, "The cat sees a [MASK] house.", top_k=3)
        assert [word for word, _ in filled] == [word for word, _ in FILLED[name]]
        assert [share for _, share in filled] == pytest.approx(
            [share for _, share in FILLED[name]], rel=1e-4
        )


def test_a_sweep_takes_a_finished_run(written):
    content = json.loads((written / "t5" / "config.json").read_text())
    config = json.loads(json.dumps(stored.read(content, "config.json", "").to_dict()))
    point = grid.Point(name="t5", values={}, spec="", overrides=(), config=config)
    (result,) = sweep.find_results([point], written)
    assert result.status == "finished" and result.summary["steps"] == 4


@pytest.mark.parametrize("name", AFTER)
def test_training_goes_on_to_the_same_figures(written, tmp_path, name):
    workdir = shutil.copytree(written / name, tmp_path / name)
    with stepping.one_device():
        summary = cramjax.train(config_of(written, name, **{"budget.steps": 6}), workdir)
    assert summary["resumed_from"] == 4 and summary["steps"] == 6
    for key, value in AFTER[name].items():
        assert summary[key] == pytest.approx(value, rel=1e-5), key
    model = json.loads((workdir / "config.json").read_text())["model"]
    assert model.keys() == families.model_keys(model["family"]).keys()
