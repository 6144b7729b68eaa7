"""Writes the answers of an encoder-decoder to any number of inputs: batches, beams, progress."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cramjax import console
from cramjax.console import Meter
from cramjax.errors import UserError
from cramjax.models.decoding import Scoring
from cramjax.models.generation import generate
from cramjax.models.layers import Precision
from cramjax.models.t5 import T5Config
from cramjax.parallel import mesh as meshes

NO_NUMBERS = "the weights of this model are no numbers (NaN); load another model"

LENGTHS = (32, 64, 128, 256, 512)
"""Inputs are padded to one of these numbers of tokens; each is compiled. Longer ones take multiples
of the last."""

BATCH_TOKENS = {"cpu": 2048}
"""Padded input tokens in a batch, by platform. A signal is answered between two batches, so those
of a CPU are small."""

MOST_BATCH_TOKENS = 8192
"""The same on other platforms."""

EXTRA_TOKENS = 50
"""An answer has at most so many tokens more than its input (arXiv 1706.03762, section 6.1)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """The way an answer is looked for.

    Attributes:
        n_beams: hypotheses of an input; 1 for greedy search.
        scoring: how hypotheses are compared.
        max_len: tokens of an answer at most; None for `EXTRA_TOKENS` more than its input.
    """

    n_beams: int = 4
    scoring: Scoring = Scoring(penalty=0.6, offset=5.0, is_exact=False)
    max_len: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Inputs that are answered together.

    Attributes:
        numbers: of the inputs, in the order of the rows.
        n_rows: rows of the batch; those after the inputs fill it up.
        length: tokens of a row.
    """

    numbers: list[int]
    n_rows: int
    length: int


def layout(lengths: Sequence[int], batch_tokens: int, n_shards: int = 1) -> list[Batch]:
    """Returns the batches of inputs with these `lengths`, the longest first.

    Inputs of a batch are of similar length, and so are their answers: few rows wait for others. An
    input is padded to a length of its own, whatever the others are. The longest come first, so that
    what does not fit into memory is known at once.

    Args:
        lengths: tokens of each input.
        batch_tokens: padded tokens in a batch, about.
        n_shards: the rows of a batch are a multiple of it.
    """
    batches = []
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    for length, group in itertools.groupby(order, lambda number: _padded(lengths[number])):
        numbers = list(group)
        n_rows = max(1, batch_tokens // length // n_shards) * n_shards
        for start in range(0, len(numbers), n_rows):
            part = numbers[start : start + n_rows]
            batches.append(Batch(numbers=part, n_rows=n_rows, length=length))
    return batches


def _padded(length: int) -> int:
    """Returns the first of `LENGTHS` that is at least `length`, or a multiple of the last."""
    multiple = -(-length // LENGTHS[-1]) * LENGTHS[-1]
    return next((known for known in LENGTHS if known >= length), multiple)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writer:
    """Answers inputs with a network. Equal writers share their compiled programs.

    Attributes:
        config: the network.
        precision: its number formats.
        pad_id: the token that starts an answer and fills up a row.
        sep_id: the token that ends an answer.
        vocab_size: entries of the tokenizer; those that pad the embedding are never chosen.
        unused: ids below it without a token.
        search: how an answer is looked for.
        mesh: the devices that share the rows of a batch; None for the first one.
    """

    config: T5Config
    precision: Precision
    pad_id: int
    sep_id: int
    vocab_size: int
    unused: tuple[int, ...] = ()
    search: Search = Search()
    mesh: Mesh | None = None

    def write(
        self,
        params: dict[str, Any],
        inputs: Sequence[Sequence[int]],
        *,
        meter: Meter | None = None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> list[list[int]] | None:
        """Returns the answer to each of `inputs`, in their order, without the end of sequence.

        Args:
            params: of the network.
            inputs: token ids.
            meter: shows how many are answered, and the time left.
            is_stopped: asked before each batch.

        Returns:
            Token ids, or None if `is_stopped` said so before all were answered.

        Raises:
            UserError: if the parameters give no numbers.
        """
        answers: list[list[int]] = [[] for _ in inputs]
        n_done = 0
        pace = console.Pace()
        for batch in layout(list(map(len, inputs)), self._batch_tokens(), self._n_shards()):
            if is_stopped():
                return None
            found = self._answer(params, [inputs[number] for number in batch.numbers], batch)
            for number, answer in zip(batch.numbers, found, strict=True):
                answers[number] = answer

            n_done += len(batch.numbers)
            if meter is not None:
                left_s = pace.left_s(n_done, len(inputs)) or 0.0
                text = f"written {n_done:,} of {len(inputs):,} texts, {console.time_left(left_s)}"
                meter.update(text, n_done / len(inputs))
        return answers

    def _batch_tokens(self) -> int:
        device = self.precision.device or jax.devices()[0]
        return BATCH_TOKENS.get(device.platform, MOST_BATCH_TOKENS) * self._n_shards()

    def _n_shards(self) -> int:
        return 1 if self.mesh is None else meshes.batch_shards(self.mesh)

    def _answer(
        self, params: dict[str, Any], inputs: Sequence[Sequence[int]], batch: Batch
    ) -> list[list[int]]:
        """Returns the answers of one batch; waits for the device."""
        tokens = np.full((batch.n_rows, batch.length), self.pad_id, np.int32)
        mask = np.zeros((batch.n_rows, batch.length), bool)
        for row, ids in enumerate(inputs):
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = True

        max_len = self.search.max_len or batch.length + EXTRA_TOKENS
        found = _program(self, max_len)(params, *map(self._place, (tokens, mask)))
        written, scores = jax.device_get((found.tokens, found.scores))
        if np.isnan(scores[: len(inputs)]).any():
            raise UserError(NO_NUMBERS)

        # The end of the sequence and the padding after it are cut off.
        ends = np.where(written == self.sep_id, np.arange(max_len)[None], max_len).min(axis=1)
        return [row[:end].tolist() for row, end in zip(written[: len(inputs)], ends, strict=False)]

    def _place(self, array: np.ndarray) -> jax.Array:
        if self.mesh is None:
            return jax.device_put(array)
        return meshes.place(array, meshes.batch_sharding(self.mesh, array.ndim, 0))


@functools.lru_cache(maxsize=32)
def _program(writer: Writer, max_len: int) -> Callable[..., Any]:
    """Returns the search as one program; it is kept, so that jit compiles each shape once."""
    search = writer.search

    def answer(params: dict[str, Any], tokens: jax.Array, mask: jax.Array) -> Any:
        return generate(
            writer.config,
            writer.precision,
            params,
            tokens,
            max_len=max_len,
            special={"pad": writer.pad_id, "sep": writer.sep_id},
            vocab_size=writer.vocab_size,
            unused=writer.unused,
            padding_mask=mask,
            n_beams=search.n_beams,
            scoring=search.scoring,
        )

    # Every process holds the answers, and can read them.
    everywhere = None if writer.mesh is None else meshes.replicated(writer.mesh)
    return jax.jit(answer, out_shardings=everywhere)
