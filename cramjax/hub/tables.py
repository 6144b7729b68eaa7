"""Which tensor of `transformers` is which of our parameters: one table a family, and the two directions that follow from it.

A dense layer of theirs is [out, in]; ours has its inputs first, heads as axes of their own, what is multiplied at once in one array, and
the layers of a stack on axis 0. An `Entry` says how these differ; nothing else in the project knows it. NumPy alone, and no copy is made
twice: tensors are asked for one at a time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

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
        path: of ours, joined by "/". names: theirs; "{i}" is the layer.
        inputs: leading axes of ours (without layer) that are the inputs of a dense layer, whose tensor is [out, in]; 0: no dense layer.
        fuse: the axis of ours (without layer) on which the tensors of `names` are stacked; None: there is one.
        first: the first layer that has it. offset: theirs has rows in front that are no positions.
    """

    path: str
    names: tuple[str, ...]
    inputs: int = 0
    fuse: int | None = None
    first: int = 0
    offset: bool = False

    @property
    def stacked(self) -> bool:
        """Whether axis 0 of ours is the layer."""
        return "{i}" in self.names[0]

    def rows(self, shape: Shape) -> Iterator[tuple[Any, str]]:
        """(index into ours, their name) of every tensor that ours, of `shape`, is made of."""
        for layer in range(shape[0]) if self.stacked else (None,):
            for part, name in enumerate(self.names):
                index: tuple = () if layer is None else (layer,)
                if self.fuse is not None:
                    index += (slice(None),) * self.fuse + (part,)
                yield index, name if layer is None else name.format(i=layer + self.first)

    def theirs(self, part: Shape) -> Shape:
        """The shape of their tensor for a `part` of ours; biases are flat."""
        if self.inputs:
            return math.prod(part[self.inputs :]), math.prod(part[: self.inputs])
        return (math.prod(part),) if self.path.endswith("/bias") else part

    def to_ours(self, tensor: np.ndarray, part: Shape) -> np.ndarray:
        """Their tensor as a part of ours."""
        return (tensor.T if self.inputs else tensor).reshape(part)

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`."""
        shape = self.theirs(array.shape)
        return array.reshape(shape[::-1]).T if self.inputs else array.reshape(shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """The names of a family.

    Attributes:
        entries: of all parameters. pooler: of the dense layer on the first position, which our networks lack.
        prefix: in front of the names, where the model has a head.
        head: a tensor that is there if the head is; "": it cannot be missing.
        copies: tied tensors, which files may hold as well → what they are copies of.
        instead: tensor → the one that stands in for it where a file lacks it.
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
    """BERT and its kin, which differ in where the norms stand and what they and the head (dense, norm, logits) are called."""
    layer, embeddings, tokens = (
        "encoder/layers",
        f"{prefix}embeddings",
        f"{prefix}embeddings.word_embeddings.weight",
    )
    theirs = f"{prefix}encoder.layer.{{i}}"
    qkv = [f"{theirs}.attention.self.{part}" for part in ("query", "key", "value")]
    dense, norm, logits = head
    entries = [
        Entry("encoder/embeddings/tokens", (tokens,)),
        Entry(
            "encoder/embeddings/positions",
            (f"{embeddings}.position_embeddings.weight",),
            offset=offset,
        ),
        Entry("encoder/embeddings/token_types", (f"{embeddings}.token_type_embeddings.weight",)),
        Entry(
            f"{layer}/attention/qkv/kernel",
            tuple(f"{part}.weight" for part in qkv),
            inputs=1,
            fuse=1,
        ),
        Entry(f"{layer}/attention/qkv/bias", tuple(f"{part}.bias" for part in qkv), fuse=0),
        *_dense(f"{layer}/attention/out", f"{theirs}.attention.output.dense", inputs=2),
        *_norm(f"{layer}/attention_norm", f"{theirs}.{attention_norm}"),
        *_norm(f"{layer}/mlp_norm", f"{theirs}.{mlp_norm}"),
        *_dense(f"{layer}/mlp/wi", f"{theirs}.intermediate.dense"),
        *_dense(f"{layer}/mlp/wo", f"{theirs}.output.dense"),
        *(_norm("encoder/embeddings/norm", prefix + embedding_norm) if embedding_norm else ()),
        *(_norm("encoder/final_norm", prefix + final_norm) if final_norm else ()),
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


def _classifier(dense: str, out: str, norm: str = "") -> tuple[Entry, ...]:
    return (
        *_dense("classifier/dense", dense),
        *(_norm("classifier/norm", norm) if norm else ()),
        *_dense("classifier/out", out),
    )


_CLASSIFIERS = {
    "bert": _classifier("bert.pooler.dense", "classifier"),
    "megatron-bert": _classifier("bert.pooler.dense", "classifier"),
    "roberta": _classifier("classifier.dense", "classifier.out_proj"),
    "roberta-prelayernorm": _classifier("classifier.dense", "classifier.out_proj"),
    "modernbert": _classifier("head.dense", "classifier", "head.norm"),
}


def _modernbert(cfg: encoder.EncoderConfig) -> Table:
    layer, theirs, tokens = (
        "encoder/layers",
        "model.layers.{i}",
        "model.embeddings.tok_embeddings.weight",
    )
    entries = [
        Entry("encoder/embeddings/tokens", (tokens,)),
        *_norm("encoder/embeddings/norm", "model.embeddings.norm"),
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
    return Table(
        entries=tuple(entries),
        prefix="model.",
        # A classifier has the dense layer of the head too, tuned for other ends.
        head="decoder.bias" if cfg.decoder_bias else "head.dense.weight",
        copies={"decoder.weight": tokens},
    )


def _t5(cfg: t5.T5Config) -> Table:
    entries = [Entry("embeddings/tokens", ("shared.weight",))]
    for side in ("encoder", "decoder"):
        theirs, ours = f"{side}.block.{{i}}.layer", f"{side}/layers"
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        mlp = f"{theirs}.{1 if side == 'encoder' else 2}"
        halves = ("wi_0", "wi_1") if cfg.ffn.startswith("geglu") else ("wi",)
        wi = tuple(f"{mlp}.DenseReluDense.{half}.weight" for half in halves)
        entries += [
            Entry(f"{side}/relative_bias/table", (bias,)),
            Entry(f"{ours}/attention_norm/scale", (f"{theirs}.0.layer_norm.weight",)),
            _projections(f"{ours}/attention/qkv", f"{theirs}.0.SelfAttention", "qkv"),
            Entry(
                f"{ours}/attention/out/kernel", (f"{theirs}.0.SelfAttention.o.weight",), inputs=2
            ),
            Entry(f"{ours}/mlp_norm/scale", (f"{mlp}.layer_norm.weight",)),
            Entry(f"{ours}/mlp/wi/kernel", wi, inputs=1, fuse=1 if len(wi) > 1 else None),
            Entry(f"{ours}/mlp/wo/kernel", (f"{mlp}.DenseReluDense.wo.weight",), inputs=1),
            Entry(f"{side}/final_norm/scale", (f"{side}.final_layer_norm.weight",)),
        ]
    theirs, ours = "decoder.block.{i}.layer.1", "decoder/layers"
    entries += [
        Entry(f"{ours}/cross_norm/scale", (f"{theirs}.layer_norm.weight",)),
        _projections(f"{ours}/cross_attention/query", f"{theirs}.EncDecAttention", "q"),
        _projections(f"{ours}/cross_attention/kv", f"{theirs}.EncDecAttention", "kv"),
        Entry(
            f"{ours}/cross_attention/out/kernel", (f"{theirs}.EncDecAttention.o.weight",), inputs=2
        ),
        Entry("head/kernel", ("lm_head.weight",)),
    ]
    tied = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"] + [
        "lm_head.weight"
    ] * cfg.tie_embeddings
    # transformers 5 can have the two forms mixed: logits from the embedding, not scaled.
    instead = {} if cfg.tie_embeddings else {"lm_head.weight": "shared.weight"}
    return Table(
        entries=tuple(entries), copies=dict.fromkeys(tied, "shared.weight"), instead=instead
    )


def _projections(path: str, name: str, letters: str) -> Entry:
    return Entry(
        f"{path}/kernel", tuple(f"{name}.{letter}.weight" for letter in letters), inputs=1, fuse=1
    )


def table(family: str, cfg: families.Config) -> Table:
    """The names for a network of `family`: those whose parameters `cfg` has.

    Raises:
        UserError: where no model of the family is such a network.
    """
    families.check(family, cfg)
    shapes = families.shapes(cfg)
    network = families.network(cfg)
    full = (
        _t5(network)
        if family == "t5"
        else _modernbert(network)
        if family == "modernbert"
        else _BERTS[family]
    )
    if isinstance(cfg, classifier.ClassifierConfig):
        full = Table(entries=(*full.entries, *_CLASSIFIERS[family]), prefix=full.prefix)
    entries = tuple(entry for entry in full.entries if entry.path in shapes)
    unknown = set(shapes) - {entry.path for entry in entries}
    if unknown:
        raise UserError(
            f"model: no {family} has the parameter {min(unknown)}; choose another family"
        )
    return dataclasses.replace(full, entries=entries)


def from_hf(
    family: str, cfg: families.Config, state: Mapping[str, np.ndarray], *, pad_id: int | None = None
) -> tuple[Params, Extra]:
    """Our parameters, float32 NumPy arrays in a tree as of `init_params`, from tensors by the names of `transformers`.

    Tensors of other heads than that of `cfg` are left alone. Old names (`LayerNorm.gamma`) and those of models without a head (no prefix)
    are known.

    Args:
        family: a key of `families.FAMILIES`. cfg: as of `families.from_json`.
        state: name → array of floats of any width; each is asked for once.
        pad_id: the id of the padding token, which positions are counted from; None: the family's usual one.

    Returns:
        The parameters, and what our networks have no place for: `pooler` {"kernel" [d_model (in), d_model (out)], "bias" [d_model]} if
        there is one, and `head_missing` True if there is no head for tokens: that of the parameters is a fresh one then.

    Raises:
        UserError: for a tensor that is missing, of another shape or not of floats, or tied here but of other values there.
    """
    names, shapes = table(family, cfg), families.shapes(cfg)
    tensors = _Tensors(names, state)
    offset = _offset(family, pad_id)
    headless = bool(names.head) and names.head not in tensors
    flat = {}
    for entry in names.entries:
        shape = shapes[entry.path]
        missing = headless and entry.path.startswith("head/")
        flat[entry.path] = (
            _fresh(entry.path, shape, cfg) if missing else _read(entry, shape, tensors, offset)
        )
    _check_copies(names, tensors)
    extra: Extra = {"head_missing": True} if headless else {}
    if names.pooler and all(entry.names[0] in tensors for entry in names.pooler):
        sizes = _pooler_shapes(cfg)
        extra |= unflatten_dict(
            {entry.path: _read(entry, sizes[entry.path], tensors, 0) for entry in names.pooler},
            sep="/",
        )
    return unflatten_dict(flat, sep="/"), extra


def to_hf(
    family: str,
    cfg: families.Config,
    params: Params,
    extra: Extra | None = None,
    *,
    pad_id: int | None = None,
) -> dict[str, np.ndarray]:
    """Tensors by the names of the family's model with the head of `cfg`, contiguous float32: the inverse of `from_hf`, bit for bit.

    Tied tensors stand there once, as `save_pretrained` writes them. Rows of a table of positions that are no positions are 0.

    Args:
        params: as of `init_params`. extra: as of `from_hf`; None: {}. pad_id: as of `from_hf`.

    Raises:
        UserError: where no model of the family is such a network.
    """
    names, shapes, extra = table(family, cfg), dict(families.shapes(cfg)), extra or {}
    flat = flatten_dict({key: extra[key] for key in ("pooler",) if key in extra} | params, sep="/")
    shapes |= _pooler_shapes(cfg) if "pooler" in extra else {}
    state = {}
    for entry in names.entries + (names.pooler if "pooler" in extra else ()):
        if extra.get("head_missing") and entry.path.startswith("head/"):
            continue
        ours = np.asarray(flat[entry.path], np.float32)
        if ours.shape != shapes[entry.path]:
            raise ValueError(
                f"{entry.path} is {ours.shape}, but the configuration has {shapes[entry.path]}"
            )
        for index, name in entry.rows(ours.shape):
            tensor = entry.to_theirs(ours[index])
            if entry.offset:
                tensor = np.pad(tensor, ((_offset(family, pad_id), 0), (0, 0)))
            state[name] = np.ascontiguousarray(tensor)
    return state


class _Tensors:
    """`state` by the names of a table, whichever of the known forms it has them in; tensors as float32."""

    def __init__(self, names: Table, state: Mapping[str, np.ndarray]):
        self.state, self.actual = state, {}
        self.stand_ins = [
            *names.instead.items(),
            *((original, copy) for copy, original in names.copies.items()),
        ]
        bare = not any(name.startswith(names.prefix) for name in state)
        heads = tuple(
            {entry.names[0].split(".")[0] + "." for entry in names.entries} - {names.prefix}
        )
        for name in state:
            known = _modern(name)
            if bare and not known.startswith(heads):
                known = names.prefix + known
            self.actual.setdefault(known, name)

    def __contains__(self, name: str) -> bool:
        return name in self.actual

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.actual:
            name = next(
                (other for wanted, other in self.stand_ins if wanted == name and other in self),
                name,
            )
        if name not in self.actual:
            raise UserError(
                f"the tensor {name} is missing; take the weights of the model that config.json describes"
            )
        tensor = self.state[self.actual[name]]
        if tensor.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
            raise UserError(
                f"the tensor {name} is of {tensor.dtype}, not of floats; save the model unquantized"
            )
        return np.asarray(tensor, np.float32)


def _modern(name: str) -> str:
    """Files from before 2019's end say gamma and beta."""
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _read(entry: Entry, shape: Shape, tensors: _Tensors, offset: int) -> np.ndarray:
    ours = np.empty(shape, np.float32)
    for index, name in entry.rows(shape):
        part = ours[index].shape
        expected = entry.theirs(part)
        if entry.offset:
            expected = (expected[0] + offset, *expected[1:])
        tensor = tensors[name]
        if tensor.shape != expected:
            raise UserError(
                f"the tensor {name} has shape {list(tensor.shape)}, but config.json says {list(expected)}; "
                "take both from the same model"
            )
        ours[index] = entry.to_ours(tensor[offset:] if entry.offset else tensor, part)
    return ours


def _check_copies(names: Table, tensors: _Tensors) -> None:
    for copy, original in names.copies.items():
        if (
            copy in tensors
            and original in tensors
            and not np.array_equal(tensors[copy], tensors[original])
        ):
            raise UserError(
                f"the tensors {copy} and {original} differ, but are one here; untied models are not supported"
            )


def _fresh(path: str, shape: Shape, cfg: encoder.EncoderConfig) -> np.ndarray:
    """A head as before training."""
    if path.endswith("/kernel"):
        return np.random.default_rng(0).normal(0.0, cfg.init_std, shape).astype(np.float32)
    return np.full(shape, 1.0 if path.endswith("/scale") else 0.0, np.float32)


def _offset(family: str, pad_id: int | None) -> int:
    return (families.FAMILIES[family].pad_id if pad_id is None else pad_id) + 1


def _pooler_shapes(cfg: encoder.EncoderConfig) -> dict[str, Shape]:
    return {"pooler/kernel": (cfg.d_model, cfg.d_model), "pooler/bias": (cfg.d_model,)}
