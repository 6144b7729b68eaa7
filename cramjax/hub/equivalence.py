"""Finds the class of `transformers` that computes the same as one of our networks.

A class may have parameters that a network lacks, where zeros leave the result alone (biases, token
types, heads that were pruned). A learned table of positions holds any positions that are added.
`widen` writes a network so, and `narrow` takes it back, bit for bit.

Here the stock configuration of a network is the configuration of the class: the same function with
these parameters added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cramjax.errors import UserError
from cramjax.hub import families
from cramjax.models.classifier import ClassifierConfig
from cramjax.models.detector import DetectorConfig
from cramjax.models.encoder import EncoderConfig
from cramjax.models.layers import sinusoidal_table

Params = dict[str, Any]

# The families in the order in which they are tried. RoBERTa is a BERT whose tokenizer counts
# positions differently.
_ORDER = ("bert", "megatron-bert", "roberta-prelayernorm", "modernbert", "electra", "t5")
_BIASES = ("norm_bias", "linear_bias", "head_bias", "decoder_bias")
# The key of config.json that keeps the original network, and the fields it may hold.
_NOTE = "cramjax_network"
_NOTED = {*_BIASES, "token_types", "positions", "n_heads", "pruned_heads"}
# Scaled sinusoidal positions have one scale; a learned table holds them as rows.
_SCALE = "encoder/embeddings/position_scale"
_TABLE = "encoder/embeddings/positions"


def find_family(cfg: families.Config) -> tuple[str, families.Config]:
    """Returns the family whose model computes what a network of `cfg` does, and its configuration.

    Raises:
        UserError: if there is no such family. It names the fields that differ from the nearest
            one, and their values there.
    """
    network = families.network(cfg)
    names = [name for name in _ORDER if type(network) is families.FAMILIES[name].config]
    if isinstance(network, DetectorConfig):
        # Its encoder may be a class's whose head it lacks; other such classes have a pooler.
        names.append("modernbert")
    stock = {name: _stock_config(name, cfg) for name in names}
    differences = {name: families.differences(name, stock[name]) for name in names}

    def distance(name: str) -> tuple[bool, int]:
        # Another kind of feed-forward has other matrices, so that weighs most.
        return "ffn" in differences[name], len(differences[name])

    nearest = min(names, key=distance)
    if not differences[nearest]:
        return nearest, stock[nearest]

    now = ", ".join(f"model.{field}={getattr(network, field)}" for field in differences[nearest])
    flags = " ".join(
        f"--config.model.{field}={value}" for field, value in differences[nearest].items()
    )
    raise UserError(
        f"no class of transformers computes this network ({now}); the nearest is "
        f"{families.architecture(nearest, network)}: train with {flags} to export it"
    )


def export_family(cfg: families.Config) -> str | None:
    """Returns the family of `find_family`, or None if no family computes the network."""
    try:
        return find_family(cfg)[0]
    except UserError:
        return None


def _stock_config(name: str, cfg: families.Config) -> families.Config:
    """Returns `cfg` with everything that the family `name` has and zeros can fill."""
    network = families.network(cfg)
    if not isinstance(network, EncoderConfig):
        return cfg

    fields: dict[str, Any]
    if name == "modernbert":
        # One key of config.json says whether norms have biases, the one in the head included.
        fields = dict.fromkeys(("norm_bias", "head_bias"), network.norm_bias or network.head_bias)
    else:
        fixed = families.FAMILIES[name].fixed
        fields = {field: True for field in _BIASES if fixed.get(field)}
        fields["token_types"] = max(1, network.token_types)
        if network.positions in ("none", "scaled_sinusoidal"):
            fields["positions"] = "learned"
    if network.pruned_heads:
        fields |= {"n_heads": network.n_heads + network.pruned_heads, "pruned_heads": 0}

    stock = dataclasses.replace(network, **fields)
    if isinstance(cfg, ClassifierConfig):
        return dataclasses.replace(cfg, encoder=stock)
    return stock


def widen(stock: families.Config, params: Params) -> Params:
    """Returns the parameters of a network as those of its `stock` configuration.

    All are float32 NumPy arrays; the added parameters are zeros.
    """
    leaves = flatten_dict(params, sep="/").items()
    flat = {path: np.asarray(leaf, np.float32) for path, leaf in leaves}
    shapes = families.shapes(stock)
    widened = {path: _padded(flat.get(path), shape) for path, shape in shapes.items()}
    if _SCALE in flat:
        widened[_TABLE] = _positions(shapes[_TABLE], flat[_SCALE])
    return unflatten_dict(widened, sep="/")


def _padded(leaf: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """Returns zeros of `shape` with `leaf` in their first corner."""
    if leaf is not None and leaf.shape == shape:
        return leaf
    padded = np.zeros(shape, np.float32)
    if leaf is not None:
        padded[tuple(map(slice, leaf.shape))] = leaf
    return padded


def note(cfg: families.Config, stock: families.Config) -> dict[str, Any]:
    """Returns the entry of config.json from which `as_trained` restores the network of `cfg`.

    It holds the fields in which `stock` differs; {} if there are none.
    """
    network, widened = families.network(cfg), families.network(stock)
    changed = {}
    for field in dataclasses.fields(network):
        value = getattr(network, field.name)
        if value != getattr(widened, field.name):
            changed[field.name] = value
    return {_NOTE: changed} if changed else {}


def as_trained(
    raw: Mapping[str, Any], stock: families.Network, params: Params
) -> tuple[families.Network, Params]:
    """Returns the network before `widen`, if config.json has a `note` about it.

    Args:
        raw: the content of config.json.
        stock: the configuration read from it.
        params: of `stock`.

    Returns:
        The network and its parameters; `stock` and `params` if there is no valid note, or the
        parameters are no longer those of the network in it.
    """
    fields = raw.get(_NOTE)
    if not isinstance(fields, Mapping) or not set(fields) <= _NOTED:
        return stock, params

    try:
        cfg = dataclasses.replace(stock, **fields)
        narrowed = narrow(params, cfg)
    except (TypeError, ValueError):  # somebody wrote something else there
        return stock, params

    if narrowed is None:
        return stock, params
    return cfg, narrowed


def narrow(params: Params, cfg: families.Config) -> Params | None:
    """Returns the parameters of a network of `cfg` from its widened `params`: undoes `widen`.

    Returns None if that would lose anything, as after more training in `transformers`.
    """
    flat: dict[str, Any] = dict(flatten_dict(params, sep="/"))
    shapes = families.shapes(cfg)
    kept = {path: flat[path] for path in shapes if path in flat}
    added = {path: leaf for path, leaf in flat.items() if path not in shapes}
    if _SCALE in shapes:
        table = added.pop(_TABLE, np.zeros((1, 2), np.float32))
        kept[_SCALE] = np.asarray(table[0, 1], np.float32)  # cos(0) times the scale
        if not np.array_equal(table, _positions(table.shape, kept[_SCALE])):
            return None

    narrowed = {}
    for path, leaf in kept.items():
        corner = (*map(slice, shapes[path]), ...)
        narrowed[path] = leaf[corner]
        if np.count_nonzero(leaf) != np.count_nonzero(narrowed[path]):
            return None
    if any(leaf.any() for leaf in added.values()):
        return None
    if {path: leaf.shape for path, leaf in narrowed.items()} != dict(shapes):
        return None
    return unflatten_dict(narrowed, sep="/")


def _positions(shape: tuple[int, ...], scale: np.ndarray) -> np.ndarray:
    """Returns the scaled sinusoidal table [positions, d_model]."""
    return sinusoidal_table(*shape) * scale
