"""State dicts of `transformers` → our parameters, for the parity tests only; the export is a feature of its own."""

import numpy as np


def bert(state: dict, cfg) -> dict:
    """BertForMaskedLM and MegatronBertForMaskedLM: they differ in where the norms are called."""
    prefix = "bert."
    pre = cfg.norm_position == "pre"

    def layers(name, shape=None):
        arrays = [state[f"{prefix}encoder.layer.{i}.{name}"].T for i in range(cfg.n_layers)]
        return np.stack([a if shape is None else a.reshape(shape) for a in arrays])

    width, heads = cfg.d_model, (cfg.n_heads, cfg.head_dim)
    parts = [f"attention.self.{name}" for name in ("query", "key", "value")]
    qkv = {
        "kernel": np.stack([layers(f"{part}.weight", (width, *heads)) for part in parts], axis=2),
        "bias": np.stack([layers(f"{part}.bias", heads) for part in parts], axis=1),
    }
    attention_norm, mlp_norm = ("attention.ln", "ln") if pre else ("attention.output.LayerNorm", "output.LayerNorm")
    embeddings = {
        "tokens": state[f"{prefix}embeddings.word_embeddings.weight"],
        "positions": state[f"{prefix}embeddings.position_embeddings.weight"],
        "token_types": state[f"{prefix}embeddings.token_type_embeddings.weight"],
    }
    encoder = {
        "embeddings": embeddings,
        "layers": {
            "attention_norm": _stacked_norm(layers, attention_norm),
            "attention": {
                "qkv": qkv,
                "out": {
                    "kernel": layers("attention.output.dense.weight", (*heads, width)),
                    "bias": layers("attention.output.dense.bias"),
                },
            },
            "mlp_norm": _stacked_norm(layers, mlp_norm),
            "mlp": {
                "wi": {
                    "kernel": layers("intermediate.dense.weight"),
                    "bias": layers("intermediate.dense.bias"),
                },
                "wo": {"kernel": layers("output.dense.weight"), "bias": layers("output.dense.bias")},
            },
        },
    }
    if pre:
        encoder["final_norm"] = _norm(state, f"{prefix}encoder.ln")
    else:
        embeddings["norm"] = _norm(state, f"{prefix}embeddings.LayerNorm")
    transform = "cls.predictions.transform"
    head = {
        "dense": {"kernel": state[f"{transform}.dense.weight"].T, "bias": state[f"{transform}.dense.bias"]},
        "norm": _norm(state, f"{transform}.LayerNorm"),
        "bias": state["cls.predictions.bias"],
    }
    return {"encoder": encoder, "head": head}


def modernbert(state: dict, cfg) -> dict:
    """ModernBertForMaskedLM."""
    width, heads = cfg.d_model, (cfg.n_heads, cfg.head_dim)

    def layers(name, shape, start=0):
        return np.stack([state[f"model.layers.{i}.{name}"].T.reshape(shape) for i in range(start, cfg.n_layers)])

    encoder = {
        "embeddings": {
            "tokens": state["model.embeddings.tok_embeddings.weight"],
            "norm": {"scale": state["model.embeddings.norm.weight"]},
        },
        "layers": {
            "attention_norm": {"scale": layers("attn_norm.weight", (width,), start=1)},
            "attention": {
                "qkv": {"kernel": layers("attn.Wqkv.weight", (width, 3, *heads))},
                "out": {"kernel": layers("attn.Wo.weight", (*heads, width))},
            },
            "mlp_norm": {"scale": layers("mlp_norm.weight", (width,))},
            "mlp": {
                "wi": {"kernel": layers("mlp.Wi.weight", (width, 2, cfg.d_ff))},
                "wo": {"kernel": layers("mlp.Wo.weight", (cfg.d_ff, width))},
            },
        },
        "final_norm": {"scale": state["model.final_norm.weight"]},
    }
    head = {
        "dense": {"kernel": state["head.dense.weight"].T},
        "norm": {"scale": state["head.norm.weight"]},
        "bias": state["decoder.bias"],
    }
    return {"encoder": encoder, "head": head}


def _norm(state, name):
    return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}


def _stacked_norm(layers, name):
    return {"scale": layers(f"{name}.weight"), "bias": layers(f"{name}.bias")}


def t5(state: dict, cfg) -> dict:
    """T5ForConditionalGeneration, tied or untied, ReLU or gated."""
    width, heads = cfg.d_model, (cfg.n_heads, cfg.head_dim)
    params = {"embeddings": {"tokens": state["shared.weight"]}}
    for side, n_layers in (("encoder", cfg.n_layers), ("decoder", cfg.n_decoder_layers)):

        def layers(name, shape=None, side=side, n_layers=n_layers):
            arrays = [state[f"{side}.block.{i}.layer.{name}.weight"].T for i in range(n_layers)]
            return np.stack([a if shape is None else a.reshape(shape) for a in arrays])

        def fused(module, letters, layers=layers):
            return {"kernel": np.stack([layers(f"{module}.{x}", (width, *heads)) for x in letters], axis=2)}

        def out(module, layers=layers):
            return {"kernel": layers(f"{module}.o", (*heads, width))}

        attention, mlp = "0.SelfAttention", f"{1 if side == 'encoder' else 2}"
        feed = f"{mlp}.DenseReluDense"
        gated = cfg.ffn == "geglu_tanh"
        wi = np.stack([layers(f"{feed}.wi_{i}") for i in (0, 1)], axis=2) if gated else layers(f"{feed}.wi")
        blocks = {
            "attention_norm": {"scale": layers("0.layer_norm")},
            "attention": {"qkv": fused(attention, "qkv"), "out": out(attention)},
            "mlp_norm": {"scale": layers(f"{mlp}.layer_norm")},
            "mlp": {"wi": {"kernel": wi}, "wo": {"kernel": layers(f"{feed}.wo")}},
        }
        if side == "decoder":
            cross = "1.EncDecAttention"
            blocks["cross_norm"] = {"scale": layers("1.layer_norm")}
            blocks["cross_attention"] = {"query": fused(cross, "q"), "kv": fused(cross, "kv"), "out": out(cross)}
        params[side] = {
            "relative_bias": {"table": state[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]},
            "layers": blocks,
            "final_norm": {"scale": state[f"{side}.final_layer_norm.weight"]},
        }
    if not cfg.tie_embeddings:
        params["head"] = {"kernel": state["lm_head.weight"]}
    return params
