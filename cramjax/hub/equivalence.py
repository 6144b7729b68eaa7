"""Which class of `transformers` computes what one of our networks computes, and the parameters written in its form.

A class may have what a network lacks where zeros leave the result alone (biases, token types, heads that were pruned), and a learned table
of positions holds any positions that are added. `widen` writes a network so, `narrow` takes it back, bit for bit.
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
from cramjax.models.encoder import EncoderConfig
from cramjax.models.layers import sinusoidal_table

Params = dict[str, Any]

# In the order in which they are tried; a RoBERTa is a BERT whose tokenizer counts otherwise.
_ORDER = ("bert", "megatron-bert", "roberta-prelayernorm", "modernbert", "t5")
_SWITCHED_ON = ("norm_bias", "linear_bias", "head_bias", "decoder_bias")
_NOTED = {*_SWITCHED_ON, "token_types", "positions", "n_heads", "pruned_heads"}
_NOTE = "cramjax_network"
_SCALE, _TABLE = "encoder/embeddings/position_scale", "encoder/embeddings/positions"


def find(cfg: families.Config) -> tuple[str, families.Config]:
    """The family whose model computes what a network of `cfg` does, and the configuration it does so with.

    Raises:
        UserError: where there is none; it names the keys that differ from the nearest one, and their values there.
    """
    network = families.network(cfg)
    names = [name for name in _ORDER if isinstance(network, families.FAMILIES[name].config)]
    wide = {name: _widened(name, cfg) for name in names}
    differences = {name: families.differences(name, wide[name]) for name in names}
    # A feed-forward of another kind has other matrices: what shares it is nearer, whatever else differs.
    best = min(names, key=lambda name: ("ffn" in differences[name], len(differences[name])))
    if not differences[best]:
        return best, wide[best]
    now = ", ".join(f"model.{field}={getattr(network, field)}" for field in differences[best])
    settings = " ".join(
        f"--config.model.{field}={value}" for field, value in differences[best].items()
    )
    raise UserError(
        f"no class of transformers computes this network ({now}); the nearest is {families.FAMILIES[best].architecture}: "
        f"train with {settings} to export it"
    )


def exports(cfg: families.Config) -> str | None:
    """The family of `find`; None where there is none."""
    try:
        return find(cfg)[0]
    except UserError:
        return None


def _widened(name: str, cfg: families.Config) -> families.Config:
    """`cfg` with all that costs nothing but zeros to be of the family `name`."""
    inner = families.network(cfg)
    if not isinstance(inner, EncoderConfig):
        return cfg
    fixed, fields = families.FAMILIES[name].fixed, {}
    if name == "modernbert":
        # One key of config.json for the biases of the norms, the head's among them.
        fields = dict.fromkeys(("norm_bias", "head_bias"), inner.norm_bias or inner.head_bias)
    else:
        fields = {field: True for field in _SWITCHED_ON if fixed.get(field)}
        fields["token_types"] = max(1, inner.token_types)
        if inner.positions in ("none", "scaled_sinusoidal"):
            fields["positions"] = "learned"
    if inner.pruned_heads:
        fields |= {"n_heads": inner.n_heads + inner.pruned_heads, "pruned_heads": 0}
    wide = dataclasses.replace(inner, **fields)
    return dataclasses.replace(cfg, encoder=wide) if isinstance(cfg, ClassifierConfig) else wide


def widen(cfg: families.Config, wide: families.Config, params: Params) -> Params:
    """`params` of a network of `cfg` as those of the same network written as `wide` (of `find`): NumPy, float32."""
    flat = {
        path: np.asarray(leaf, np.float32) for path, leaf in flatten_dict(params, sep="/").items()
    }
    shapes = families.shapes(wide)
    full = {path: _padded(flat.get(path), shape) for path, shape in shapes.items()}
    if _SCALE in flat:
        full[_TABLE] = _positions(shapes[_TABLE], flat[_SCALE])
    return unflatten_dict(full, sep="/")


def _padded(leaf: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """`leaf` in the beginning of zeros of `shape`."""
    if leaf is not None and leaf.shape == shape:
        return leaf
    full = np.zeros(shape, np.float32)
    if leaf is not None:
        full[tuple(map(slice, leaf.shape))] = leaf
    return full


def note(cfg: families.Config, wide: families.Config) -> dict[str, Any]:
    """What config.json keeps for `as_trained`: the fields in which the network of `cfg` is not the one of `wide`; {} where it is."""
    inner, outer = families.network(cfg), families.network(wide)
    names = [field.name for field in dataclasses.fields(inner)]
    different = {
        name: getattr(inner, name) for name in names if getattr(inner, name) != getattr(outer, name)
    }
    return {_NOTE: different} if different else {}


def as_trained(
    raw: Mapping[str, Any], wide: families.Config, params: Params
) -> tuple[families.Config, Params]:
    """The network before `widen`, of the content `raw` of a config.json with a `note`; `wide` and `params` as they are where that fails."""
    fields = raw.get(_NOTE)
    if not isinstance(fields, Mapping) or not set(fields) <= _NOTED:
        return wide, params
    try:
        cfg = dataclasses.replace(wide, **fields)
        kept = narrow(params, cfg)
    except (TypeError, ValueError):  # somebody wrote something else there
        return wide, params
    return (wide, params) if kept is None else (cfg, kept)


def narrow(params: Params, cfg: families.Config) -> Params | None:
    """The inverse of `widen`; None where `params` are no longer such a network, as after training on in `transformers`."""
    flat, shapes = flatten_dict(params, sep="/"), families.shapes(cfg)
    kept = {path: flat[path] for path in shapes if path in flat}
    rest = {path: leaf for path, leaf in flat.items() if path not in shapes}
    if _SCALE in shapes:
        table = rest.pop(_TABLE, np.zeros((1, 2), np.float32))
        kept[_SCALE] = np.asarray(table[0, 1], np.float32)  # cos(0) times the scale
        if not np.array_equal(table, _positions(table.shape, kept[_SCALE])):
            return None
    cut = {path: leaf[(*map(slice, shapes[path]), ...)] for path, leaf in kept.items()}
    lost = any(np.count_nonzero(leaf) != np.count_nonzero(cut[path]) for path, leaf in kept.items())
    fits = {path: leaf.shape for path, leaf in cut.items()} == dict(shapes)
    return (
        unflatten_dict(cut, sep="/")
        if fits and not lost and not any(leaf.any() for leaf in rest.values())
        else None
    )


def _positions(shape: tuple[int, ...], scale: np.ndarray) -> np.ndarray:
    return sinusoidal_table(*shape) * scale
