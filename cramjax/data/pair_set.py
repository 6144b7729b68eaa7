"""Pairs to be judged by: sources as token ids, and targets as texts."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

from tokenizers import Tokenizer

from cramjax.config.resolve import changed
from cramjax.config.views import Config
from cramjax.data import clean, pair_text, tokenizers
from cramjax.data.dataset import TokenDataset
from cramjax.data.encode import Encoder
from cramjax.data.sources import open_heldout
from cramjax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSet:
    """Pairs in their order.

    Attributes:
        name: where they come from, for people.
        inputs: token ids of each source, with the end of sequence.
        references: the target of each.
        has_more: True if pairs were left out because there are too many.
    """

    name: str
    inputs: list[list[int]]
    references: list[str]
    has_more: bool


def open_pair_set(config: Config, dataset: TokenDataset) -> PairSet:
    """Returns the pairs that `eval.bleu` scores: those of a source, as they stand there.

    The source is `eval.bleu_source`, or else `data.heldout`. Without either they are the held-out
    pairs of the dataset, with targets as the tokenizer writes them.

    Raises:
        UserError: if there are none, or the source cannot be read.
    """
    spec = config.eval.bleu_source or config.data.heldout
    limit = config.eval.bleu_pairs
    tokenizer, _ = tokenizers.load(dataset.directory / "tokenizer" / "tokenizer.json")
    try:
        if spec is None:
            taken = list(itertools.islice(_heldout(dataset, tokenizer), limit + 1))
        else:
            taken = _encoded(list(itertools.islice(_read(config, spec), limit + 1)), tokenizer)
    except UserError as error:
        # Sources are opened as those of training are, and say so.
        key = "eval.bleu_source" if config.eval.bleu_source else "data.heldout"
        raise UserError(str(error).replace("data.source=", f"{key}=", 1)) from error
    name = spec or "held-out pairs"
    if not taken:
        raise UserError(f"eval.bleu=True: {name} has no pair to score; name other pairs")

    # A source is cut as in training.
    longest = config.data.seq_len - 1
    end = dataset.special_tokens["sep"]
    return PairSet(
        name=name,
        inputs=[[*ids[:longest], end] for ids, _ in taken[:limit]],
        references=[text for _, text in taken[:limit]],
        has_more=len(taken) > limit,
    )


def _read(config: Config, spec: str) -> Iterator[tuple[str, str]]:
    """Yields source and target of each pair of a source; nothing is compared or held out.

    Of a source that has rows of its own to be judged by, those are read. Sources are cleaned as
    those of training.
    """
    data = changed(config, {"data.source": spec, "data.heldout": spec}).data
    source = open_heldout(data, spec)
    documents = (source.read(part, _ignore) for part in source.parts())
    for document in itertools.chain.from_iterable(documents):
        text, target = pair_text.sides_of(document)
        if config.data.normalize:
            text = clean.normalize(text)
        yield text, target


def _encoded(pairs: list[tuple[str, str]], tokenizer: Tokenizer) -> list[tuple[list[int], str]]:
    """Returns pairs with the ids of their sources, as training has them."""
    documents, _ = Encoder(tokenizer).encode([source for source, _ in pairs])
    ids = [document.tolist() for document in documents]
    return list(zip(ids, [target for _, target in pairs], strict=True))


def _ignore(reason: str, where: str) -> None:
    """Leave a record out: one without a pair cannot be scored."""


def _heldout(dataset: TokenDataset, tokenizer: Tokenizer) -> Iterator[tuple[list[int], str]]:
    """Yields source ids and target text of the held-out pairs of a dataset."""
    for source in range(len(dataset.weights)):
        pairs = dataset.pairs("heldout", source)
        for number in range(len(pairs)):
            ids, target = pairs.sides(number)
            yield ids.tolist(), tokenizer.decode(target.tolist())
