"""Blocks that are held out of long documents."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_prepare import documents_of, settings
from text_source import FakeSource, document

from cramjax.data import heldout, prepare
from cramjax.data.clean import cut
from cramjax.data.dataset import TokenDataset
from cramjax.data.dedup import is_heldout
from cramjax.data.loader import heldout_rows
from cramjax.errors import UserError


@given(
    st.integers(1, 2000),
    st.integers(0, 2**64 - 1),
    st.sampled_from([0.01, 0.1, 0.5]),
    st.integers(16, 3000),
)
def test_pieces_are_the_document_and_hold_out_its_share(n_words, split, fraction, max_chars):
    text = " ".join(f"word{number}" for number in range(n_words))
    pieces = list(
        heldout.HeldOut(fraction=fraction, long_chars=0).split(cut(text, max_chars), split)
    )
    assert "".join(piece for piece, _ in pieces) == text
    assert all(piece for piece, _ in pieces)
    n_heldout = sum(len(piece) for piece, value in pieces if value == heldout.HELD_OUT)
    # The place of the cut is that of the next space.
    assert abs(n_heldout - fraction * len(text)) <= 16 * 20
    assert {value for _, value in pieces} <= {heldout.HELD_OUT, heldout.TRAINED}


def test_the_two_values_decide_at_every_fraction():
    for fraction in (1e-9, 0.01, 0.5):
        decided = is_heldout(np.array([heldout.HELD_OUT, heldout.TRAINED], np.uint64), fraction)
        assert decided.tolist() == [True, False]


@pytest.mark.parametrize("n_bytes", [None, 1e11])
def test_documents_of_a_large_or_unknown_corpus_are_held_out_whole(n_bytes):
    # The longest documents that there are have 16 million characters.
    pieces = ["a" * (1 << 24)]
    assert list(heldout.rule(0.01, n_bytes).split(pieces, 5)) == [(pieces[0], 5)]


@pytest.mark.parametrize("n_documents, n_texts", [(1, 1500), (5, 300)])
def test_a_few_long_documents_hold_out_their_share(tmp_path, n_documents, n_texts):
    texts = []
    for book in range(n_documents):
        texts.append(" ".join(document(book, number) for number in range(n_texts)))
    source = FakeSource(parts_n=1, documents_n=0, texts=tuple(texts))
    directory = prepare.prepare(settings(tmp_path, heldout_fraction=0.05), [source], n_workers=1)
    manifest = prepare.read_manifest(directory)
    share = manifest["heldout_tokens"] / manifest["tokens"]
    assert 0.03 < share < 0.07
    assert not set(documents_of(directory, "train")) & set(documents_of(directory, "heldout"))


def test_ordinary_documents_are_as_they_were(tmp_path):
    source = FakeSource(parts_n=3)
    rule = heldout.rule(0.1, 30_000)
    for number in range(120):
        assert len(list(rule.split([document(0, number)], 7))) == 1
    directory = prepare.prepare(settings(tmp_path), [source], n_workers=1)
    assert prepare.read_manifest(directory)["documents"] == 120


def test_a_held_out_text_of_its_own_that_is_too_short_is_to_be_longer(tmp_path):
    held_out = tmp_path / "held.txt"
    held_out.write_text("A few words that the other text does not have.\n")
    (tmp_path / "a.txt").write_text("\n\n".join(document(0, number) for number in range(300)))
    data = settings(tmp_path, source=f"text:{tmp_path}/a.txt", heldout=f"text:{held_out}")
    dataset = TokenDataset.open(prepare.prepare(data, n_workers=1))
    with pytest.raises(UserError, match="give more text in data.heldout, or a smaller data.seq_l"):
        heldout_rows(dataset, seq_len=64)


@pytest.mark.parametrize("n_texts, n_documents", [(40, 1), (70, 1), (3, 12), (1, 60)])
def test_the_advice_for_a_corpus_that_holds_out_nothing_works(tmp_path, n_texts, n_documents):
    texts = []
    for book in range(n_documents):
        texts.append(" ".join(document(book, number) for number in range(n_texts)))
    source = FakeSource(parts_n=1, documents_n=0, texts=tuple(texts))
    fraction = 0.001
    for _ in range(3):
        data = settings(tmp_path, heldout_fraction=fraction)
        dataset = TokenDataset.open(prepare.prepare(data, [source], n_workers=1))
        try:
            assert heldout_rows(dataset, seq_len=64)
            return
        except UserError as error:
            (advised,) = re.findall(r"raise data.heldout_fraction to ([0-9.]+)$", str(error))
            assert float(advised) > fraction
            fraction = float(advised)
    pytest.fail("the advice was followed three times in vain")
