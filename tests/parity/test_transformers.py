"""Forward parity with the classes of `transformers`: random float32 weights, also with padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
# Networks this small lose more to torch's threads waiting for each other than they gain.
torch.set_num_threads(1)

from cramjax.hub import tables  # noqa: E402
from cramjax.models import encoder, network  # noqa: E402
from cramjax.models.layers import FLOAT32  # noqa: E402
from tests import networks  # noqa: E402

# An odd vocabulary, and heads of 24 dimensions.
SHRINK = {"n_layers": 3, "d_model": 72, "n_heads": 3, "d_ff": 104, "vocab_size": 131}
ATOL = 1e-4


def hf_numbers(cfg):
    return {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.d_model,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "intermediate_size": cfg.d_ff,
        "pad_token_id": 0,
        "attn_implementation": "eager",
    }


def bert_model(cfg):
    pre = cfg.norm_position == "pre"
    kind = "MegatronBert" if pre else "Bert"
    config_class = getattr(transformers, f"{kind}Config")
    config = config_class(
        **hf_numbers(cfg),
        hidden_act="gelu",
        layer_norm_eps=cfg.norm_eps,
        max_position_embeddings=cfg.max_positions,
    )
    return getattr(transformers, f"{kind}ForMaskedLM")(config)


def modernbert_model(cfg):
    rope = {"rope_type": "default", "rope_theta": cfg.rotary_base}
    config = transformers.ModernBertConfig(
        **hf_numbers(cfg),
        global_attn_every_n_layers=1,
        rope_parameters={"full_attention": rope, "sliding_attention": rope},
        norm_eps=cfg.norm_eps,
        bos_token_id=1,
        eos_token_id=1,
        cls_token_id=1,
        sep_token_id=2,
    )
    return transformers.ModernBertForMaskedLM(config)


CASES = {
    "bert-base": (bert_model, "bert"),
    "bert-large-24h": (bert_model, "megatron-bert"),
    "modernbert-crammed": (modernbert_model, "modernbert"),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request):
    """Returns our config, our parameters and the torch model, of equal weights."""
    build, family = CASES[request.param]
    cfg = networks.named(request.param, **SHRINK)
    torch.manual_seed(0)
    model = build(cfg).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    params, extra = tables.from_hf(family, cfg, state)
    assert extra == {}
    return cfg, jax.tree.map(jnp.asarray, params), model


def test_the_table_covers_every_parameter(pair):
    cfg, params, model = pair
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        lambda leaf: leaf.shape, network.abstract_params(cfg)
    )
    assert network.count_params(cfg) == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("padded", [False, True])
def test_logits_and_loss(pair, padded):
    cfg, params, model = pair
    numbers = np.random.default_rng(1)
    tokens = numbers.integers(3, cfg.vocab_size, (3, 21))
    mask = np.ones_like(tokens)
    if padded:
        mask[0, 13:] = mask[2, 5:] = 0
        tokens[mask == 0] = 0
    labels = np.where((numbers.random(tokens.shape) < 0.3) & (mask == 1), tokens, -100)
    theirs = {"input_ids": torch.tensor(tokens), "labels": torch.tensor(labels)}
    ours = {}
    if padded:
        theirs["attention_mask"] = torch.tensor(mask)
        ours["padding_mask"] = jnp.asarray(mask == 1)
    if cfg.positions != "rotary":
        token_types = numbers.integers(0, 2, tokens.shape)
        theirs["token_type_ids"] = torch.tensor(token_types)
        ours["token_types"] = jnp.asarray(token_types, jnp.int32)

    with torch.no_grad():
        expected = model(**theirs)
    hidden = encoder.encode(cfg, FLOAT32, params, jnp.asarray(tokens, jnp.int32), **ours)
    logits = np.asarray(encoder.head(cfg, FLOAT32, params, hidden))

    seen = mask == 1
    np.testing.assert_allclose(logits[seen], expected.logits.numpy()[seen], atol=ATOL, rtol=0)

    scored = labels >= 0
    log_probabilities = np.asarray(jax.nn.log_softmax(logits))
    loss = -log_probabilities[scored, labels[scored]].mean()
    assert abs(loss - expected.loss.item()) < ATOL


def test_the_published_size_of_bert_base():
    with torch.device("meta"):
        model = bert_model(networks.named("bert-base"))
    assert network.count_params(networks.named("bert-base")) == sum(
        weight.numel() for weight in model.parameters()
    )
