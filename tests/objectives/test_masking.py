import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cramjax.config.resolve import get_config
from cramjax.models.layers import FLOAT32
from cramjax.objectives import families, masking
from cramjax.objectives.masked_lm import MaskedLM
from cramjax.training.session import AssumedVocabulary

MASKING = masking.Masking(
    mask_rate=0.25,
    mask_share=0.8,
    random_share=0.1,
    mask_id=4,
    special_ids=(0, 1, 2, 3, 4),
    vocab_size=1000,
)


def tokens_and_rows(batch=16, length=128, seed=0, share_special=0.05):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(5, 1000, (batch, length))
    tokens[generator.random((batch, length)) < share_special] = 3
    return jnp.asarray(tokens, jnp.int32), jnp.arange(batch, dtype=jnp.int32)


def test_counts_are_exact_in_every_sequence():
    tokens, rows = tokens_and_rows()
    batch = masking.mask_tokens(MASKING, jax.random.key(0), tokens, rows)
    assert batch.positions.shape == (16, 32)  # 25% of 128
    changed_to_mask = np.asarray(batch.inputs == 4).sum(1)
    np.testing.assert_array_equal(changed_to_mask, 26)  # 80%, rounded
    kept = np.take_along_axis(
        np.asarray(batch.inputs), np.asarray(batch.positions), 1
    ) == np.asarray(batch.labels)
    assert (kept.sum(1) >= 3).all() and (
        kept.sum(1) <= 4
    ).all()  # 32 - 26 - 3, and a random token may hit the label


def test_positions_are_distinct_and_nothing_else_changes():
    tokens, rows = tokens_and_rows()
    batch = masking.mask_tokens(MASKING, jax.random.key(1), tokens, rows)
    for row in range(16):
        positions = np.asarray(batch.positions[row])
        assert len(set(positions)) == 32
        others = np.setdiff1d(np.arange(128), positions)
        np.testing.assert_array_equal(
            np.asarray(batch.inputs)[row, others], np.asarray(tokens)[row, others]
        )
    np.testing.assert_array_equal(
        np.take_along_axis(np.asarray(tokens), np.asarray(batch.positions), 1), batch.labels
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0.0, 1.0))
def test_special_tokens_are_never_chosen(seed, share_special):
    tokens, rows = tokens_and_rows(4, 32, seed, share_special)
    batch = masking.mask_tokens(MASKING, jax.random.key(seed), tokens, rows)
    special = np.isin(np.asarray(batch.labels), MASKING.special_ids)
    # A row with too few ordinary tokens fills up with special ones at weight 0, untouched.
    np.testing.assert_array_equal(np.asarray(batch.weights) == 0, special)
    ordinary = (~np.isin(np.asarray(tokens), MASKING.special_ids)).sum(1)
    np.testing.assert_array_equal(np.asarray(batch.weights).sum(1), np.minimum(ordinary, 8))
    untouched = np.isin(np.asarray(tokens), MASKING.special_ids)
    np.testing.assert_array_equal(
        np.asarray(batch.inputs)[untouched], np.asarray(tokens)[untouched]
    )


def test_special_tokens_are_chosen_as_any_other_if_they_may_be():
    """Cramming's collator disregards them: exact counts, every weight 1, whatever a row holds."""
    free = dataclasses.replace(MASKING, special_ids=())
    tokens, rows = tokens_and_rows(64, 128, share_special=0.5)
    batch = masking.mask_tokens(free, jax.random.key(3), tokens, rows)
    assert (np.asarray(batch.weights) == 1).all() and batch.positions.shape == (64, 32)
    # A quarter of all tokens; so about a quarter of the special ones, of which there are 4,096.
    chosen = (np.asarray(batch.labels) == 3).sum()
    assert 0.22 < chosen / (np.asarray(tokens) == 3).sum() < 0.28
    # Without special tokens in a row the choice is the same either way.
    ordinary, rows = tokens_and_rows(4, 128, share_special=0.0)
    either = [
        masking.mask_tokens(one, jax.random.key(3), ordinary, rows) for one in (MASKING, free)
    ]
    np.testing.assert_array_equal(either[0].inputs, either[1].inputs)


def test_a_row_depends_on_its_number_and_not_on_its_neighbours():
    tokens, rows = tokens_and_rows()
    key = jax.random.key(7)
    whole = masking.mask_tokens(MASKING, key, tokens, rows)
    parts = [
        masking.mask_tokens(MASKING, key, tokens[i : i + 4], rows[i : i + 4])
        for i in range(0, 16, 4)
    ]
    np.testing.assert_array_equal(whole.inputs, jnp.concatenate([part.inputs for part in parts]))
    np.testing.assert_array_equal(
        whole.positions, jnp.concatenate([part.positions for part in parts])
    )


def test_masks_differ_between_steps_rows_and_seeds():
    tokens, rows = tokens_and_rows(share_special=0.0)
    one = masking.mask_tokens(MASKING, jax.random.key(0), tokens, rows)
    other = masking.mask_tokens(MASKING, jax.random.fold_in(jax.random.key(0), 1), tokens, rows)
    assert (np.sort(one.positions) != np.sort(other.positions)).any(1).all()
    assert len({tuple(sorted(np.asarray(row))) for row in one.positions}) == 16


def test_positions_are_uniform():
    chosen = masking.Masking(**{**MASKING.__dict__, "mask_rate": 0.25})
    tokens, rows = tokens_and_rows(4000, 64, share_special=0.0)
    batch = masking.mask_tokens(chosen, jax.random.key(3), tokens, rows)
    counts = np.bincount(np.asarray(batch.positions).ravel(), minlength=64)
    expected = 4000 * 16 / 64
    chi_squared = ((counts - expected) ** 2 / (expected * 0.75)).sum()
    assert chi_squared < 120  # 63 degrees of freedom: the 99.998th percentile
    # The kinds of replacement fall on all positions alike, not on the first chosen ones.
    masked_at = np.asarray(batch.positions)[:, : round(0.8 * 16)]
    assert abs(masked_at.mean() - 31.5) < 0.5


def test_evaluation_masks_everything_it_scores():
    chosen = masking.Masking(
        **{**MASKING.__dict__, "mask_rate": 0.15, "mask_share": 1.0, "random_share": 0.0}
    )
    tokens, rows = tokens_and_rows()
    batch = masking.mask_tokens(chosen, jax.random.key(0), tokens, rows)
    assert batch.positions.shape == (16, 19)
    assert (np.take_along_axis(np.asarray(batch.inputs), np.asarray(batch.positions), 1) == 4).all()


def test_cramming_may_predict_special_tokens_in_training_and_never_in_evaluation():
    special = (0, 1, 2, 3, 4)
    for recipe, in_training in (("bert_1day", ()), ("bert_1day_modern", special)):
        config = get_config(recipe)
        vocabulary = AssumedVocabulary(vocab_size=config.data.vocab_size)
        objective = families.build(config, vocabulary, FLOAT32)
        assert isinstance(objective, MaskedLM)
        assert objective.corruption.special_ids == in_training
        assert objective.eval_corruption.special_ids == special
        assert (objective.frequencies(np.ones(32768, np.int64))[list(special)] == 0).all()
