"""Keeps what a model guesses at every evaluation, for people to read: samples.jsonl.

The evaluation computes these guesses anyway, so a line costs the decoding of a few hundred tokens.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from cramjax.data import tokenizers
from cramjax.data.dataset import TokenDataset
from cramjax.training.metrics import LineFile, cut_after

WINDOW = 64
"""Tokens of a row that are shown: a text of a few lines."""

Pieces = list[str | dict[str, str]]
"""Texts, and hidden pieces as {"truth": …, "guess": …}, in order."""


class Samples:
    """Writes a line to `<workdir>/samples.jsonl` for each evaluation.

    A line has `step`, `tokens`, `eval_loss` and `texts`, a list of `Pieces`. As with the metrics,
    nothing of it stops a run, and lines that come again after a restart are cut off.

    Args:
        workdir: the folder of the run.
        dataset: has the tokenizer.
        n_texts: texts of a line; 0 writes nothing.
        resumed_step: as for `MetricsWriter`.
        keeps_evaluation: as for `MetricsWriter`.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        dataset: TokenDataset,
        n_texts: int,
        *,
        resumed_step: int,
        keeps_evaluation: bool,
    ):
        self._n_texts = n_texts
        self._path = workdir / "samples.jsonl"
        if self._path.is_file():
            again = [] if keeps_evaluation else ["eval_loss"]
            cut_after(self._path, resumed_step, again)
        # Whatever else a stranger has put there is left alone.
        elif self._path.exists():
            self._n_texts = 0
        self._file: LineFile | None = None
        self._tokenizer_path = dataset.directory / "tokenizer" / "tokenizer.json"
        self._sentinels = range(dataset.vocab_size - dataset.extra_ids, dataset.vocab_size)

    def write(self, step: int, values: Mapping[str, Any], shown: Mapping[str, np.ndarray]) -> None:
        """Add the line of an evaluation.

        Args:
            step: of the state.
            values: of its metrics line.
            shown: `EvalResult.shown`; without it there is no line.
        """
        if not self._n_texts or not shown:
            return
        # Pairs have no guesses, so their runs get neither a file nor a second tokenizer.
        if self._file is None:
            self._file = LineFile(self._path)
            self._tokenizer = tokenizers.load(self._tokenizer_path)[0]
        read = self._masked if "positions" in shown else self._spans
        n_texts = min(self._n_texts, len(shown["inputs"]))
        line = {"step": step, "tokens": values.get("tokens"), "eval_loss": values["eval_loss"]}
        if line["eval_loss"] != line["eval_loss"]:
            line["eval_loss"] = None  # JSON has no NaN
        texts = []
        for row in range(n_texts):
            texts.append(read(**{name: array[row] for name, array in shown.items()}))
        self._file.write(json.dumps(line | {"texts": texts}))

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _masked(
        self,
        inputs: np.ndarray,
        positions: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray,
        guesses: np.ndarray,
    ) -> Pieces:
        """Returns a row of masked tokens; see `MaskedBatch`."""
        pieces: Pieces = []
        last = 0
        for index in np.argsort(positions):
            place = int(positions[index])
            if weights[index] and place < WINDOW:
                self._add_text(pieces, inputs[last:place])
                pieces.append(self._hidden([int(labels[index])], [int(guesses[index])]))
                last = place + 1
        self._add_text(pieces, inputs[last:WINDOW])
        return pieces

    def _spans(self, inputs: np.ndarray, labels: np.ndarray, guesses: np.ndarray) -> Pieces:
        """Returns a row of corrupted spans: each token is guessed with the true ones before it."""
        spans: dict[int, tuple[list[int], list[int]]] = {}
        truth: list[int] = []
        guess: list[int] = []
        for label, guessed in zip(labels.tolist(), guesses.tolist(), strict=True):
            if label in self._sentinels:
                truth, guess = spans.setdefault(label, ([], []))
            else:
                truth.append(label)
                guess.append(guessed)

        pieces: Pieces = []
        last = 0
        for place, token in enumerate(inputs[:WINDOW].tolist()):
            if token in spans:
                self._add_text(pieces, inputs[last:place])
                pieces.append(self._hidden(*spans[token]))
                last = place + 1
        self._add_text(pieces, inputs[last:WINDOW])
        return pieces

    def _add_text(self, pieces: Pieces, ids: np.ndarray) -> None:
        text = self._text(ids.tolist())
        if text:
            pieces.append(text)

    def _hidden(self, truth: list[int], guess: list[int]) -> dict[str, str]:
        return {"truth": self._text(truth), "guess": self._text(guess)}

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(list(map(int, ids))).strip()
