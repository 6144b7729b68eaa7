"""Readings of the text by a run: by rows, in words, and as they are measured."""

import types

import pytest

from cramjax.config.resolve import get_config
from cramjax.data.dataset import TokenDataset
from cramjax.training import repeats
from tests.data.shards import write_dataset


def session_of(config, row_tokens=None):
    row_tokens = row_tokens or config.data.seq_len
    objective = types.SimpleNamespace(row_tokens=row_tokens, row_shape=row_tokens)
    return types.SimpleNamespace(config=config, objective=objective)


@pytest.fixture
def config():
    return get_config("quickstart:smoke", "budget.steps=None", "budget.hours=1")


@pytest.fixture
def dataset(tmp_path):
    return TokenDataset.open(write_dataset(tmp_path / "data", train=((6400,), (3200,))))


def test_the_source_that_comes_round_most_often_counts(config, dataset):
    # 100 and 50 rows of 64 tokens; each source gives half of the rows.
    assert repeats.epochs(dataset, config, session_of(config), 64 * 150) == pytest.approx(1.5)
    assert repeats.epochs(dataset, config, session_of(config), 0) == 0


def test_a_t5_reads_its_text_sooner_to_the_end_than_its_tokens_say(config, dataset):
    raw = session_of(config, row_tokens=80)  # of 64 the model sees
    assert repeats.epochs(dataset, config, raw, 64 * 80) == pytest.approx(1.0)


def test_one_reading_says_nothing_and_many_say_what_to_do(config, dataset):
    session = session_of(config)

    def lines(n_rows):
        return repeats.describe(dataset, config, session, 64 * n_rows, "expected")

    assert lines(100) == []
    (line,) = lines(250)
    assert "random:1 2.5 times" in line and "16,000 tokens expected, 9,600 there" in line
    first, *rest = lines(900)
    assert "9.0 times" in first and "2305.16264" in rest[0] and "data.max_mb" in rest[1]


def watch(config, dataset, said):
    said_lines = []
    run = types.SimpleNamespace(
        config=config,
        dataset=dataset,
        progress=types.SimpleNamespace(announce=said_lines.append),
    )
    return repeats.Watch(run, session_of(config), said), said_lines


def line(progress, rate):
    elapsed_s = 3600 * progress
    return {
        "progress": progress,
        "elapsed_s": elapsed_s,
        "tokens": rate * elapsed_s,
        "tokens_per_s": rate,
    }


def test_a_measured_rate_is_said_when_it_is_news(config, dataset):
    watched, lines = watch(config, dataset, None)
    watched.write(1, line(0.01, 10.0))
    assert lines == []  # the first steps say little
    watched.write(2, line(0.06, 10.0))  # 36,000 tokens in the hour, half of them from 50 rows
    assert len(lines) == 3 and "5.6 times" in lines[0]
    for share in (0.07, 0.12, 0.3, 0.6):
        watched.write(3, line(share, 10.5))
    assert len(lines) == 3
    watched, lines = watch(config, dataset, 5.0)
    watched.write(2, line(0.06, 10.0))
    watched.write(3, line(0.3, 30.0))
    assert len(lines) == 3 and "16.9 times" in lines[0]


def test_without_a_limit_in_hours_nothing_is_measured(dataset):
    watched, lines = watch(get_config("quickstart:smoke"), dataset, None)
    watched.write(2, line(0.5, 1e6))
    assert lines == []
