"""Scores a run's network by what it writes: answers to pairs by beam search, BLEU and chrF."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import tokenizers as huggingface

from cramjax.config.views import Config
from cramjax.console import Announce, Meter, silent
from cramjax.data import tokenizers
from cramjax.data.dataset import TokenDataset
from cramjax.data.pair_set import PairSet, open_pair_set
from cramjax.models.decoding import Scoring
from cramjax.objectives.text_to_text import TextToText
from cramjax.training.session import Session
from cramjax.writing.scores import corpus_scores
from cramjax.writing.writer import Search, Writer

PROGRESS_S = 10.0
"""Seconds between two lines of progress."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorer:
    """Lets networks answer the same pairs, and scores the answers.

    Attributes:
        pairs: sources and what is expected.
        tokenizer: of the run.
        search: how an answer is looked for.
        announce: is told how far the writing is.
    """

    pairs: PairSet
    tokenizer: huggingface.Tokenizer
    search: Search
    announce: Announce

    def score(
        self, session: Session, params: dict[str, Any], is_stopped: Callable[[], bool]
    ) -> dict[str, Any] | None:
        """Returns "bleu", "chrf" and "bleu_signature" of a session's network with `params`.

        Returns None if `is_stopped` said so before all was written.

        Raises:
            UserError: if the parameters give no numbers.
        """
        writer = self._writer(session)
        with Meter(self.announce, interval_s=PROGRESS_S, has_bar=False) as meter:
            answers = writer.write(params, self.pairs.inputs, meter=meter, is_stopped=is_stopped)
        if answers is None:
            return None
        texts = [self.tokenizer.decode(ids) for ids in answers]
        return corpus_scores(texts, self.pairs.references)

    def _writer(self, session: Session) -> Writer:
        """Returns the writer of a session's network on its devices."""
        objective = session.objective
        assert isinstance(objective, TextToText)  # there are pairs
        known = set(self.tokenizer.get_vocab().values())
        n_rows = max(known) + 1
        return Writer(
            config=objective.network,
            precision=objective.precision,
            pad_id=objective.pad_id,
            sep_id=objective.eos_id,
            vocab_size=n_rows,
            unused=tuple(sorted(set(range(n_rows)) - known)),
            search=self.search,
            mesh=session.mesh,
        )


def open_scorer(
    config: Config, dataset: TokenDataset, announce: Announce = silent
) -> Scorer | None:
    """Returns the scorer that `config.eval` asks for, or None.

    Raises:
        UserError: if its pairs cannot be read.
    """
    if not config.eval.bleu:
        return None
    pairs = open_pair_set(config, dataset)
    if pairs.has_more:
        announce(
            f"BLEU is that of the first {len(pairs.inputs):,} pairs of {pairs.name} "
            "(eval.bleu_pairs)"
        )
    tokenizer, _ = tokenizers.load(dataset.directory / "tokenizer" / "tokenizer.json")
    rule = Scoring(penalty=config.eval.length_penalty, offset=5.0, is_exact=False)
    search = Search(n_beams=config.eval.beams, scoring=rule)
    return Scorer(pairs=pairs, tokenizer=tokenizer, search=search, announce=announce)
