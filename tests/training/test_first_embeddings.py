"""Embeddings that start from counts: their lengths, their directions, and nothing else changes."""

import types

import jax
import numpy as np
import pytest

from cramjax.training.first_embeddings import ROW_LENGTH, from_cooccurrence
from cramjax.training.state import initial_state
from tests import stepping
from tests.data.test_cooccurrence import TOPICS, rows_by_topic

WIDTH = 16
DATASET = types.SimpleNamespace(
    vocab_size=64,
    special_tokens={"pad": 0},
    spread=lambda n_tokens, row_shape: rows_by_topic(),
    refuse_foreign=lambda rows, split: None,
)


def fresh_and_counted(*overrides, seed=0, **settings):
    made = stepping.open_tiny(f"model.d_model={WIDTH}", *overrides, **settings)
    parts = made.objective, made.optimizer, made.dynamic_scale, made.abstract
    fresh = initial_state(*parts, seed).params
    counted = from_cooccurrence(DATASET, made, fresh, seed)
    old, new = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (fresh, counted))
    changed = {jax.tree_util.keystr(path) for path in old if (old[path] != new[path]).any()}
    return fresh, counted, changed


def test_only_the_embeddings_change_and_have_one_length():
    fresh, counted, changed = fresh_and_counted()
    assert changed == {"['encoder']['embeddings']['tokens']"}
    rows = np.asarray(counted["encoder"]["embeddings"]["tokens"])
    assert not rows[0].any()  # the padding
    np.testing.assert_allclose(np.linalg.norm(rows[1:], axis=1), ROW_LENGTH, rtol=1e-5)

    # What the text does not have keeps its direction.
    unseen = np.asarray(fresh["encoder"]["embeddings"]["tokens"])[60:]
    expected = ROW_LENGTH * unseen / np.linalg.norm(unseen, axis=1, keepdims=True)
    np.testing.assert_allclose(rows[60:64], expected[:4], rtol=1e-5)


def test_tokens_that_stand_together_are_alike_under_every_seed():
    likeness = []
    for seed in (0, 1):
        _, counted, _ = fresh_and_counted(seed=seed)
        rows = np.asarray(counted["encoder"]["embeddings"]["tokens"])[TOPICS:60]
        likeness.append(rows @ rows.T / ROW_LENGTH**2)
    np.testing.assert_allclose(*likeness, atol=1e-5)
    topics = np.arange(TOPICS, 60) % TOPICS
    is_same = topics[:, None] == topics[None]
    assert likeness[0][is_same].mean() > 0.5 > 0.1 > likeness[0][~is_same].mean()


def test_of_t5_the_matrix_of_the_logits_starts_like_the_embedding():
    _, counted, changed = fresh_and_counted(recipe="t5_1day")
    assert changed == {"['embeddings']['tokens']", "['head']['kernel']"}
    tokens, kernel = (
        np.asarray(leaf)[TOPICS:60]
        for leaf in jax.tree.leaves((counted["embeddings"]["tokens"], counted["head"]["kernel"]))
    )
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=1), ROW_LENGTH, rtol=1e-5)
    lengths = np.linalg.norm(tokens, axis=1)
    assert lengths.std() < 1e-4 and lengths.mean() == pytest.approx(WIDTH**0.5, rel=0.2)
    np.testing.assert_allclose(tokens / lengths[:, None], kernel / ROW_LENGTH, atol=1e-5)


def test_devices_that_share_the_embedding_hold_what_one_would():
    one = fresh_and_counted()[1]
    eight = fresh_and_counted("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", devices=8)[1]
    assert len(eight["encoder"]["embeddings"]["tokens"].sharding.device_set) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, eight)
