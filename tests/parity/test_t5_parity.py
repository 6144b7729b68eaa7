"""T5 against `T5ForConditionalGeneration` in float32: logits, loss, gradients, search.

Both versions, padding, uneven depths and odd heads are covered.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
# Networks this small lose more to torch's threads waiting for each other than they gain.
torch.set_num_threads(1)

from cramjax.hub import tables  # noqa: E402
from cramjax.models import generation, network, relative, t5  # noqa: E402
from cramjax.models.decoding import Scoring  # noqa: E402
from cramjax.models.layers import FLOAT32  # noqa: E402
from cramjax.objectives.losses import cross_entropy  # noqa: E402

ATOL = 1e-4
SHAPES = {
    "v1.0, uneven, odd heads": {"n_layers": 3, "n_decoder_layers": 2, "n_heads": 3, "head_dim": 20},
    "v1.1, uneven, wide heads": {
        "n_layers": 1,
        "n_decoder_layers": 3,
        "n_heads": 5,
        "head_dim": 24,
        "ffn": "geglu_tanh",
        "tie_embeddings": False,
    },
    "v1.0, wide heads": {"n_layers": 2, "n_decoder_layers": 2, "n_heads": 2, "head_dim": 64},
    "v1.1, narrow heads": {
        "n_layers": 2,
        "n_decoder_layers": 1,
        "n_heads": 3,
        "head_dim": 7,
        "ffn": "geglu_tanh",
        "tie_embeddings": False,
    },
}


def tiny(name):
    return t5.T5Config(vocab_size=131, d_model=72, d_ff=104, unroll=1, **SHAPES[name])


def peer(cfg):
    feed_forward = "relu" if cfg.ffn == "relu" else "gated-gelu"
    config = transformers.T5Config(
        vocab_size=cfg.vocab_size,
        d_model=cfg.d_model,
        d_kv=cfg.head_dim,
        d_ff=cfg.d_ff,
        num_layers=cfg.n_layers,
        num_decoder_layers=cfg.n_decoder_layers,
        num_heads=cfg.n_heads,
        dropout_rate=0.0,
        feed_forward_proj=feed_forward,
        tie_word_embeddings=cfg.tie_embeddings,
        decoder_start_token_id=0,
    )

    model = transformers.T5ForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(0)
    if not cfg.tie_embeddings:
        model.lm_head.weight = torch.nn.Parameter(torch.empty(cfg.vocab_size, cfg.d_model))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Spread enough that every path shows in the logits; norms away from 1.
            offset = 1.0 if "norm" in name else 0.0
            spread = 0.7 if "shared" in name or "relative" in name else 0.15
            # Scores are not scaled: without this the softmax is all or nothing, and float32 no
            # match for itself.
            spread *= cfg.head_dim**-0.5 if name.endswith(".q.weight") else 1.0
            weight.copy_(offset + spread * torch.randn(weight.shape, generator=generator))
    return model.eval()


def from_peer(cfg, tensors):
    """Our tree of the tensors of a peer."""
    params, _ = tables.from_hf(
        "t5", cfg, {name: tensor.numpy() for name, tensor in tensors.items()}
    )
    return params


@functools.partial(jax.jit, static_argnums=0)
def compute_logits(cfg, params, inputs, read, padding_mask=None):
    """Our logits of the targets that the decoder reads."""
    encoded = t5.encode(cfg, FLOAT32, params, inputs, padding_mask=padding_mask)
    hidden = t5.decode(cfg, FLOAT32, params, encoded, read, padding_mask=padding_mask)
    return t5.head(cfg, FLOAT32, params, hidden)


@pytest.fixture(params=SHAPES)
def pair(request):
    cfg = tiny(request.param)
    model = peer(cfg)
    params = from_peer(cfg, model.state_dict())
    abstract = network.abstract_params(cfg)
    assert jax.tree.map(lambda a: a.shape, params) == jax.tree.map(lambda a: a.shape, abstract)
    return cfg, model, params


@pytest.mark.parametrize("padded", [False, True])
def test_logits_and_loss(pair, padded):
    cfg, model, params = pair
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(2, 131, (3, 37)), rng.integers(2, 131, (3, 19))
    mask = np.ones((3, 37), bool)
    weights = np.ones((3, 19), np.float32)
    if padded:
        for row, (n_inputs, n_targets) in enumerate(((37, 19), (20, 4), (1, 11))):
            mask[row, n_inputs:], weights[row, n_targets:] = False, 0.0
    labels = np.where(weights > 0, targets, -100)

    with torch.no_grad():
        expected = model(
            input_ids=torch.from_numpy(inputs),
            attention_mask=torch.from_numpy(mask),
            decoder_input_ids=torch.from_numpy(np.pad(targets[:, :-1], ((0, 0), (1, 0)))),
            labels=torch.from_numpy(labels),
        )

    read = t5.shift_right(jnp.asarray(targets), 0)
    padding_mask = jnp.asarray(mask) if padded else None
    logits = compute_logits(cfg, params, jnp.asarray(inputs), read, padding_mask)
    assert float(jnp.std(logits)) > 0.3  # so that the tolerance means something
    np.testing.assert_allclose(logits, expected.logits.numpy(), atol=ATOL)

    nats = cross_entropy(logits, jnp.asarray(targets, jnp.int32), jnp.asarray(weights))
    assert float(nats / weights.sum()) == pytest.approx(expected.loss.item(), abs=ATOL)


@pytest.mark.parametrize(
    "pair", [list(SHAPES)[0], pytest.param(list(SHAPES)[1], marks=pytest.mark.slow)], indirect=True
)
def test_gradients(pair):
    cfg, model, params = pair
    rng = np.random.default_rng(1)
    inputs, targets = rng.integers(2, 131, (2, 21)), rng.integers(2, 131, (2, 9))
    model(input_ids=torch.from_numpy(inputs), labels=torch.from_numpy(targets)).loss.backward()
    expected = from_peer(cfg, {name: weight.grad for name, weight in model.named_parameters()})

    def loss(params):
        read = t5.shift_right(jnp.asarray(targets), 0)
        logits = compute_logits(cfg, params, jnp.asarray(inputs), read)
        return (
            cross_entropy(
                logits, jnp.asarray(targets, jnp.int32), jnp.ones(targets.shape, jnp.float32)
            )
            / targets.size
        )

    gradients = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, params))
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        theirs = expected
        for entry in path:
            theirs = theirs[entry.key]
        np.testing.assert_allclose(gradient, theirs, atol=ATOL, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("n_beams, length_penalty", [(1, 1.0), (3, 1.0), (4, 0.6)])
def test_generation(pair, n_beams, length_penalty):
    cfg, model, params = pair
    rng = np.random.default_rng(2)
    inputs = rng.integers(2, 131, (6, 15))
    mask = np.arange(15)[None] < rng.integers(4, 16, (6, 1))
    early_stopping = "never" if n_beams > 1 else False
    with torch.no_grad():
        expected = model.generate(
            input_ids=torch.from_numpy(inputs),
            attention_mask=torch.from_numpy(mask),
            max_new_tokens=9,
            num_beams=n_beams,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            do_sample=False,
            use_cache=False,  # theirs has as many layers as the encoder
        ).numpy()[:, 1:]

    generate = functools.partial(
        generation.generate, cfg, FLOAT32, max_len=9, special={"pad": 0, "sep": 1}, vocab_size=131
    )
    search = jax.jit(
        functools.partial(generate, n_beams=n_beams, scoring=Scoring(penalty=length_penalty))
    )
    ours = search(params, jnp.asarray(inputs), padding_mask=jnp.asarray(mask)).tokens
    expected = np.pad(expected, ((0, 0), (0, 9 - expected.shape[1])))
    # Ours is padded after the end; what theirs holds there is left from other beams.
    after_end = np.cumsum(expected == 1, axis=1) - (expected == 1) > 0
    np.testing.assert_array_equal(ours, np.where(after_end, 0, expected))


def test_the_cache_gives_the_logits_of_the_whole_sequence(pair):
    cfg, _, params = pair
    rng = np.random.default_rng(3)
    inputs, targets = (
        jnp.asarray(rng.integers(2, 131, (2, 11))),
        jnp.asarray(rng.integers(2, 131, (2, 7))),
    )
    mask = jnp.arange(11)[None] < jnp.asarray([[11], [6]])
    whole = compute_logits(cfg, params, inputs, targets, mask)

    @jax.jit
    def begin(params):
        encoded = t5.encode(cfg, FLOAT32, params, inputs, padding_mask=mask)
        return generation.init_cache(cfg, FLOAT32, params, encoded, mask, n_beams=2, max_len=9)

    cache = begin(params)
    step = jax.jit(functools.partial(generation.decode_step, cfg, FLOAT32))
    other = jnp.asarray(rng.integers(2, 131, (2, 7)))
    # The targets are the hypothesis that changes its place at every position.
    places = np.arange(9) % 2
    lineage = jnp.broadcast_to(jnp.asarray([places, 1 - places]), (2, 2, 9))
    for index in range(7):
        place = int(places[index])
        tokens = jnp.stack([targets[:, index], other[:, index]], axis=1)
        at_place = tokens[:, [place, 1 - place]]
        # Row p of the lineage is that of the hypothesis which stands in place p now.
        now = lineage[:, [place, 1 - place]]
        logits, cache = step(params, cache, at_place, jnp.int32(index), now)
        np.testing.assert_allclose(logits[:, place], whole[:, index], atol=ATOL)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_buckets(bidirectional):
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = np.arange(-1024, 1025)
    for n_buckets, max_distance in ((32, 128), (16, 64)):
        expected = T5Attention._relative_position_bucket(
            torch.from_numpy(distances), bidirectional, n_buckets, max_distance
        )
        ours = relative.relative_buckets(
            distances, bidirectional=bidirectional, n_buckets=n_buckets, max_distance=max_distance
        )
        np.testing.assert_array_equal(ours, expected.numpy())
