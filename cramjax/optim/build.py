"""From a name and numbers to one optax transformation, without the learning rate.

The learning rate is an argument of the step. Layers are stacked on a leading `layer` axis and
projections are fused, so everything an optimizer does per tensor is mapped over those axes: LAMB's
trust ratio, Adafactor's factors, clipping and parameter scale, Muon's orthogonalisation. The update
of a stack equals the updates of the matrices in it.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from cramjax.models.axes import Axes, is_axes, own_axes, roles, rows_and_columns
from cramjax.optim.average import with_trailing_average

MUON_FIRST_MOMENTUM = 0.85
"""Muon's momentum at the first step of its warm-up, as in the speed runs that introduced it."""


def make_optimizer(
    name: str,
    axes: Any,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    parameter_scale: str = "auto",
    relative_step: bool = False,
    momentum: float = 0.95,
    momentum_warmup: int = 0,
    embedding_lr: float = 1.0,
    scalar_lr: float = 1.0,
    cautious: bool = False,
    average: int = 0,
) -> optax.GradientTransformation:
    """Returns the transformation from gradients to updates, which the learning rate multiplies.

    Weight decay is decoupled (arXiv 1711.05101) and leaves out biases and norms, as Cramming's code
    of 2023 does.

    Args:
        name: adamw, adafactor, lamb, lion or muon.
        axes: tree of tuples of axis names, one for each parameter.
        b1, b2: decay of the first and of the second moment.
        eps: added to denominators.
        weight_decay: coefficient of the decoupled decay.
        parameter_scale: with "on" the update of a matrix is multiplied by max(1e-3, its root mean
            square), as Adafactor does (arXiv 1804.04235, section 8) and nanoT5 does with AdamW
            (arXiv 2309.02373). "auto" means Adafactor only, "off" never.
        relative_step: multiplies by Adafactor's own min(0.01, step^-0.5) (section 9 there).
        momentum, momentum_warmup: Muon's, and the steps over which it rises to it from 0.85.
        embedding_lr, scalar_lr: factors of the learning rate for embeddings, and for norms, biases
            and single numbers.
        cautious: decay a weight only where the update moves it towards 0 as well (arXiv
            2510.12402).
        average: steps of the trailing mean of the parameters in the state; 0 for none.

    Raises:
        ValueError: for another name.
    """
    if name == "muon":
        decays_itself = 0.0 if cautious else weight_decay
        adapt = _muon(axes, b1, b2, eps, decays_itself, momentum, momentum_warmup)
    else:
        adapt = _direction(name, axes, b1, b2, eps)
    if parameter_scale == "on" or (parameter_scale == "auto" and name == "adafactor"):
        adapt = optax.chain(adapt, per_matrix(optax.scale_by_param_block_rms(), axes))
    if relative_step:
        adapt = optax.chain(adapt, optax.scale_by_schedule(_relative_step))

    parts = [adapt, *_after(name, axes, weight_decay, cautious)]
    if embedding_lr != 1.0 or scalar_lr != 1.0:
        parts.append(_scale_by_role(axes, embedding_lr, scalar_lr))
    # A chain of one would be another state than that of earlier checkpoints.
    whole = optax.chain(*parts) if len(parts) > 1 else adapt
    if average:
        whole = with_trailing_average(whole, average)
    return _with_standard_promotion(whole)


def _after(
    name: str, axes: Any, weight_decay: float, cautious: bool
) -> list[optax.GradientTransformation]:
    """Returns what follows the direction of an update: decay, LAMB's trust ratio and sign."""
    negative = optax.scale(-1.0)
    # Muon's updates have their sign, and it decays by itself: its matrices, and nothing else.
    if name == "muon":
        matrices = jax.tree.map(lambda role: role == "matrix", roles(axes))
        careful = optax.masked(_cautious_decay(weight_decay), matrices)
        return [negative, careful, negative] if cautious else []

    careful = optax.masked(_cautious_decay(weight_decay), decay_mask(axes))
    plain = optax.add_decayed_weights(weight_decay, decay_mask(axes))
    trust = optax.identity()
    if name == "lamb":
        trust = per_matrix(optax.scale_by_trust_ratio(), axes)
    return [careful if cautious else plain, trust, negative]


def _cautious_decay(weight_decay: float) -> optax.GradientTransformation:
    """Returns decoupled decay of the weights that the update brings nearer to 0."""

    def decayed(update: jax.Array, weight: jax.Array) -> jax.Array:
        # The update is still to be subtracted: of the weight's sign, it makes the weight smaller.
        return update + weight_decay * jnp.where(update * weight > 0, weight, 0.0)

    return optax.stateless(lambda updates, params: jax.tree.map(decayed, updates, params))


def _scale_by_role(
    axes: Any, embedding_lr: float, scalar_lr: float
) -> optax.GradientTransformation:
    """Returns a transformation that multiplies updates by the factor of their parameter's role."""
    by_role = {"embedding": embedding_lr, "matrix": 1.0}
    factors = jax.tree.map(lambda role: by_role.get(role, scalar_lr), roles(axes))
    return optax.stateless(
        lambda updates, _: jax.tree.map(lambda u, factor: u * factor, updates, factors)
    )


