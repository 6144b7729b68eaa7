"""Orders of the training sequences: each by its own definition, over what is on the disk."""

import numpy as np
import pytest
from executors import InThisProcess
from test_prepare import settings
from text_source import FakeSource

from cramjax.data import orders, prepare, tokenizers
from cramjax.data.dataset import TokenDataset
from cramjax.data.loader import open_loader
from cramjax.errors import UserError

SEQ_LEN = 16


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Order → its dataset, of two sources; they differ in their orders alone."""
    folder = tmp_path_factory.mktemp("orders")
    found = {}
    for name in ("sentence_length", "word_length", "fragment", "unigram", "reverse_unigram"):
        data = settings(folder, order=name, seq_len=SEQ_LEN)
        sources = [FakeSource(), FakeSource(spec="fake:other", seed=1)]
        found[name] = TokenDataset.open(prepare.prepare(data, sources, executor=InThisProcess()))
    return found


def rows(dataset, name, source=0):
    """All training sequences in the order `name`: [n_sequences, SEQ_LEN]."""
    order = dataset.order(name, source, SEQ_LEN)
    assert sorted(order.tolist()) == list(range(len(order))) and len(order) > 50
    return dataset.read("train", source, order, SEQ_LEN)


def probabilities(dataset, sequences):
    """Mean log2 probability of each sequence, by the formula of Cramming's code in floats."""
    counts = dataset.unigram_counts
    shares = (counts + 1) / (counts.sum() + len(counts))
    return np.log2(shares)[sequences].mean(axis=1)


@pytest.mark.parametrize("name, token", [("sentence_length", "."), ("fragment", "[SEP]")])
@pytest.mark.parametrize("source", [0, 1])
def test_sequences_with_the_most_of_a_token_come_first(datasets, name, token, source):
    dataset = datasets[name]
    token_id = dataset.special_tokens["sep"]
    if token == ".":
        token_id = tokenizer_of(dataset).token_to_id(".")
    counts = (rows(dataset, name, source) == token_id).sum(axis=1)
    assert (np.diff(counts) <= 0).all() and counts[0] > counts[-1]
    # Equal ones keep the order of the dataset.
    order = dataset.order(name, source, SEQ_LEN).astype(int)
    assert (np.diff(order)[np.diff(counts) == 0] > 0).all()


def tokenizer_of(dataset):
    return tokenizers.load(dataset.directory / "tokenizer" / "tokenizer.json")[0]


def test_the_shortest_decoded_text_comes_first(datasets):
    dataset = datasets["word_length"]
    sequences = rows(dataset, "word_length")
    decode = tokenizer_of(dataset).decode
    lengths = np.array([len(decode(ids.tolist(), skip_special_tokens=False)) for ids in sequences])
    values = orders.token_values(
        "word_length", tokenizer_of(dataset), dataset.unigram_counts, dataset.special_tokens["sep"]
    )
    sums = values[sequences].sum(axis=1)
    assert (np.diff(sums) >= 0).all() and sums[0] < sums[-1]
    # Behind another token a word has a space before it; the first one of a text has none.
    starts = np.array([decode([ids[0]]).startswith("##") for ids in sequences])
    plain = ~starts
    assert plain.sum() > 20 and (np.abs(sums - lengths)[plain] <= 1).all()


def test_rare_words_come_first_and_the_reverse_reads_the_same_files(datasets):
    dataset = datasets["unigram"]
    found = probabilities(dataset, rows(dataset, "unigram"))
    # Scores are rounded to 2^-20 a token.
    assert (np.diff(found) >= -(2.0**-19)).all() and found[0] < found[-1] - 0.1
    assert datasets["reverse_unigram"].directory == dataset.directory
    backwards = rows(dataset, "reverse_unigram")
    np.testing.assert_array_equal(backwards, rows(dataset, "unigram")[::-1])


def test_a_loader_reads_a_reversed_order_from_its_end(tmp_path):
    data = settings(tmp_path, order="reverse_unigram", seq_len=SEQ_LEN)
    directory = prepare.prepare(data, [FakeSource()], executor=InThisProcess())
    dataset = TokenDataset.open(directory)
    loader = open_loader(dataset, seed=0, seq_len=SEQ_LEN, order="reverse_unigram", loader="numpy")
    backwards = rows(dataset, "unigram")[::-1]
    # The second epoch is read in the same order.
    n_rows = len(backwards) + 10
    wanted = np.concatenate([backwards, backwards[:10]])
    np.testing.assert_array_equal(next(loader.stream(0, n_rows)), wanted)


def test_an_order_is_the_same_whoever_computes_it_and_has_its_digest(datasets, tmp_path):
    data = settings(tmp_path, order="unigram", seq_len=SEQ_LEN)
    sources = [FakeSource(), FakeSource(spec="fake:other", seed=1)]
    directory = prepare.prepare(data, sources, n_workers=2)
    ours = datasets["unigram"]
    for source in (0, 1):
        name = orders.file_name("unigram", SEQ_LEN, source)
        assert (directory / name).read_bytes() == (ours.directory / name).read_bytes()
        assert name in ours.manifest["files"]
    # The tokens are those of every other order.
    theirs = datasets["fragment"]
    assert [one["sha256"] for one in ours.manifest["shards"]] == [
        one["sha256"] for one in theirs.manifest["shards"]
    ]


def test_an_order_that_was_not_prepared_is_one_sentence(datasets):
    with pytest.raises(UserError, match="unigram_order-16-0.npy is absent.*data.order='unigram'"):
        datasets["fragment"].order("unigram", 0, SEQ_LEN)
    with pytest.raises(UserError, match="word_length_order-32-0.npy.*of 32 tokens"):
        datasets["word_length"].order("word_length", 0, 32)
