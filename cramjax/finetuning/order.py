"""The examples of each step of finetuning: each one comes once in an epoch.

Examples that share no rows are drawn at random, as papers have it. Those that share rows are drawn
and then dealt: of `POOL` batches each one gets examples of all lengths, and about as many tokens.
Rows are full then, and one shape of a batch or two are compiled, not a dozen.
`settings.group_by_length` puts examples of like length together instead.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cramjax.finetuning.feed import Feed
from cramjax.finetuning.protocols import Settings

POOL = 50
"""Batches that exchange examples, as many as with `group_by_length` of the Trainer."""


def batches(feed: Feed, settings: Settings, seed: int) -> Iterator[np.ndarray]:
    """Yields the examples of each step, int [batch_size]: a function of (seed, epoch).

    The last batch of an epoch has the examples that are left.
    """
    is_rearranged = settings.group_by_length or feed.shares_rows
    lengths = feed.train_lengths()
    for epoch in range(settings.epochs):
        draws = np.random.default_rng((seed, epoch))
        order = draws.permutation(feed.n_train)
        if is_rearranged:
            order = _rearranged(order, lengths, settings, draws)
        for start in range(0, feed.n_train, settings.batch_size):
            yield order[start : start + settings.batch_size]


def _rearranged(
    order: np.ndarray, lengths: np.ndarray, settings: Settings, draws: np.random.Generator
) -> np.ndarray:
    """Returns `order` with the examples of the full batches grouped or dealt, within each pool."""
    size = settings.batch_size
    n_full = len(order) // size * size
    pools = []
    for start in range(0, n_full, POOL * size):
        pool = order[start : min(start + POOL * size, n_full)]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        if not settings.group_by_length:
            pool = _dealt(pool, lengths, size)
        pools.append(pool)
    if not pools:
        return order

    full = np.concatenate(pools).reshape(-1, size)
    return np.concatenate([draws.permutation(full).ravel(), order[n_full:]])


def _dealt(pool: np.ndarray, lengths: np.ndarray, size: int) -> np.ndarray:
    """Returns `pool`, which is sorted by length, as batches of `size` with about as many tokens.

    The longest examples are dealt first, one to each batch, then the next ones. The longest of a
    round goes where the fewest tokens are. So a batch begins with its longest example.
    """
    n_batches = len(pool) // size
    dealt = np.empty((n_batches, size), pool.dtype)
    tokens = np.zeros(n_batches, int)
    for number, dealing in enumerate(pool[::-1].reshape(size, n_batches)):
        fewest_first = np.argsort(tokens, kind="stable")
        dealt[fewest_first, number] = dealing
        tokens[fewest_first] += lengths[dealing]
    return dealt.ravel()
