"""Demonstrates a model at the end of its run, on held-out text.

It hides words of sentences and lets the model fill them; of pairs it lets it write the targets.
"""

from __future__ import annotations

import os
import pathlib
import textwrap
from collections.abc import Sequence

import numpy as np
from tokenizers import models

from cramjax.config import pairs
from cramjax.config.pairs import PairShape
from cramjax.data.dataset import TokenDataset
from cramjax.inference import LoadedModel, fill_positions, generate_ids, load, split_spans
from cramjax.training import history

WORDS_A_MASK = 7
"""One word in so many is hidden (for a T5 one span), so that enough context is left."""
WORDS_A_SPAN = 2
WINDOW = 128

_MIN_LENGTH, _MAX_LENGTH = 10, 40  # tokens of a readable sentence
_MIN_WORD_SHARE = 0.6  # a sentence with fewer words is a table or a formula

Span = tuple[int, int]  # first token, one past the last

# Characters of a source that are shown.
_SHOWN_CHARS = 300


def show(workdir: str | os.PathLike, n_examples: int) -> list[str]:
    """Returns lines for people: a title, and what the model of a run makes of held-out text.

    There are none of a model that finds replaced tokens.
    """
    config, dataset = history.dataset_of(pathlib.Path(workdir))
    model = load(workdir)
    if model.is_detector:
        return []
    if dataset.is_of_pairs:
        title = "held-out pairs, each source → the model's text (the target, or ✓):"
        lines = _of_pairs(model, dataset, pairs.shape_of(config.data), n_examples)
    else:
        title = "held-out sentences, hidden words as [truth → guess]:"
        lines = _of_sentences(model, dataset, n_examples)
    return [title, *(f"  {line}" for line in lines)]


def _of_pairs(
    model: LoadedModel, dataset: TokenDataset, shape: PairShape, n_examples: int
) -> list[str]:
    """Returns held-out sources with the text that the model generates."""
    of_source = (dataset.pairs("heldout", source) for source in range(len(dataset.weights)))
    found = next((held for held in of_source if len(held)), None)
    if found is None:
        return []

    # The stride is prime and large, so that two picks come from different places.
    picks = range(min(n_examples, len(found)))
    chosen = [found.sides(pick * 7919 % len(found)) for pick in picks]
    end = model.special["sep"]
    inputs = [[*source[: shape.n_inputs - 1].tolist(), end] for source, _ in chosen]
    outputs = generate_ids(model, inputs, max_len=min(shape.n_targets, WINDOW))

    lines = []
    for (source, target), output in zip(chosen, outputs, strict=True):
        wanted, written = _text(model, target), _text(model, np.asarray(output, np.int32))
        verdict = "✓" if written == wanted else wanted
        shown = textwrap.shorten(_text(model, source), _SHOWN_CHARS, placeholder=" …")
        lines.append(f"{shown} → {written} ({verdict})")
    return lines


def _of_sentences(model: LoadedModel, dataset: TokenDataset, n_sentences: int) -> list[str]:
    """Returns held-out sentences with the guesses of the model.

    A hidden word appears as [truth → guess], or [truth ✓] if the guess is right. There are fewer
    than `n_sentences` if the held-out text has no more of a readable length.
    """
    n_sequences = dataset.n_sequences("heldout", WINDOW)[0]

    lines: list[str] = []
    for pick in range(min(n_sequences, 50 * n_sentences)):
        # The stride is prime and large, so that two picks come from different documents.
        row = np.asarray([pick * 7919 % n_sequences])
        window = dataset.read("heldout", 0, row, WINDOW)[0]
        sentence = _first_sentence(model, window.astype(np.int32))
        spans: list[Span] = []
        if sentence is not None:
            spans = _spans(model, sentence)
        if sentence is not None and spans:
            lines.append(_with_guesses(model, sentence, spans))
        if len(lines) == n_sentences:
            break
    return lines


