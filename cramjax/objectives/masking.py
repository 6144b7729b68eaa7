"""Masking on the device: exact counts, static shapes, a pure function of (key, row).

Cramming (arXiv 2212.14034, section 4 and its code of 2023) predicts exactly a quarter of the
positions of every sequence, and only those reach the decoder ("sparse prediction", as in arXiv
2104.07705). 80% of them become the mask token, 10% a random one.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


def n_predicted(mask_rate: float, seq_len: int) -> int:
    """Returns the number of positions that are predicted in a sequence of `seq_len` tokens."""
    return max(1, round(mask_rate * seq_len))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masking:
    """The corruption of a sequence.

    Attributes:
        mask_rate: share of positions that are predicted.
        mask_share: share of those that become the mask token.
        random_share: share of those that become a random token; the others stay.
        mask_id: the mask token.
        special_ids: tokens that are never predicted; empty to treat all tokens alike.
        vocab_size: random tokens are uniform over so many entries.
    """

    mask_rate: float
    mask_share: float
    random_share: float
    mask_id: int
    special_ids: tuple[int, ...]
    vocab_size: int

    def n_predicted(self, seq_len: int) -> int:
        """Returns the number of positions that are predicted in a sequence of `seq_len` tokens."""
        return n_predicted(self.mask_rate, seq_len)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedBatch:
    """A corrupted batch.

    Attributes:
        inputs: int32 [batch, length].
        positions: int32 [batch, predicted], in random order.
        labels: int32 [batch, predicted], the tokens there.
        weights: float32 [batch, predicted], 0 for a special token.
    """

    inputs: jax.Array
    positions: jax.Array
    labels: jax.Array
    weights: jax.Array


def mask_tokens(
    masking: Masking,
    key: jax.Array,
    tokens: jax.Array,
    rows: jax.Array,
    odds: jax.Array | None = None,
) -> MaskedBatch:
    """Corrupts `tokens` int32 [batch, length]; row i depends on (key, rows[i], tokens[i]) alone.

    So the masks are the same however the batch is cut into microbatches or laid out on devices. A
    sequence with too few ordinary tokens fills up its count with special ones, which stay and have
    weight 0.

    Args:
        masking: the corruption.
        key: of the step.
        tokens: the sequences.
        rows: int32 [batch], their numbers in the whole batch.
        odds: float32 [batch, length], over 0: each next position of a sequence is drawn with a
            probability in proportion to them. None for a uniform draw.
    """
    batch, length = tokens.shape
    n_predicted = masking.n_predicted(length)
    n_masked = round(masking.mask_share * n_predicted)
    n_random = round(masking.random_share * n_predicted)

    def draw(row: jax.Array) -> jax.Array:
        row_key = jax.random.fold_in(key, row)
        # One block of bits a row: the first `length` rank the positions, the next pick the random
        # tokens. With odds, the last ones shuffle the positions.
        n_shuffled = 0 if odds is None else n_predicted
        return jax.random.bits(row_key, (length + n_random + n_shuffled,), jnp.uint32)

    bits = jax.vmap(draw)(rows)  # [batch, length + random]
    special = _is_special(tokens, masking.special_ids)
    if odds is None:
        # Ordinary positions score in [2^30, 2^31), special ones below: the top scores are a uniform
        # draw of ordinary positions.
        score = (bits[:, :length] >> 2).astype(jnp.int32) + jnp.where(special, 0, 1 << 30)
        _, positions = jax.lax.top_k(score, n_predicted)  # [batch, predicted], in random order
    else:
        _, positions = jax.lax.top_k(_drawn(bits[:, :length], odds, special), n_predicted)
        # The highest odds come first: in that order they would become masks more often.
        order = jnp.argsort(bits[:, length + n_random :], axis=1)
        positions = jnp.take_along_axis(positions, order, axis=1)
    labels = jnp.take_along_axis(tokens, positions, axis=1)
    weights = jnp.where(_is_special(labels, masking.special_ids), 0.0, 1.0).astype(jnp.float32)

    # The order is random already: the first become masks, the next random tokens, the rest stay.
    random_bits = bits[:, length : length + n_random]
    random_tokens = (random_bits % jnp.uint32(masking.vocab_size)).astype(jnp.int32)
    masks = jnp.full((batch, n_masked), masking.mask_id, jnp.int32)
    kept = labels[:, n_masked + n_random :]
    replacement = jnp.concatenate([masks, random_tokens, kept], axis=1)  # [batch, predicted]
    replacement = jnp.where(weights > 0, replacement, labels)
    inputs = jax.vmap(lambda row, at, new: row.at[at].set(new, unique_indices=True))(
        tokens, positions, replacement
    )
    return MaskedBatch(inputs=inputs, positions=positions, labels=labels, weights=weights)


def _drawn(bits: jax.Array, odds: jax.Array, special: jax.Array) -> jax.Array:
    """Returns scores float32 [batch, length] whose highest are a draw without replacement.

    The next position is drawn with a probability in proportion to its odds (Efraimidis and Spirakis
    2006, in logarithms); special ones come last.
    """
    uniform = ((bits >> 8).astype(jnp.float32) + 0.5) * jnp.float32(2**-24)  # in (0, 1)
    score = jnp.log(odds) - jnp.log(-jnp.log(uniform))
    return jnp.where(special, score - jnp.float32(1e3), score)


def _is_special(tokens: jax.Array, special_ids: tuple[int, ...]) -> jax.Array:
    """Returns bool, of the shape of `tokens`."""
    special = jnp.zeros(tokens.shape, bool)
    for token_id in special_ids:
        special |= tokens == token_id
    return special
