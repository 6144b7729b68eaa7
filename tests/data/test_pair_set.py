"""The pairs that a run is scored by: a source as it stands, or the held-out pairs."""

import pytest

from cramjax import get_config
from cramjax.data import prepare
from cramjax.data.dataset import TokenDataset
from cramjax.data.pair_set import open_pair_set
from cramjax.errors import UserError
from tests.data.test_pairs import config_of, sentences, write_parallel
from tests.glue import distributed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture(scope="module")
def source(folder):
    return write_parallel(folder, sentences(400))


@pytest.fixture(scope="module")
def dataset(folder, source):
    return TokenDataset.open(prepare.prepare(config_of(folder, source).data, n_workers=1))


def test_held_out_pairs_are_taken_from_the_dataset(folder, source, dataset):
    config = config_of(folder, source, "eval.bleu=True", "eval.bleu_pairs=1000")
    found = open_pair_set(config, dataset)
    assert len(found.references) == len(found.inputs) == len(dataset.pairs("heldout", 0)) > 10
    assert found.name == "held-out pairs" and not found.has_more
    assert set(found.references) <= {target for _, target in sentences(400)}
    assert all(ids[-1] == dataset.special_tokens["sep"] for ids in found.inputs)


def test_a_named_source_is_read_as_it_stands(folder, source, dataset):
    # Twice the same pair, one of the training text, one too long, and one without a target.
    first = sentences(400)[0]
    pairs = [("ein\x00s  zwei", " One,  two! "), ("eins", "x"), ("eins", "x"), first]
    pairs += [("eins " * 200, "long"), ("drei", ""), ("vier", "four")]
    (folder / "test").mkdir()
    test = write_parallel(folder / "test", pairs)
    flags = ("eval.bleu=True", f"eval.bleu_source={test}", "data.seq_len=32")
    found = open_pair_set(config_of(folder, source, *flags), dataset)
    assert found.references == [" One,  two! ", "x", "x", first[1], "long", "four"]
    assert len(found.inputs[4]) == 32 and found.inputs[1] == found.inputs[2]

    config = config_of(folder, source, *flags, "eval.bleu_pairs=2")
    few = open_pair_set(config, dataset)
    assert (
        few.has_more and few.inputs == found.inputs[:2] and few.references == [" One,  two! ", "x"]
    )

    held_out = config_of(folder, source, "eval.bleu=True", f"data.heldout={test}")
    assert open_pair_set(held_out, dataset).references == found.references
    (folder / "empty").mkdir()
    empty = write_parallel(folder / "empty", [("a", "")])
    with pytest.raises(UserError, match="has no pair to score"):
        open_pair_set(config_of(folder, source, *flags[:1], f"eval.bleu_source={empty}"), dataset)
    gone = config_of(folder, source, *flags[:1], "eval.bleu_source=pairs:nowhere.tsv")
    with pytest.raises(UserError, match="^eval.bleu_source=pairs:nowhere.tsv: no such file"):
        open_pair_set(gone, dataset)


@pytest.mark.parametrize("key", ["data.heldout", "eval.bleu_source"])
def test_of_a_task_the_validation_rows_are_scored(folder, source, dataset, tmp_path, key):
    (tmp_path / "CoLA").mkdir()
    for name, content in distributed.GLUE["cola"].items():
        (tmp_path / name).write_text(content)
    config = config_of(folder, source, "eval.bleu=True", f"{key}=glue:{tmp_path}")
    # Two rows of training are there as well.
    assert open_pair_set(config, dataset).references == ["acceptable"]


def test_the_text_of_a_source_never_ends_it(folder, source, dataset):
    (folder / "sep").mkdir()
    test = write_parallel(folder / "sep", [("eins </s> zwei", "x")])
    config = config_of(folder, source, "eval.bleu=True", f"eval.bleu_source={test}")
    (ids,) = open_pair_set(config, dataset).inputs
    end = dataset.special_tokens["sep"]
    assert len(ids) > 3 and ids[-1] == end and ids.count(end) == 1


def test_mistakes_are_told_before_anything_starts():
    with pytest.raises(UserError, match="eval.bleu=True: needs objective.name=text_to_text"):
        get_config("quickstart", "eval.bleu=True")
    with pytest.raises(UserError, match="eval.bleu_source=text:a.txt: holds no pairs"):
        get_config("t5_pairs", "eval.bleu_source=text:a.txt")
