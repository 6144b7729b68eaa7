import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cramjax.models import decoding

VOCAB, MAX_LEN, EOS, PAD, START = 5, 4, 1, 0, 0
IDS = {"start_id": START, "eos_id": EOS, "pad_id": PAD}


def table(seed, n_rows=3, n_states=97):
    """Returns log-probabilities of the next token, float64 [rows, states, vocab].

    A state is the hash of a history, and each row is a model of its own.
    """
    logits = np.random.default_rng(seed).normal(0, 2.0, (n_rows, n_states, VOCAB))
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def history_hash(tokens):
    value = 0
    for token in tokens:
        value = (value * 31 + int(token) + 1) % 97
    return value


def step_of(log_probs, n_beams=1):
    """Returns a step that depends on the row and the whole history, and its cache.

    The cache holds the hash of what the hypothesis in each place has read.
    """
    values = jnp.asarray(log_probs, jnp.float32)
    rows = jnp.arange(len(log_probs))[:, None]

    def step(cache, tokens, index, lineage):
        # The history of a hypothesis is where it stood one position before.
        places = lineage[:, :, jnp.maximum(index - 1, 0)]
        hashes = jnp.take_along_axis(cache, places, axis=1)
        hashes = (hashes * 31 + tokens + 1) % 97
        return values[rows, hashes], hashes

    return step, jnp.zeros((len(log_probs), n_beams), jnp.int32)


def log_prob(row_table, tokens):
    history, total = [START], 0.0
    for token in tokens:
        total += row_table[history_hash(history), token]
        history.append(token)
    return total


def hypotheses():
    """Everything that can be said in MAX_LEN tokens."""
    for length in range(1, MAX_LEN + 1):
        for tokens in itertools.product(range(VOCAB), repeat=length):
            if EOS not in tokens[:-1] and (tokens[-1] == EOS or length == MAX_LEN):
                yield tokens


def cut(tokens):
    tokens = np.asarray(tokens).tolist()
    return tuple(tokens[: tokens.index(EOS) + 1]) if EOS in tokens else tuple(tokens)


def search(log_probs, vocab_size=VOCAB, n_beams=None, **scoring):
    step, cache = step_of(log_probs, n_beams or 1)
    beams = {"n_beams": n_beams, "scoring": decoding.Scoring(**scoring)} if n_beams else {}
    options = {
        "batch_size": len(log_probs),
        "max_len": MAX_LEN,
        "vocab_size": vocab_size,
        **IDS,
        **beams,
    }
    search = decoding.beam_search if beams else decoding.greedy
    return jax.jit(functools.partial(search, step, **options))(cache)


@pytest.mark.parametrize("seed", range(4))
def test_greedy_is_the_loop_it_stands_for(seed):
    log_probs = table(seed)
    found = search(log_probs)
    for row, (tokens, score) in enumerate(zip(found.tokens, found.scores, strict=True)):
        history, total = [START], 0.0
        while len(history) <= MAX_LEN and (len(history) == 1 or history[-1] != EOS):
            following = log_probs[row, history_hash(history)]
            total += following.max()
            history.append(int(following.argmax()))
        assert cut(tokens) == tuple(history[1:]) and float(score) == pytest.approx(total, abs=1e-4)
        assert np.all(np.asarray(tokens)[len(history) - 1 :] == PAD)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_wide_enough_a_beam_finds_the_best_there_is(seed, length_penalty):
    log_probs = table(seed)
    found = search(log_probs, n_beams=VOCAB**3, penalty=length_penalty)
    for row, (tokens, score) in enumerate(zip(found.tokens, found.scores, strict=True)):
        scores = {
            tokens: log_prob(log_probs[row], tokens) / len(tokens) ** length_penalty
            for tokens in hypotheses()
        }
        best = max(scores, key=scores.get)
        assert cut(tokens) == best and float(score) == pytest.approx(scores[best], abs=1e-4)