def _relative_step(count: jax.typing.ArrayLike) -> jax.Array:
    return jnp.minimum(1e-2, jax.lax.rsqrt(jnp.asarray(count).astype(jnp.float32) + 1.0))


def _with_standard_promotion(
    transform: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Returns `transform` under JAX's standard promotion of dtypes.

    optax raises Python floats to int32 step counts, which the strict promotion of the project's
    tests refuses.
    """

    def init(params):
        with jax.numpy_dtype_promotion("standard"):
            return transform.init(params)

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return transform.update(updates, state, params)

    return optax.GradientTransformation(init, update)


def _direction(
    name: str, axes: Any, b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
    """Returns the direction of an update before decay and sign."""
    match name:
        case "adamw" | "lamb":
            return optax.scale_by_adam(b1, b2, eps)
        case "lion":
            return optax.scale_by_lion(b1, b2)
        case "adafactor":
            # arXiv 1804.04235: factored second moment, update clipping at RMS 1.
            clip = optax.clip_by_block_rms(1.0)
            return per_matrix(optax.chain(optax.scale_by_factored_rms(), clip), axes)
    raise ValueError(f"unknown optimizer {name!r}")


def _muon(
    axes: Any,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    momentum_warmup: int,
) -> optax.GradientTransformation:
    """Returns Muon for matrices and AdamW for the rest, decay and sign included."""
    numbers = jax.tree.map(_muon_axes, roles(axes), axes, is_leaf=is_axes)

    def with_momentum(beta: jax.typing.ArrayLike) -> optax.GradientTransformation:
        # consistent_rms 0.2 gives updates the size of AdamW's, so that learning rates carry over
        # (arXiv 2502.16982).
        return contrib.muon(
            1.0,
            beta=beta,
            eps=eps,
            weight_decay=weight_decay,
            weight_decay_mask=None,
            adam_b1=b1,
            adam_b2=b2,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=numbers,
        )

    if not momentum_warmup:
        return with_momentum(momentum)
    rising = optax.linear_schedule(MUON_FIRST_MOMENTUM, momentum, momentum_warmup)

    def init(params):
        return jnp.zeros((), jnp.int32), with_momentum(momentum).init(params)

    def update(updates, state, params=None):
        # The size of the momentum does not matter: its matrix is made orthogonal.
        count, state = state
        updates, state = with_momentum(rising(count)).update(updates, state, params)
        return updates, (optax.safe_increment(count), state)

    return optax.GradientTransformation(init, update)


def decay_mask(axes: Any) -> Any:
    """Returns a tree like `axes` with True where weight decay applies.

    It applies to every parameter except biases and the scales of norms.
    """
    return jax.tree.map(lambda role: role in ("matrix", "embedding", "scalar"), roles(axes))


def per_matrix(transform: optax.GradientTransformation, axes: Any) -> optax.GradientTransformation:
    """Returns `transform` applied to every matrix or vector by itself.

    Those are each layer of a stack, and each part of a fused projection. A projection to heads is
    the matrix [embed, heads * head_dim], as in T5X's Adafactor.
    """
    # Stacks of different depth cannot share one vmap, hence a label for each leaf's path.
    paths = jax.tree.map_with_path(
        lambda path, _: jax.tree_util.keystr(path), axes, is_leaf=is_axes
    )
    leaves = (jax.tree.leaves(tree, is_leaf=is_axes) for tree in (paths, roles(axes), axes))
    by_path = {
        path: _folded(transform, role, names) for path, role, names in zip(*leaves, strict=True)
    }
    return optax.partition(by_path, paths)


def _folded(
    transform: optax.GradientTransformation, role: str, names: Axes
) -> optax.GradientTransformation:
    """Returns `transform` of one parameter, mapped over its layers and fused parts.

    The parameter is seen as [batch, rows, columns] or [batch, entries], without a batch if it has
    neither layers nor parts.
    """
    if role == "matrix":
        groups = rows_and_columns(names)
    else:
        groups = tuple((i,) for i in own_axes(role, names))
    single = sum(groups, ())
    batch = tuple(i for i in range(len(names)) if i not in single)
    order = batch + single
    if batch:
        groups = (batch, *groups)

    def fold(x: jax.Array) -> jax.Array:
        sizes = []
        for group in groups:
            sizes.append(math.prod(x.shape[i] for i in group))
        return jnp.transpose(x, order).reshape(sizes)

    def unfold(x: jax.Array, like: jax.Array) -> jax.Array:
        back = tuple(order.index(i) for i in range(len(order)))
        return jnp.transpose(x.reshape([like.shape[i] for i in order]), back)

    over_batch = jax.vmap if batch else lambda function: function

    def init(params):
        return over_batch(transform.init)(jax.tree.map(fold, params))

    def update(updates, state, params=None):
        folded = jax.tree.map(fold, updates)
        new, state = over_batch(transform.update)(folded, state, jax.tree.map(fold, params))
        return jax.tree.map(unfold, new, updates), state

    return optax.GradientTransformation(init, update)


def _muon_axes(role: str, names: Axes) -> contrib.MuonDimensionNumbers | None:
    """Returns which axes of a matrix are rows and columns.

    It returns None for embeddings, norms and biases, which Muon leaves to AdamW.
    """
    if role != "matrix":
        return None
    return contrib.MuonDimensionNumbers(*rows_and_columns(names))
