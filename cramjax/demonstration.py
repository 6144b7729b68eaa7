"""What a run ends with: held-out sentences with some words hidden, and what the trained model puts in their place."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from cramjax.data.dataset import TokenDataset
from cramjax.inference import LoadedModel, fill_positions, generate_ids, load, split_spans

# One word (or for a T5 one span of words) in so many is hidden: enough context is left to judge the guesses.
WORDS_A_MASK = 7
WORDS_A_SPAN = 2
WINDOW = 128

Span = tuple[int, int]


def demonstrate(workdir: str | os.PathLike, n_sentences: int) -> list[str]:
    """`n_sentences` held-out sentences with some words hidden, each as [truth → guess] or [truth ✓], by the run in `workdir`.

    Fewer where the held-out text has no more sentences of a readable length.
    """
    model = load(workdir)
    environment = json.loads((pathlib.Path(workdir) / "environment.json").read_text())
    dataset = TokenDataset.open(environment["dataset"])
    lines: list[str] = []
    n_sequences = dataset.n_sequences("heldout", WINDOW)[0]
    # The stride is prime and large: neighbouring picks come from different documents.
    for pick in range(min(n_sequences, 50 * n_sentences)):
        window = dataset.read("heldout", 0, np.asarray([pick * 7919 % n_sequences]), WINDOW)[0]
        sentence = _first_sentence(model, window.astype(np.int32))
        if sentence is not None:
            lines.append(_with_guesses(model, *sentence))
        if len(lines) == n_sentences:
            break
    return lines


def _first_sentence(model: LoadedModel, ids: np.ndarray) -> tuple[np.ndarray, list[Span]] | None:
    """The first whole sentence in `ids` and the spans to hide in it; None where there is none that reads as prose."""
    stops = np.flatnonzero(ids == model.tokenizer.token_to_id("."))
    special = set(model.special.values())
    for start, end in zip(stops[:-1] + 1, stops[1:] + 1, strict=True):
        sentence = ids[start:end]
        words = [index for index, token in enumerate(sentence) if _is_word(model, int(token))]
        if (
            10 <= len(sentence) <= 40
            and not special & set(sentence.tolist())
            and len(words) > 0.6 * len(sentence)
        ):
            return sentence, _spans(
                model, [index for index in words if _starts_word(model, int(sentence[index]))]
            )
    return None


def _spans(model: LoadedModel, words: Sequence[int]) -> list[Span]:
    """Every few words one to hide, from its first token; for a T5 with the word after it, if that follows at once."""
    chosen = range(2, len(words) - 1, WORDS_A_MASK)
    if not model.is_t5:
        return [(words[i], words[i] + 1) for i in chosen]
    return [(words[i], min(words[i] + WORDS_A_SPAN, words[i + 1] + 1)) for i in chosen]


def _is_word(model: LoadedModel, token: int) -> bool:
    text = model.tokenizer.id_to_token(token).removeprefix("▁")
    return text.isalpha() and len(text) > 2


def _starts_word(model: LoadedModel, token: int) -> bool:
    """SentencePiece marks the first piece of a word, WordPiece all others, which `_is_word` leaves out."""
    return (
        model.tokenizer.id_to_token(token).startswith("▁")
        or model.tokenizer.token_to_id("▁") is None
    )


def _with_guesses(model: LoadedModel, ids: np.ndarray, spans: Sequence[Span]) -> str:
    guesses = _span_guesses(model, ids, spans) if model.is_t5 else _mask_guesses(model, ids, spans)
    pieces, last = [], 0
    for (start, end), guess in zip(spans, guesses, strict=True):
        truth = _text(model, ids[start:end])
        pieces += [
            _text(model, ids[last:start]),
            f"[{truth} ✓]" if guess == truth else f"[{truth} → {guess}]",
        ]
        last = end
    return " ".join([*pieces, _text(model, ids[last:])]).strip()


def _text(model: LoadedModel, ids: np.ndarray) -> str:
    return model.tokenizer.decode(list(map(int, ids))).strip()


def _mask_guesses(model: LoadedModel, ids: np.ndarray, spans: Sequence[Span]) -> list[str]:
    masked, positions = ids.copy(), [start for start, _ in spans]
    masked[positions] = model.special["mask"]
    return [best[0][0] for best in fill_positions(model, masked, positions, 1)]


def _span_guesses(model: LoadedModel, ids: np.ndarray, spans: Sequence[Span]) -> list[str]:
    first = model.tokenizer.token_to_id("<extra_id_0>")
    sentinels = [first - number for number in range(len(spans))]
    corrupted, last = [], 0
    for (start, end), sentinel in zip(spans, sentinels, strict=True):
        corrupted += [*ids[last:start].tolist(), sentinel]
        last = end
    corrupted += [*ids[last:].tolist(), model.special["sep"]]
    (answer,) = generate_ids(model, [corrupted], max_len=WINDOW // 2)
    return [_text(model, np.asarray(span, np.int32)) for span in split_spans(answer, sentinels)]