def _first_sentence(model: LoadedModel, ids: np.ndarray) -> np.ndarray | None:
    """Returns the first whole sentence in `ids` that reads as prose, or None."""
    stops = np.flatnonzero(ids == model.tokenizer.token_to_id("."))
    special = set(model.special.values())
    for start, end in zip(stops[:-1] + 1, stops[1:] + 1, strict=True):
        sentence = ids[start:end]
        if not _MIN_LENGTH <= len(sentence) <= _MAX_LENGTH:
            continue
        if special & set(sentence.tolist()):
            continue
        if len(_words(model, sentence)) > _MIN_WORD_SHARE * len(sentence):
            return sentence
    return None


def _words(model: LoadedModel, sentence: np.ndarray) -> list[int]:
    """Returns the positions of tokens that are words, or pieces of words, of three letters on."""
    return [index for index, token in enumerate(sentence) if _is_word(model, int(token))]


def _spans(model: LoadedModel, sentence: np.ndarray) -> list[Span]:
    """Returns the spans to hide in `sentence`: one word in `WORDS_A_MASK`, its first token.

    For a T5 the span reaches to the next word, if that follows at once.
    """
    words = []
    for index in _words(model, sentence):
        if _starts_word(model, int(sentence[index])):
            words.append(index)

    spans = []
    for i in range(2, len(words) - 1, WORDS_A_MASK):
        end = words[i] + 1
        if model.is_t5:
            end = min(words[i] + WORDS_A_SPAN, words[i + 1] + 1)
        spans.append((words[i], end))
    return spans


def _is_word(model: LoadedModel, token: int) -> bool:
    text = _token_text(model, token).removeprefix("▁")
    return text.isalpha() and len(text) > 2


def _starts_word(model: LoadedModel, token: int) -> bool:
    """Returns whether a token for which `_is_word` holds is the first of its word.

    SentencePiece marks the first piece of a word. WordPiece marks all others, which are no words
    for `_is_word`.
    """
    # A WordPiece may know the sign as a character of its text.
    is_wordpiece = isinstance(model.tokenizer.model, models.WordPiece)
    if is_wordpiece or model.tokenizer.token_to_id("▁") is None:
        return True
    return _token_text(model, token).startswith("▁")


def _token_text(model: LoadedModel, token: int) -> str:
    """Returns the token as the vocabulary has it; rows that pad the vocabulary have no text."""
    return model.tokenizer.id_to_token(token) or ""


def _with_guesses(model: LoadedModel, ids: np.ndarray, spans: Sequence[Span]) -> str:
    """Returns the sentence `ids` with the truth and the guess in place of each span."""
    guess = _span_guesses if model.is_t5 else _mask_guesses
    pieces: list[str] = []
    last = 0
    for (start, end), guessed in zip(spans, guess(model, ids, spans), strict=True):
        truth = _text(model, ids[start:end])
        verdict = "✓" if guessed == truth else f"→ {guessed}"
        pieces += [_text(model, ids[last:start]), f"[{truth} {verdict}]"]
        last = end
    pieces.append(_text(model, ids[last:]))
    return " ".join(pieces).strip()


def _text(model: LoadedModel, ids: np.ndarray) -> str:
    return model.tokenizer.decode(list(map(int, ids))).strip()


def _mask_guesses(model: LoadedModel, ids: np.ndarray, spans: Sequence[Span]) -> list[str]:
    """Returns the likeliest token in place of each span, which is one token."""
    positions = [start for start, _ in spans]
    masked = ids.copy()
    masked[positions] = model.special["mask"]
    return [best[0][0] for best in fill_positions(model, masked, positions, 1)]


def _span_guesses(model: LoadedModel, ids: np.ndarray, spans: Sequence[Span]) -> list[str]:
    """Returns the text that a T5 generates in place of each span."""
    # The ids of sentinels count down.
    first = model.tokenizer.token_to_id("<extra_id_0>")
    assert first is not None  # every T5 has sentinels
    sentinels = [first - number for number in range(len(spans))]
    corrupted: list[int] = []
    last = 0
    for (start, end), sentinel in zip(spans, sentinels, strict=True):
        corrupted += [*ids[last:start].tolist(), sentinel]
        last = end
    corrupted += [*ids[last:].tolist(), model.special["sep"]]

    (answer,) = generate_ids(model, [corrupted], max_len=WINDOW // 2)
    return [_text(model, np.asarray(span, np.int32)) for span in split_spans(answer, sentinels)]
