"""Translates tensors of `transformers` to our parameters and back: one table for each family.

Their dense layers are [out, in]. Ours have the inputs first, heads as axes of their own, and one
array for kernels that are multiplied at once; the layers of a stack are on axis 0. An `Entry` says
how the two differ, and nothing else in the project knows it.

This needs NumPy only. Tensors are asked for one at a time, so that no second copy of a model is in
memory.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cramjax.errors import UserError
from cramjax.hub import families
from cramjax.models import classifier, encoder, t5

Params = dict[str, Any]
Extra = dict[str, Any]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of our parameters and the tensors it is made of.

    Attributes:
        path: of our parameter, joined by "/".
        names: of their tensors; "{i}" stands for the layer.
        inputs: how many leading axes of ours (without the layer) are inputs of a dense layer,
            whose tensor is [out, in]; 0 if it is no dense layer.
        fuse: the axis of ours (without the layer) on which the tensors of `names` are stacked;
            None if there is only one.
        first: the first layer that has it.
        offset: their tensor starts with rows that are no positions.
    """

    path: str
    names: tuple[str, ...]
    inputs: int = 0
    fuse: int | None = None
    first: int = 0
    offset: bool = False

    @property
    def is_stacked(self) -> bool:
        """True if axis 0 of ours is the layer."""
        return "{i}" in self.names[0]

    def rows(self, shape: Shape) -> Iterator[tuple[Any, str]]:
        """Yields (index into ours, their name) for every tensor that ours, of `shape`, holds."""
        layers = range(shape[0]) if self.is_stacked else (None,)
        for layer in layers:
            for part, name in enumerate(self.names):
                index: tuple = () if layer is None else (layer,)
                if self.fuse is not None:
                    index += (slice(None),) * self.fuse + (part,)
                yield index, name if layer is None else name.format(i=layer + self.first)

    def their_shape(self, shape: Shape) -> Shape:
        """Returns the shape of their tensor for a part of ours of `shape`; biases are flat."""
        if self.inputs:
            return math.prod(shape[self.inputs :]), math.prod(shape[: self.inputs])
        if self.path.endswith("/bias"):
            return (math.prod(shape),)
        return shape

    def to_ours(self, tensor: np.ndarray, shape: Shape) -> np.ndarray:
        """Returns their tensor as a part of ours, of `shape`."""
        if self.inputs:
            tensor = tensor.T  # [out, in] → [in, out]
        return tensor.reshape(shape)

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """Returns a part of ours as their tensor: the inverse of `to_ours`."""
        shape = self.their_shape(array.shape)
        if self.inputs:
            return array.reshape(shape[::-1]).T  # [in, out] → [out, in]
        return array.reshape(shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """The names of a family.

    Attributes:
        entries: of all parameters, the token embedding first.
        pooler: of the dense layer on the first position, which our networks lack.
        prefix: in front of the names, if the model has a head.
        head: a tensor that exists if the head does; "" if the head cannot be missing.
        copies: tied tensor, which files may hold as well → the tensor it is a copy of.
        instead: tensor → the one that replaces it in files that lack it.
    """

    entries: tuple[Entry, ...]
    pooler: tuple[Entry, ...] = ()
    prefix: str = ""
    head: str = ""
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    instead: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _dense(path: str, name: str, inputs: int = 1) -> list[Entry]:
    return [
        Entry(f"{path}/kernel", (f"{name}.weight",), inputs),
        Entry(f"{path}/bias", (f"{name}.bias",)),
    ]


def _norm(path: str, name: str, first: int = 0) -> list[Entry]:
    return [
        Entry(f"{path}/{ours}", (f"{name}.{theirs}",), first=first)
        for ours, theirs in (("scale", "weight"), ("bias", "bias"))
    ]


def _bert(
    prefix: str,
    attention_norm: str,
    mlp_norm: str,
    head: tuple[str, str, str],
    *,
    embedding_norm: str | None = None,
    final_norm: str | None = None,
    offset: bool = False,
) -> Table:
    """Returns the table of BERT or one of its kin.

    They differ in the place of the norms, and in the names of the norms and of the head (dense,
    norm, logits).
    """
    embeddings = f"{prefix}embeddings"
    tokens = f"{embeddings}.word_embeddings.weight"
    layer, theirs = "encoder/layers", f"{prefix}encoder.layer.{{i}}"
    qkv = [f"{theirs}.attention.self.{part}" for part in ("query", "key", "value")]
    kernels = tuple(f"{part}.weight" for part in qkv)
    biases = tuple(f"{part}.bias" for part in qkv)

    entries = [
        Entry("encoder/embeddings/tokens", (tokens,)),
        Entry(
            "encoder/embeddings/positions",
            (f"{embeddings}.position_embeddings.weight",),
            offset=offset,
        ),
        Entry("encoder/embeddings/token_types", (f"{embeddings}.token_type_embeddings.weight",)),
        Entry(f"{layer}/attention/qkv/kernel", kernels, inputs=1, fuse=1),
        Entry(f"{layer}/attention/qkv/bias", biases, fuse=0),
        *_dense(f"{layer}/attention/out", f"{theirs}.attention.output.dense", inputs=2),
        *_norm(f"{layer}/attention_norm", f"{theirs}.{attention_norm}"),
        *_norm(f"{layer}/mlp_norm", f"{theirs}.{mlp_norm}"),
        *_dense(f"{layer}/mlp/wi", f"{theirs}.intermediate.dense"),
        *_dense(f"{layer}/mlp/wo", f"{theirs}.output.dense"),
    ]
    if embedding_norm:
        entries += _norm("encoder/embeddings/norm", prefix + embedding_norm)
    if final_norm:
        entries += _norm("encoder/final_norm", prefix + final_norm)

    dense, norm, logits = head
    entries += [
        *_dense("head/dense", dense),
        *_norm("head/norm", norm),
        Entry("head/bias", (f"{logits}.bias",)),
    ]
    return Table(
        entries=tuple(entries),
        pooler=tuple(_dense("pooler", f"{prefix}pooler.dense")),
        prefix=prefix,
        head=f"{dense}.weight",
        copies={f"{logits}.decoder.weight": tokens, f"{logits}.decoder.bias": f"{logits}.bias"},
    )


_CLS = ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions")
_LM_HEAD = ("lm_head.dense", "lm_head.layer_norm", "lm_head")
_BERTS = {
    "bert": _bert(
        "bert.",
        "attention.output.LayerNorm",
        "output.LayerNorm",
        _CLS,
        embedding_norm="embeddings.LayerNorm",
    ),
    "megatron-bert": _bert("bert.", "attention.ln", "ln", _CLS, final_norm="encoder.ln"),
    "roberta": _bert(
        "roberta.",
        "attention.output.LayerNorm",
        "output.LayerNorm",
        _LM_HEAD,
        embedding_norm="embeddings.LayerNorm",
        offset=True,
    ),
    "roberta-prelayernorm": _bert(
        "roberta_prelayernorm.",
        "attention.LayerNorm",
        "intermediate.LayerNorm",
        _LM_HEAD,
        embedding_norm="embeddings.LayerNorm",
        final_norm="LayerNorm",
        offset=True,
    ),
}


def _electra() -> Table:
    """Returns the table of a discriminator: BERT's, with a head that finds replaced tokens."""
    head = "discriminator_predictions"
    bert = _bert(
        "electra.",
        "attention.output.LayerNorm",
        "output.LayerNorm",
        _CLS,
        embedding_norm="embeddings.LayerNorm",
    )
    entries = [entry for entry in bert.entries if not entry.path.startswith("head/")]
    entries += _dense("head/transform", f"{head}.dense")
    entries += _dense("head/score", f"{head}.dense_prediction")
    return Table(entries=tuple(entries), prefix="electra.", head=f"{head}.dense.weight")


def _classifier(dense: str, out: str, norm: str = "") -> tuple[Entry, ...]:
    entries = _dense("classifier/dense", dense)
    if norm:
        entries += _norm("classifier/norm", norm)
    return (*entries, *_dense("classifier/out", out))


_CLASSIFIERS = {
    "bert": _classifier("bert.pooler.dense", "classifier"),
    "megatron-bert": _classifier("bert.pooler.dense", "classifier"),
    "roberta": _classifier("classifier.dense", "classifier.out_proj"),
    "roberta-prelayernorm": _classifier("classifier.dense", "classifier.out_proj"),
    "modernbert": _classifier("head.dense", "classifier", "head.norm"),
}

# Heads on each token: BERT's kin have no transform there.
_TOKEN_SCORES = {classifier.TOKEN: "classifier", classifier.SPAN: "qa_outputs"}


def _head(family: str, cfg: classifier.ClassifierConfig) -> tuple[Entry, ...]:
    """Returns the entries of the head of a classifier; an embedding has none."""
    if cfg.head == classifier.EMBEDDING:
        return ()
    if cfg.head == classifier.SEQUENCE or family == "modernbert":
        return _CLASSIFIERS[family]
    return tuple(_dense("classifier/out", _TOKEN_SCORES[cfg.head]))


def _modernbert(cfg: encoder.EncoderConfig) -> Table:
    layer, theirs = "encoder/layers", "model.layers.{i}"
    tokens = "model.embeddings.tok_embeddings.weight"
    entries = [
        Entry("encoder/embeddings/tokens", (tokens,)),
        *_norm("encoder/embeddings/norm", "model.embeddings.norm"),
        # The first layer reads the norm of the embeddings.
        *_norm(f"{layer}/attention_norm", f"{theirs}.attn_norm", first=1),
        *_dense(f"{layer}/attention/qkv", f"{theirs}.attn.Wqkv"),
        *_dense(f"{layer}/attention/out", f"{theirs}.attn.Wo", inputs=2),
        *_norm(f"{layer}/mlp_norm", f"{theirs}.mlp_norm"),
        *_dense(f"{layer}/mlp/wi", f"{theirs}.mlp.Wi"),
        *_dense(f"{layer}/mlp/wo", f"{theirs}.mlp.Wo"),
        *_norm("encoder/final_norm", "model.final_norm"),
        *_dense("head/dense", "head.dense"),
        *_norm("head/norm", "head.norm"),
        Entry("head/bias", ("decoder.bias",)),
    ]

    # A classifier has the dense layer of the head too, tuned for another purpose: the bias of the
    # logits tells the two apart, where there is one.
    head = "decoder.bias" if cfg.decoder_bias else "head.dense.weight"
    return Table(
        entries=tuple(entries), prefix="model.", head=head, copies={"decoder.weight": tokens}
    )


def _t5(cfg: t5.T5Config) -> Table:
    entries = [Entry("embeddings/tokens", ("shared.weight",))]
    entries += _t5_stack(cfg, "encoder", mlp=1)
    # In a block of the decoder, cross-attention stands between self-attention and feed-forward.
    entries += _t5_stack(cfg, "decoder", mlp=2)
    ours, theirs = "decoder/layers", "decoder.block.{i}.layer.1"
    attention = f"{theirs}.EncDecAttention"
    entries += [
        Entry(f"{ours}/cross_norm/scale", (f"{theirs}.layer_norm.weight",)),
        _projections(f"{ours}/cross_attention/query", attention, "q"),
        _projections(f"{ours}/cross_attention/kv", attention, "kv"),
        Entry(f"{ours}/cross_attention/out/kernel", (f"{attention}.o.weight",), inputs=2),
        Entry("head/kernel", ("lm_head.weight",)),
    ]

    tied = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    instead = {}
    if cfg.tie_embeddings:
        tied.append("lm_head.weight")
    else:
        # transformers 5 can mix the two forms: logits from the embedding, but not scaled.
        instead["lm_head.weight"] = "shared.weight"
    return Table(
        entries=tuple(entries), copies=dict.fromkeys(tied, "shared.weight"), instead=instead
    )


def _t5_stack(cfg: t5.T5Config, side: str, mlp: int) -> list[Entry]:
    """Returns the entries of the encoder or the decoder, without cross-attention.

    `mlp` is the number of the feed-forward among the layers of a block.
    """
    ours, theirs = f"{side}/layers", f"{side}.block.{{i}}.layer"
    bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    dense = f"{theirs}.{mlp}.DenseReluDense"
    wi: tuple[str, ...] = (f"{dense}.wi.weight",)
    fuse = None
    if cfg.ffn.startswith("geglu"):
        wi = (f"{dense}.wi_0.weight", f"{dense}.wi_1.weight")
        fuse = 1
    return [
        Entry(f"{side}/relative_bias/table", (bias,)),
        Entry(f"{ours}/attention_norm/scale", (f"{theirs}.0.layer_norm.weight",)),
        _projections(f"{ours}/attention/qkv", f"{theirs}.0.SelfAttention", "qkv"),
        Entry(f"{ours}/attention/out/kernel", (f"{theirs}.0.SelfAttention.o.weight",), inputs=2),
        Entry(f"{ours}/mlp_norm/scale", (f"{theirs}.{mlp}.layer_norm.weight",)),
        Entry(f"{ours}/mlp/wi/kernel", wi, inputs=1, fuse=fuse),
        Entry(f"{ours}/mlp/wo/kernel", (f"{dense}.wo.weight",), inputs=1),
        Entry(f"{side}/final_norm/scale", (f"{side}.final_layer_norm.weight",)),
    ]


def _projections(path: str, name: str, letters: str) -> Entry:
    names = tuple(f"{name}.{letter}.weight" for letter in letters)
    return Entry(f"{path}/kernel", names, inputs=1, fuse=1)


def family_table(family: str, cfg: families.Config) -> Table:
    """Returns the names for a network of `family`, for the parameters that `cfg` has.

    Raises:
        UserError: if no model of the family is such a network.
    """
    families.check(family, cfg)
    network = families.network(cfg)
    if isinstance(network, t5.T5Config):
        table = _t5(network)
    elif family == "modernbert":
        table = _modernbert(network)
    elif family == "electra":
        table = _electra()
    else:
        table = _BERTS[family]
    if isinstance(cfg, classifier.ClassifierConfig):
        pooler = table.pooler if cfg.head == classifier.EMBEDDING else ()
        entries = (*table.entries, *_head(family, cfg))
        table = Table(entries=entries, pooler=pooler, prefix=table.prefix)

    shapes = dict(families.shapes(cfg))
    if families.is_headless(family, cfg):
        shapes = {path: shape for path, shape in shapes.items() if not path.startswith("head/")}
    entries = tuple(entry for entry in table.entries if entry.path in shapes)
    unknown = set(shapes) - {entry.path for entry in entries}
    if unknown:
        raise UserError(
            f"model: no {family} has the parameter {min(unknown)}; choose another family"
        )
    return dataclasses.replace(table, entries=entries)


def from_hf(
    family: str, cfg: families.Config, state: Mapping[str, np.ndarray], *, pad_id: int | None = None
) -> tuple[Params, Extra]:
    """Returns our parameters from tensors with the names of `transformers`.

    It ignores tensors of other heads than the one of `cfg`. It knows old names
    (`LayerNorm.gamma`), and the names of models without a head (no prefix).

    Args:
        family: a key of `families.FAMILIES`.
        cfg: the network, see `families.from_json`.
        state: name → array of floats of any width. Each is asked for once.
        pad_id: the id of the padding token, from which positions are counted; None for the
            family's usual one.

    Returns:
        The parameters, float32 NumPy arrays in the tree of `init_params`, and parts that our
        networks lack: `pooler` {"kernel" [d_model (in), d_model (out)], "bias" [d_model]} if the
        model has one, and `head_missing` True if it has no head for tokens. Then the head in the
        parameters is a fresh one.

    Raises:
        UserError: if a tensor is missing, has another shape, holds no floats, or differs from one
            that is tied to it here.
    """
    table = family_table(family, cfg)
    shapes = families.shapes(cfg)
    tensors = _Tensors(table, state)
    offset = _offset(family, pad_id)
    is_headless = bool(table.head) and table.head not in tensors

    flat = {}
    for entry in table.entries:
        shape = shapes[entry.path]
        if is_headless and entry.path.startswith("head/"):
            flat[entry.path] = _fresh(entry.path, shape, cfg)
        else:
            flat[entry.path] = _read_entry(entry, shape, tensors, offset)
    _check_copies(table, tensors)

    extra: Extra = {"head_missing": True} if is_headless else {}
    if table.pooler and all(entry.names[0] in tensors for entry in table.pooler):
        sizes = _pooler_shapes(cfg)
        pooler = {
            entry.path: _read_entry(entry, sizes[entry.path], tensors, 0) for entry in table.pooler
        }
        extra |= unflatten_dict(pooler, sep="/")
    return unflatten_dict(flat, sep="/"), extra


def to_hf(
    family: str,
    cfg: families.Config,
    params: Params,
    extra: Extra | None = None,
    *,
    pad_id: int | None = None,
) -> dict[str, np.ndarray]:
    """Returns tensors with the names of the family's model: the inverse of `from_hf`, bit for bit.

    They are contiguous float32, with the head of `cfg`. Tied tensors appear once, as
    `save_pretrained` writes them. Rows in a table of positions that are no positions are 0. The
    class without a head (of an embedding) has a pooler, which is fresh if `extra` has none.

    Args:
        family: a key of `families.FAMILIES`.
        cfg: the network.
        params: in the tree of `init_params`.
        extra: the second result of `from_hf`; None for {}.
        pad_id: see `from_hf`.

    Raises:
        UserError: if no model of the family is such a network.
    """
    table = family_table(family, cfg)
    shapes = dict(families.shapes(cfg))
    entries = table.entries
    extra = extra or {}
    is_bare = isinstance(cfg, classifier.ClassifierConfig) and cfg.head == classifier.EMBEDDING
    if is_bare and table.pooler:
        sizes = _pooler_shapes(cfg).items()
        network = families.network(cfg)
        fresh = {path: _fresh(path, shape, network) for path, shape in sizes}
        extra = unflatten_dict(fresh, sep="/") | extra
    if "pooler" in extra:
        params = {"pooler": extra["pooler"]} | params
        shapes |= _pooler_shapes(cfg)
        entries += table.pooler

    flat = flatten_dict(params, sep="/")
    # The names of a class without a head have no prefix.
    prefix = table.prefix if is_bare or families.is_headless(family, cfg) else ""
    state = {}
    for entry in entries:
        if extra.get("head_missing") and entry.path.startswith("head/"):
            continue
        ours = np.asarray(flat[entry.path], np.float32)
        if ours.shape != shapes[entry.path]:
            raise ValueError(
                f"{entry.path} is {ours.shape}, but the configuration has {shapes[entry.path]}"
            )
        # One of ours is a tensor of theirs for each layer and each fused part.
        for index, name in entry.rows(ours.shape):
            tensor = entry.to_theirs(ours[index])
            if entry.offset:
                # [positions, d_model] → [offset + positions, d_model]
                tensor = np.pad(tensor, ((_offset(family, pad_id), 0), (0, 0)))
            state[name.removeprefix(prefix)] = np.ascontiguousarray(tensor)
    return state


@runtime_checkable
class Lazy(Protocol):
    """Tensors that stay on disk until they are asked for."""

    def shape(self, name: str) -> Shape:
        """Returns the shape of a tensor without reading it."""
        ...


class _Tensors:
    """The tensors of a file by the names of a table, whichever known form the file has.

    Tensors come out as float32.
    """

    def __init__(self, table: Table, state: Mapping[str, np.ndarray]):
        self.state = state
        # A missing tensor may be there under another name: (missing, other).
        self.stand_ins = list(table.instead.items())
        self.stand_ins += [(original, copy) for copy, original in table.copies.items()]

        # The names of a model without a head have no prefix.
        is_bare = not any(name.startswith(table.prefix) for name in state)
        modules = {entry.names[0].split(".")[0] + "." for entry in table.entries}
        heads = tuple(modules - {table.prefix})
        self.actual: dict[str, str] = {}  # name in the table → name in the file
        for name in state:
            known = _modern_name(name)
            if is_bare and not known.startswith(heads):
                known = table.prefix + known
            self.actual.setdefault(known, name)

    def __contains__(self, name: str) -> bool:
        return name in self.actual

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self.state[self._present(name)]
        if tensor.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
            raise UserError(
                f"the tensor {name} is of {tensor.dtype}, not of floats; save the model unquantized"
            )
        return np.asarray(tensor, np.float32)

    def shape(self, name: str) -> Shape:
        """Returns the shape of a tensor; raises UserError if it is missing."""
        actual = self._present(name)
        if isinstance(self.state, Lazy):
            return self.state.shape(actual)
        return self.state[actual].shape

    def _present(self, name: str) -> str:
        """Returns the name in the file; raises UserError if there is none."""
        actual = self._find(name)
        if actual is None:
            raise UserError(
                f"the tensor {name} is missing; "
                "take the weights of the model that config.json describes"
            )
        return actual

    def _find(self, name: str) -> str | None:
        """Returns the name in the file, or None."""
        if name in self.actual:
            return self.actual[name]
        for missing, other in self.stand_ins:
            if missing == name and other in self.actual:
                return self.actual[other]
        return None


def _modern_name(name: str) -> str:
    """Returns the name that transformers uses since the end of 2019; gamma and beta are older."""
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _read_entry(entry: Entry, shape: Shape, tensors: _Tensors, offset: int) -> np.ndarray:
    """Returns our parameter, of `shape`, from the tensors it is made of."""
    _check_parts(entry, shape, tensors, offset)
    ours = np.empty(shape, np.float32)
    for index, name in entry.rows(shape):
        tensor = tensors[name]
        if entry.offset:
            tensor = tensor[offset:]
        ours[index] = entry.to_ours(tensor, ours[index].shape)
    return ours


def _check_parts(entry: Entry, shape: Shape, tensors: _Tensors, offset: int) -> None:
    """Raises UserError if tensors are missing or of other shapes than our parameter's parts.

    Memory for the parameter is taken afterwards, whatever config.json claims.
    """
    part = shape[1:] if entry.is_stacked else shape
    if entry.fuse is not None:
        part = (*part[: entry.fuse], *part[entry.fuse + 1 :])
    expected = entry.their_shape(part)
    if entry.offset:
        expected = (expected[0] + offset, *expected[1:])

    for _, name in entry.rows(shape):
        found = tensors.shape(name)
        if found != expected:
            raise UserError(
                f"the tensor {name} has shape {list(found)}, "
                f"but config.json says {list(expected)}; take both from the same model"
            )


def _check_copies(table: Table, tensors: _Tensors) -> None:
    """Raises UserError if a file holds two tensors that are tied here, with different values."""
    for copy, original in table.copies.items():
        if copy not in tensors or original not in tensors:
            continue
        if not np.array_equal(tensors[copy], tensors[original]):
            raise UserError(
                f"the tensors {copy} and {original} differ, but are one here; "
                "untied models are not supported"
            )


def _fresh(path: str, shape: Shape, cfg: families.Config) -> np.ndarray:
    """Returns a parameter of an encoder's head as it is before training."""
    if path.endswith("/kernel"):
        assert isinstance(cfg, encoder.EncoderConfig)  # only files of encoders lack a head
        return np.random.default_rng(0).normal(0.0, cfg.init_std, shape).astype(np.float32)
    value = 1.0 if path.endswith("/scale") else 0.0
    return np.full(shape, value, np.float32)


def _offset(family: str, pad_id: int | None) -> int:
    """Returns the number of rows in front of the positions of a fairseq table."""
    return (families.FAMILIES[family].pad_id if pad_id is None else pad_id) + 1


def _pooler_shapes(cfg: families.Config) -> dict[str, Shape]:
    d_model = families.network(cfg).d_model
    return {"pooler/kernel": (d_model, d_model), "pooler/bias": (d_model,)}