def narrow_search(row_table, n_beams, length_penalty, length_offset=0):
    """Returns the best hypothesis and its score, with lists and without stopping early."""
    going, ended = [((), 0.0)], []
    for length in range(1, MAX_LEN + 1):
        candidates = []
        for said, _ in going:
            longer = [said + (token,) for token in range(VOCAB)]
            candidates += [(tokens, log_prob(row_table, tokens)) for tokens in longer]
        candidates = sorted(candidates, key=lambda pair: -pair[1])[: 2 * n_beams]
        ends = [said[-1] == EOS or length == MAX_LEN for said, _ in candidates]
        ended += [
            (said, total / ((length_offset + length) / (length_offset + 1)) ** length_penalty)
            for (said, total), end in zip(candidates[:n_beams], ends, strict=False)
            if end
        ]
        going = [pair for pair, end in zip(candidates, ends, strict=True) if not end][:n_beams]
    return max(ended, key=lambda pair: pair[1])


@pytest.mark.parametrize(
    "length_penalty, length_offset", [(-1.0, 0), (0.0, 0), (0.6, 0), (0.6, 5), (2.0, 0)]
)
@pytest.mark.parametrize("n_beams", [1, 2, 3])
def test_stopping_early_and_beams_side_by_side_lose_nothing(n_beams, length_penalty, length_offset):
    log_probs = table(5, n_rows=24)
    found = search(log_probs, n_beams=n_beams, penalty=length_penalty, offset=length_offset)
    for row, (tokens, score) in enumerate(zip(found.tokens, found.scores, strict=True)):
        best, expected = narrow_search(log_probs[row], n_beams, length_penalty, length_offset)
        assert cut(tokens) == best and float(score) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("n_beams, is_exact", [(1, True), (2, True), (4, True), (3, False)])
def test_a_score_is_that_of_its_tokens_and_rows_do_not_touch(n_beams, is_exact):
    log_probs = table(7, n_rows=4)
    options = {"n_beams": n_beams, "penalty": 0.6, "is_exact": is_exact}
    found = search(log_probs, **options)
    for row, (tokens, score) in enumerate(zip(found.tokens, found.scores, strict=True)):
        said = cut(tokens)
        assert float(score) == pytest.approx(
            log_prob(log_probs[row], said) / len(said) ** 0.6, abs=1e-4
        )
        alone = search(log_probs[row : row + 1], **options)
        np.testing.assert_array_equal(alone.tokens[0], tokens)


def test_one_beam_without_penalty_keeps_to_the_greedy_path():
    log_probs = table(11)
    greedy, beam = search(log_probs), search(log_probs, n_beams=1, penalty=0.0)
    for ours, theirs, score in zip(greedy.tokens, beam.tokens, beam.scores, strict=True):
        # It may stop where greedy goes on, if the end was likelier than all of the rest.
        assert cut(ours)[: len(cut(theirs)) - 1] == cut(theirs)[:-1] and np.isfinite(score)


def certain(token):
    log_probs = np.full((2, 97, VOCAB), -20.0)
    log_probs[:, :, token] = 0.0
    return log_probs


@pytest.mark.parametrize("beams", [{}, {"n_beams": 2}])
def test_an_end_at_once_and_no_end_at_all(beams):
    assert [cut(tokens) for tokens in search(certain(EOS), **beams).tokens] == [(EOS,)] * 2
    assert [cut(tokens) for tokens in search(certain(3), **beams).tokens] == [(3,) * MAX_LEN] * 2


@pytest.mark.parametrize(
    "beams",
    [{}, *({"n_beams": n, "scoring": decoding.Scoring(penalty=0.0)} for n in (1, 2))],
)
def test_it_is_traced_once_and_stops_when_all_have_ended(beams):
    traced, ran = [], []
    both = jnp.asarray(np.concatenate([certain(EOS)[:1, 0], certain(3)[:1, 0]]), jnp.float32)

    def step(kinds, tokens, index, lineage):
        traced.append(tokens.shape)
        jax.debug.callback(lambda index: ran.append(int(index)), index)
        return jnp.repeat(both[kinds][:, None], tokens.shape[1], axis=1), kinds

    options = {"batch_size": 2, "max_len": MAX_LEN, "vocab_size": VOCAB, **IDS, **beams}
    search = decoding.beam_search if beams else decoding.greedy
    run = jax.jit(functools.partial(search, step, **options))

    def steps(kinds):
        ran.clear()
        jax.block_until_ready(run(jnp.asarray(kinds, jnp.int32)))
        jax.effects_barrier()
        return len(ran)

    # With two beams one more: the second hypothesis takes two tokens.
    assert steps([0, 0]) == max(1, beams.get("n_beams", 1))
    n_traced = len(traced)
    assert steps([0, 1]) == MAX_LEN and len(traced) == n_traced


