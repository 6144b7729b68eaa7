"""Builds the network that a file describes, and compares it with the arrays beside it.

The file may be damaged or a stranger's. No array is made here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict

from cramjax.config.families import FAMILIES, model_keys
from cramjax.config.fields import count
from cramjax.config.mistakes import value_problems
from cramjax.errors import UserError
from cramjax.models.classifier import EMBEDDING, ClassifierConfig
from cramjax.models.encoder import EncoderConfig
from cramjax.models.network import DEFAULT_FAMILY, Buildable, Network, abstract_params
from cramjax.objectives.families import DETECTORS, network_of

MAX_SIZE = 2**31 - 1
"""The largest number in a description: sizes are int32 on devices."""

# Networks that a configuration does not name: (those whose keys they have, keys of their own).
_GENERATOR = {
    "generator_layers": count(1, "blocks of the generator"),
    "generator_heads": count(1, "heads of the generator"),
    "generator_d_ff": count(1, "inner width of the generator's feed-forward"),
}
_OTHERS = {name: ("encoder", _GENERATOR if name == "electra" else {}) for name in DETECTORS}

Shapes = Mapping[str, Sequence[int]]
"""Path of a parameter, joined by "/", → its shape."""

_OURS = {
    "vocab_size": count(1, "rows of the embedding"),
    "pruned_heads": count(0, "heads that were taken out of each block", 0),
}


def network(description: Any, where: str, cure: str) -> Network:
    """Returns the network of a description, as a checkpoint or packed.json has it.

    Args:
        description: as from `models.network.describe`, or anything else.
        where: the file, for messages.
        cure: what to do, the end of the error's sentence.

    Raises:
        UserError: if it describes no network of this version.
    """
    family = DEFAULT_FAMILY
    if isinstance(description, Mapping):
        family = description.get("family", DEFAULT_FAMILY)
    if not isinstance(description, Mapping) or family not in [*FAMILIES, *_OTHERS]:
        raise UserError(f"{where}: describes no network that this version knows; {cure}")

    of_model, further = _OTHERS.get(family, (family, {}))
    keys = model_keys(of_model) | _OURS | further
    for key, value in description.items():
        if key == "family":
            continue
        problems = [f"{key}: unknown"]
        if key in keys:
            problems = value_problems(key, keys[key], value)
        # NaN passes every check of limits, and numbers of JSON have no end.
        if isinstance(value, int | float) and not -MAX_SIZE <= value <= MAX_SIZE:
            problems.append(f"{key}: no size")
        if problems:
            raise UserError(f"{where}: describes no network ({problems[0]:.200}); {cure}")

    try:
        return network_of(description)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{where}: describes no network ({error}); {cure}") from error


def check_shapes(
    config: Network, shapes: Shapes, finetuned: Mapping[str, Any] | None, where: str, cure: str
) -> None:
    """Compare the parameters of a network with the arrays of a file.

    Args:
        config: the network.
        shapes: of the arrays.
        finetuned: the notes about a finetuned model, or None. A finetuned encoder has the
            parameters of `models.classifier`.
        where: the file, for messages.
        cure: what to do, the end of the error's sentence.

    Raises:
        UserError: if names or shapes differ.
    """
    whole: Buildable = config
    if finetuned and isinstance(config, EncoderConfig):
        if finetuned.get("head") == EMBEDDING:
            whole = ClassifierConfig(
                encoder=config,
                width=config.d_model,
                n_outputs=0,
                transform="none",
                head=EMBEDDING,
            )
        else:
            whole = _classifier(config, shapes, where, cure)
    leaves: dict[str, Any] = dict(flatten_dict(abstract_params(whole), sep="/"))
    expected = {path: leaf.shape for path, leaf in leaves.items()}

    for path in sorted(expected.keys() | shapes.keys()):
        wanted, given = expected.get(path), shapes.get(path)
        if wanted is None:
            raise UserError(f"{where}: {path} is no parameter of its network; {cure}")
        if given is None or tuple(given) != tuple(wanted):
            found = "is missing" if given is None else f"has shape {list(given)}"
            raise UserError(f"{where}: {path} {found}, its network has {list(wanted)}; {cure}")


def _classifier(config: EncoderConfig, shapes: Shapes, where: str, cure: str) -> ClassifierConfig:
    """Returns the classifier whose head has the shapes of a file."""
    dense = shapes.get("classifier/dense/kernel")
    out = shapes.get("classifier/out/kernel", ())
    if (dense is not None and len(dense) != 2) or len(out) != 2:
        raise UserError(f"{where}: lacks the head of a finetuned model; {cure}")
    width = out[0]
    transform = "none"
    if dense is not None:
        width = dense[1]
        transform = "prediction" if "classifier/norm/scale" in shapes else "pooler"
    try:
        return ClassifierConfig(encoder=config, width=width, n_outputs=out[1], transform=transform)
    except ValueError as error:
        raise UserError(f"{where}: has no head of ours ({error}); {cure}") from error
