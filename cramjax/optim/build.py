"""From a name and numbers to one optax transformation; the learning rate is not in it, it is an argument of the step.

Layers are stacked on a leading `layer` axis, so whatever an optimizer does per tensor (LAMB's trust ratio, Adafactor's factors and
clipping, Muon's orthogonalisation) is mapped over that axis: the update of a stack equals the updates of its layers.
"""

from __future__ import annotations

from typing import Any

import jax
import optax
from optax import contrib

Axes = tuple[str | None, ...]


def make_optimizer(
    name: str, axes: Any, *, b1: float, b2: float, eps: float, weight_decay: float
) -> optax.GradientTransformation:
    """The update direction of `name` for a tree whose leaves have the logical `axes`, to be multiplied by the learning rate.

    Weight decay is decoupled (arXiv 1711.05101) and leaves out biases and norms, as Cramming's code of 2023 does.

    Args:
        name: adamw, adafactor, lamb, lion or muon.
        axes: tree of tuples of axis names, one a parameter.
        b1: decay of the first moment. b2: decay of the second moment. eps: added to denominators.
        weight_decay: coefficient of the decoupled decay.
    """
    return _with_standard_promotion(_make(name, axes, b1, b2, eps, weight_decay))


def _with_standard_promotion(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    # optax raises Python floats to int32 step counts, which the project's strict dtype promotion would refuse.
    def init(params):
        with jax.numpy_dtype_promotion("standard"):
            return transform.init(params)

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return transform.update(updates, state, params)

    return optax.GradientTransformation(init, update)


def _make(name: str, axes: Any, b1: float, b2: float, eps: float, weight_decay: float) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(weight_decay, decay_mask(axes))
    descend = optax.scale(-1.0)
    match name:
        case "adamw":
            return optax.chain(optax.scale_by_adam(b1, b2, eps), decay, descend)
        case "lion":
            return optax.chain(optax.scale_by_lion(b1, b2), decay, descend)
        case "lamb":
            trust = per_layer(optax.scale_by_trust_ratio(), axes)
            return optax.chain(optax.scale_by_adam(b1, b2, eps), decay, trust, descend)
        case "adafactor":
            # arXiv 1804.04235: factored second moment, update clipping at RMS 1, step relative to the parameter's RMS.
            factored = optax.chain(
                optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()
            )
            return optax.chain(per_layer(factored, axes), decay, descend)
        case "muon":
            # consistent_rms 0.2 gives updates the size of AdamW's, so that learning rates carry over (arXiv 2502.16982).
            return contrib.muon(
                1.0,
                eps=eps,
                weight_decay=weight_decay,
                weight_decay_mask=None,
                adam_b1=b1,
                adam_b2=b2,
                consistent_rms=0.2,
                muon_weight_dimension_numbers=jax.tree.map(_matrix_axes, _roles(axes), axes, is_leaf=_is_axes),
            )
    raise ValueError(f"unknown optimizer {name!r}")


def decay_mask(axes: Any) -> Any:
    """The same tree with True where weight decay applies: every parameter but biases and the scales of norms."""
    return jax.tree.map(lambda role: role in ("matrix", "embedding", "scalar"), _roles(axes))


def per_layer(transform: optax.GradientTransformation, axes: Any) -> optax.GradientTransformation:
    """`transform` applied to every layer of a stacked parameter by itself, and to the other parameters as they are."""
    # Stacks of different depth (a norm the first block lacks) cannot share one vmap, hence a label for each leaf's path.
    paths = jax.tree.map_with_path(
        lambda path, names: jax.tree_util.keystr(path) if "layer" in names[:1] else "whole", axes, is_leaf=_is_axes
    )
    stacked = optax.GradientTransformation(
        jax.vmap(transform.init), lambda updates, state, params=None: jax.vmap(transform.update)(updates, state, params)
    )
    labels = set(jax.tree.leaves(paths))
    return optax.partition({label: transform if label == "whole" else stacked for label in labels}, paths)


def _is_axes(node: Any) -> bool:
    return isinstance(node, tuple)


def _roles(axes: Any) -> Any:
    """matrix, embedding, norm, bias or scalar for each parameter, from its path and axes."""

    def role(path, names):
        keys = [getattr(entry, "key", str(entry)) for entry in path]
        if keys[-1] == "bias":
            return "bias"
        if any("norm" in key for key in keys):
            return "norm"
        if "embeddings" in keys:
            return "embedding" if len(names) > 1 else "scalar"
        return "matrix"

    return jax.tree.map_with_path(role, axes, is_leaf=_is_axes)


def _matrix_axes(role: str, names: Axes) -> contrib.MuonDimensionNumbers | None:
    """Which axes of a parameter Muon reads as rows and columns; None for what AdamW updates (embeddings, norms, biases)."""
    if role != "matrix":
        return None
    # Unnamed axes tell apart fused matrices (query, key, value; the two halves of a GLU): batch, like the layer axis.
    named = [index for index, axis in enumerate(names) if axis is not None and axis != "layer"]
    split = 1 if names[named[0]] == "embed" else len(named) - 1
    return contrib.MuonDimensionNumbers(tuple(named[:split]), tuple(named[split:]))