@pytest.mark.parametrize("beams", [{}, {"n_beams": 3}])
def test_entries_that_pad_the_embedding_are_never_chosen(beams):
    found = search(certain(4), vocab_size=4, **beams)
    assert np.all(np.asarray(found.tokens) < 4)
    # Padding keeps its share of the softmax: the chosen token has the 20 nats less that it has in
    # the whole row.
    per_token = np.asarray(found.scores) / (1 if beams else MAX_LEN)
    np.testing.assert_allclose(per_token, -20.0, atol=1e-4)


@pytest.fixture(scope="module")
def peer():
    """Returns torch and a small T5 of transformers.

    Its weights are so large that scores are spread and hypotheses end at 2 to 8 tokens.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 23,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 1,
        "num_heads": 2,
    }

    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(**sizes, decoder_start_token_id=START)
    ).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.8 * torch.randn(weight.shape, generator=generator))

    # Threads that wait for each other take most of the time of so small a network.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch, model
    torch.set_num_threads(threads)


def step_of_peer(torch, model, inputs, n_beams, max_len):
    """Returns a step that runs the network outside of JAX, and its cache.

    It decodes the whole history anew. The cache holds what was read in each place.
    """
    vocab = model.config.vocab_size

    def logits(history, index):
        arrays = (np.repeat(inputs, n_beams, axis=0), history[..., : int(index) + 1])
        with torch.no_grad():
            ids, read = (torch.from_numpy(np.array(array, np.int64)) for array in arrays)
            read = read.reshape(len(ids), -1)
            last = model(input_ids=ids, decoder_input_ids=read).logits[:, -1]
        return last.numpy().reshape(*history.shape[:2], vocab)

    def step(cache, tokens, index, lineage):
        # cache: [batch, places, max_len]
        cache = jax.lax.dynamic_update_slice_in_dim(cache, tokens[..., None], index, axis=2)
        history = jnp.take_along_axis(cache, lineage, axis=1)
        shape = jax.ShapeDtypeStruct((*tokens.shape, vocab), jnp.float32)
        return jax.pure_callback(logits, shape, history, index), cache

    return step, jnp.zeros((len(inputs), n_beams, max_len), jnp.int32)


@pytest.mark.parametrize(
    "length_penalty, is_exact", [(0.6, True), (1.0, True), (2.0, True), (1.0, False), (2.0, False)]
)
def test_beam_search_is_that_of_transformers(peer, length_penalty, is_exact):
    torch, model = peer
    inputs, max_len = np.random.default_rng(0).integers(2, 23, (4, 6)), 8
    early_stopping = "never" if is_exact else False
    theirs = model.generate(
        input_ids=torch.from_numpy(inputs),
        num_beams=3,
        early_stopping=early_stopping,
        length_penalty=length_penalty,
        do_sample=False,
        max_new_tokens=max_len,
        output_scores=True,
        return_dict_in_generate=True,
    )
    step, cache = step_of_peer(torch, model, inputs, 3, max_len)
    sizes = {"batch_size": 4, "n_beams": 3, "max_len": max_len, "vocab_size": 23}
    scoring = decoding.Scoring(penalty=length_penalty, is_exact=is_exact)
    options = {"scoring": scoring, **sizes, **IDS}
    ours = jax.jit(functools.partial(decoding.beam_search, step, **options))(cache)
    expected = [cut(tokens[1:]) for tokens in theirs.sequences]
    if length_penalty <= 1.0:  # or the lengths would not be tested
        assert any(said[-1] == EOS for said in expected)
    assert [cut(tokens) for tokens in ours.tokens] == expected
    np.testing.assert_allclose(ours.scores, theirs.sequences_scores.numpy(), rtol=1e-4)
