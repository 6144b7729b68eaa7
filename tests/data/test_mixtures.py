"""Mixtures by size: T5's rates, in pairs and not in rows. The tasks of GLUE are such mixtures."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cramjax.config.mixing import Mixing
from cramjax.config.pairs import PairShape
from cramjax.config.resolve import get_config
from cramjax.data import index, loader, prepare
from cramjax.data.dataset import TokenDataset
from cramjax.data.sources import open_sources
from cramjax.errors import UserError
from cramjax.glue import inputs, local_files
from cramjax.glue.tasks import SUITES
from tests.data.test_pairs import config_of, read, sentences, write_parallel
from tests.glue import distributed

SHAPE = PairShape(n_inputs=64, n_targets=48)


@given(
    st.lists(st.integers(1, 10**9), min_size=1, max_size=9),
    st.none() | st.integers(1, 10**6),
    st.floats(1.0, 8.0),
)
def test_rates_are_those_of_t5(sizes, limit, temperature):
    # arXiv 1910.10683, section 3.5.2.
    rates = Mixing(limit=limit, temperature=temperature).rates(sizes)
    counted = np.minimum(sizes, limit or max(sizes)).astype(np.float64) ** (1 / temperature)
    np.testing.assert_allclose(rates, counted / counted.sum(), rtol=1e-9)
    order = np.argsort(sizes)
    assert (np.diff(np.asarray(rates)[order]) >= -1e-12).all()


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """300 short pairs and 60 long ones, mixed by size, each source with a prefix of its own."""
    folder = tmp_path_factory.mktemp("mixture")
    short = [(source[:6], target[:4]) for source, target in sentences(300)]
    long = [(f"{source} " * 3, f"{target} " * 3) for source, target in sentences(60, seed=1)]
    specs = []
    for name, pairs in (("short", short), ("long", long)):
        numbered = [(f"{number} {pair[0]}", pair[1]) for number, pair in enumerate(pairs)]
        specs.append(write_parallel(folder, numbered, (f"{name}.de", f"{name}.en")))
    source = [[specs[0], "auto", "s: "], [specs[1], "auto", "l: "]]
    config = config_of(folder, source, "data.heldout_fraction=0.0")
    return config, TokenDataset.open(prepare.prepare(config.data, n_workers=1))


@pytest.mark.parametrize(
    "limit, temperature, wanted",
    [
        (None, 1.0, [300 / 360, 60 / 360]),
        (60, 1.0, [0.5, 0.5]),
        (120, 1.0, [2 / 3, 1 / 3]),
        (None, 2.0, [5**0.5 / (1 + 5**0.5), 1 / (1 + 5**0.5)]),
    ],
)
def test_pairs_come_in_the_rates_whatever_a_row_holds(mixture, limit, temperature, wanted):
    config, dataset = mixture
    overrides = [f"data.mixture_limit={limit}", f"data.mixture_temperature={temperature}"]
    source = f"data.source=prepared:{dataset.directory}"
    again = get_config("t5_pairs:smoke", source, *overrides)
    mixed = prepare.open_data(again.data, lambda line: None)
    sizes = mixed.n_sequences("train", SHAPE)
    weights = mixed.row_weights(SHAPE)
    source, row = index.rows_at(0, np.arange(index.MIXTURE_BLOCK), sizes, weights)
    n_pairs = []
    for number in range(2):
        _, counts = mixed.pair_rows("train", number, SHAPE).pairs_of(row[source == number])
        n_pairs.append(counts.sum())
    np.testing.assert_allclose(n_pairs / np.sum(n_pairs), wanted, rtol=0.01)
    # What is read is what the pattern says.
    reader = loader.open_loader(mixed, seed=0, seq_len=SHAPE, loader="numpy")
    unit = next(reader.stream(0, 8))
    wanted_rows = [mixed.read("train", source[i], row[i : i + 1], SHAPE)[0] for i in range(8)]
    np.testing.assert_array_equal(unit, wanted_rows)


def test_in_proportion_every_source_ends_its_epoch_at_once(mixture):
    _, dataset = mixture
    sizes = dataset.n_sequences("train", SHAPE)
    np.testing.assert_allclose(
        np.divide(dataset.row_weights(SHAPE), sizes), np.full(2, 1 / 360), rtol=1e-9
    )


def test_a_dataset_with_weights_has_no_rates_by_size(tmp_path):
    specs = []
    for name in ("a", "b"):
        specs.append(write_parallel(tmp_path, sentences(60), (f"{name}.de", f"{name}.en")))
    config = config_of(tmp_path, [[specs[0], 2], [specs[1], 1]], "data.dedup_exact=False")
    directory = prepare.prepare(config.data, n_workers=1)
    source = f"data.source=prepared:{directory}"
    assert TokenDataset.open(directory).mixed(get_config("t5_pairs", source).data).weights == (2, 1)
    limited = get_config("t5_pairs", source, "data.mixture_limit=9")
    with pytest.raises(UserError, match="^data.mixture_limit=9: .* is no mixture by size; prep"):
        prepare.open_data(limited.data, lambda line: None)


def test_sources_without_an_example_share_nothing():
    assert Mixing().rates([0, 0]) == [0.0, 0.0]


@pytest.mark.parametrize("weight, wanted", [(2, 2 / 9), ("'auto'", 1.0)])
def test_the_tasks_of_a_suite_share_its_weight(tmp_path, weight, wanted):
    distributed.write(tmp_path, "glue")
    (tmp_path / "a.de").write_text("eins\n")
    pairs = f"pairs:{tmp_path}/a.de,{tmp_path}/a.de"
    other = weight if weight != 2 else 1
    config = config_of(tmp_path, f"[['glue:{tmp_path}', {weight}], ['{pairs}', {other}]]")
    *tasks, last = open_sources(config.data)
    assert [source.weight for source in tasks] == [pytest.approx(wanted)] * 9
    assert last.weight == 1.0


def test_sources_of_a_mixture_have_prefixes_of_their_own(mixture):
    config, _ = mixture
    prefixes = [source.form.prefix for source in open_sources(config.data)]
    assert prefixes == ["s: ", "l: "]
    with pytest.raises(UserError, match="must be a source, a weight and, for pairs, a prefix"):
        open_sources(get_config("t5_pairs:smoke", "data.source=[['pairs:a,b', 1, 2]]").data)
    with pytest.raises(UserError, match="holds no pairs, so no prefix"):
        open_sources(get_config("quickstart", "data.source=[['text:a', 1, 'x']]").data)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["data.source=[['pairs:a,b', 'auto'], ['pairs:c,d', 2]]"], "'auto' for all sources or"),
        (["data.source=glue:d", "data.max_mb=5"], "data.max_mb=5: must be None in a mixture"),
        (["data.mixture_limit=9"], "data.mixture_limit=9: needs a mixture by size"),
        (["data.mixture_temperature=0.5"], "data.mixture_temperature=0.5: must be at least 1"),
    ],
)
def test_keys_that_do_not_fit_a_mixture_are_told(overrides, message):
    with pytest.raises(UserError) as error:
        get_config("t5_pairs", *overrides)
    assert message in str(error.value)


@pytest.mark.parametrize("suite", ["glue", "superglue"])
def test_a_suite_gives_the_rows_of_each_task_in_t5s_form(tmp_path, suite):
    distributed.write(tmp_path, suite)
    tasks = [task for task in SUITES[suite] if not task.first]
    config = config_of(tmp_path, f"{suite}:{tmp_path}", f"data.heldout={suite}:{tmp_path}")
    held, *sources = open_sources(config.data)
    assert [source.spec for source in sources] == [
        f"{suite}:{tmp_path}/{task.folder}" for task in tasks
    ]
    found, dropped = read(tmp_path, f"{suite}:{tmp_path}")
    wanted = []
    for task in tasks:
        for row in local_files.read(task, tmp_path, "train", lambda line: None):
            source = inputs.source_text(task, row)
            wanted += [(source, target) for target in inputs.target_texts(task, row)]
    assert found == wanted and not dropped and len(wanted) >= len(tasks) - 1
    n_splits = sum(len(task.splits) for task in tasks)
    assert held.weight == 0 and len(held.parts()) == n_splits


def test_a_folder_without_tasks_and_a_task_alone(tmp_path, caplog):
    with pytest.raises(UserError, match="holds no CoLA/ or another task"):
        open_sources(config_of(tmp_path, f"glue:{tmp_path}").data)
    for name, content in distributed.GLUE["sst2"].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    (source,) = open_sources(config_of(tmp_path, f"glue:{tmp_path}").data)
    assert source.spec.endswith("SST-2") and "has no CoLA, MRPC" in caplog.text
    (alone,) = open_sources(config_of(tmp_path, f"glue:{tmp_path}/SST-2").data)
    assert alone.spec == source.spec
    missing = config_of(tmp_path, f"glue:{tmp_path}/RTE", "data.heldout=None")
    with pytest.raises(UserError, match=r"RTE/train.tsv: no such file"):
        open_sources(missing.data)
