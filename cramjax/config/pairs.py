"""Pairs of texts in a configuration: which sources have them, and the rows that they are put in."""

from __future__ import annotations

import dataclasses
from typing import Any

from cramjax.config.mixing import TASK_SCHEMES
from cramjax.config.views import Config, DataConfig

OBJECTIVE = "text_to_text"
"""The value of `objective.name` that learns from pairs."""

INSTALLED = "pairs:installed-docs"
"""The source of pairs that every machine has: paragraphs of docstrings, and what sums them up."""

SCHEMES = ("pairs", *TASK_SCHEMES)
"""Schemes of `data.source` whose sources hold pairs, whatever the fields."""

FIELD_SCHEMES = ("hf", "tfds")
"""Schemes whose records hold pairs if `data.source_field` and `data.target_field` name both."""

LONG_PAIRS = ("cut", "drop")
"""The values of `data.long_pairs`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairShape:
    """The form of a row of pairs: sources one after the other, then their targets.

    Attributes:
        n_inputs: tokens of the sources, with an end after each; the rest is padding.
        n_targets: the same of the targets.
        cuts: pairs with a longer side are cut; else they are left out.
    """

    n_inputs: int
    n_targets: int
    cuts: bool = True

    @property
    def row_tokens(self) -> int:
        """Tokens of a row."""
        return self.n_inputs + self.n_targets


RowShape = int | PairShape
"""The form of a row: tokens of a stretch of text, or a row of pairs."""


def n_tokens(shape: RowShape) -> int:
    """Returns the tokens of a row."""
    return shape.row_tokens if isinstance(shape, PairShape) else shape


def in_words(shape: RowShape) -> str:
    """Returns the form of a row, as "128 tokens" or "128 + 64 tokens"."""
    if isinstance(shape, PairShape):
        return f"{shape.n_inputs} + {shape.n_targets} tokens"
    return f"{shape} tokens"


def shape_of(data: DataConfig) -> PairShape:
    """Returns the rows that the section `data` asks for."""
    n_targets = data.target_len or data.seq_len
    return PairShape(n_inputs=data.seq_len, n_targets=n_targets, cuts=data.long_pairs == "cut")


def specs_of(source: Any) -> list[str]:
    """Returns the names of the sources in a value of `data.source`; what is none is left out."""
    if isinstance(source, str):
        return [source]
    entries = [entry[0] for entry in source if isinstance(entry, list | tuple) and entry]
    return [entry for entry in entries if isinstance(entry, str)]


def are_prepared(data: DataConfig) -> bool:
    """Returns whether `data` describes a preparation of pairs, not of plain text.

    The section alone decides, because a dataset is prepared without an objective.
    """
    if data.target_field is not None:
        return True
    schemes = {spec.partition(":")[0] for spec in specs_of(data.source)}
    return bool(schemes & set(SCHEMES))


def mistakes(config: Config) -> list[str]:
    """Returns what does not go together where pairs are learned from, one sentence each."""
    data = config.data
    problems = []
    for key in ("source", "heldout"):
        problems += _source_mistakes(data, f"data.{key}", data[key])
    problems += _source_mistakes(data, "eval.bleu_source", config.eval.bleu_source)
    for name in ("source_field", "target_field"):
        other = "target_field" if name == "source_field" else "source_field"
        if data[name] is None and data[other] is not None:
            problems.append(f"data.{other}={data[other]!r}: set data.{name} too, or neither")

    for key, wanted in (("max_chars", None), ("dedup_near", None), ("document_end", True)):
        if data[key] != wanted:
            problems.append(f"data.{key}={data[key]!r}: must be {wanted!r} for pairs of texts")
    if data.compressibility not in (None, "auto"):
        problems.append(
            f"data.compressibility={data.compressibility!r}: must be None or 'auto' for pairs"
        )
    return problems


def _source_mistakes(data: DataConfig, key: str, source: Any) -> list[str]:
    if source is None:
        return []
    problems = []
    for spec in specs_of(source):
        scheme = spec.partition(":")[0]
        if scheme in FIELD_SCHEMES and data.target_field is None:
            problems.append(
                f"{key}={spec}: name the fields of its pairs with data.source_field and "
                "data.target_field"
            )
        elif scheme not in (*SCHEMES, *FIELD_SCHEMES, "prepared"):
            problems.append(
                f"{key}={spec}: holds no pairs, which objective.name={OBJECTIVE} learns "
                "from; take pairs:SOURCE_FILE,TARGET_FILE or another source of pairs"
            )
    return problems


def other_mistakes(config: Config) -> list[str]:
    """Returns the sources of pairs where another objective learns from plain text."""
    data = config.data
    problems = []
    if are_prepared(data):
        problems.append(
            f"data.source={data.source!r:.80}: holds pairs; objective.name={OBJECTIVE} learns "
            "from them"
        )
    if data.heldout is not None and data.heldout.partition(":")[0] in SCHEMES:
        problems.append(
            f"data.heldout={data.heldout}: holds pairs; objective.name={OBJECTIVE} learns from them"
        )
    return problems
