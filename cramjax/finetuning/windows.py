"""Cuts texts into windows that overlap, with the place of every token in the text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import tokenizers

from cramjax.errors import UserError
from cramjax.finetuning import packing
from cramjax.finetuning.feed import encoded

_CHUNK = 1000
"""Texts that are tokenised at once: what the tokenizer returns is large."""

_LEAST = 4
"""Tokens of a text that a window holds at least."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """A part of a text as a sequence of tokens.

    Attributes:
        sequence: the tokens, with special ones and those of a text in front.
        places: int32 [tokens, 2], the first character of each token in the text and the one after
            its last; (-1, -1) at tokens that are not of the text.
    """

    sequence: packing.Encoded
    places: np.ndarray


def cutting(
    tokenizer: tokenizers.Tokenizer, limit: int, stride: int, *, n_before: int | None = None
) -> tokenizers.Tokenizer:
    """Returns a copy that cuts a text into windows.

    Args:
        tokenizer: of the model.
        limit: tokens of a window, special ones included.
        stride: tokens that neighbours share; at most half of what a window holds is taken.
        n_before: tokens of a first text, at most, if the second of two texts is cut.

    Raises:
        UserError: for a limit that leaves no room beside the special tokens.
    """
    copy = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    # The tokenizer ends the process where neighbours share as much as they hold.
    room = limit - copy.num_special_tokens_to_add(True) - (n_before or 0)
    if room < _LEAST:
        raise UserError(f"max_length={limit}: leaves no room beside the special tokens")
    copy.no_padding()
    strategy = "only_first" if n_before is None else "only_second"
    copy.enable_truncation(limit, stride=min(stride, room // 2), strategy=strategy)
    return copy


def windows(
    tokenizer: tokenizers.Tokenizer, texts: Sequence[str | tuple[str, str]], number: int
) -> Iterator[list[Window]]:
    """Yields the windows of each of `texts`, in order.

    Args:
        tokenizer: as from `cutting`.
        texts: texts or pairs of texts.
        number: of the text in a pair that is cut: 0 or 1.
    """
    for start in range(0, len(texts), _CHUNK):
        for encoding in tokenizer.encode_batch(list(texts[start : start + _CHUNK])):
            yield [_window(part, number) for part in (encoding, *encoding.overflowing)]


def _window(encoding: tokenizers.Encoding, number: int) -> Window:
    places = np.asarray(encoding.offsets, np.int32).reshape(-1, 2)
    is_text = np.asarray([sequence == number for sequence in encoding.sequence_ids], bool)
    places = np.where(is_text[:, None], places, -1)
    return Window(sequence=encoded(encoding), places=places)
