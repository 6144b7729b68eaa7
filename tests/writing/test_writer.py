"""Any number of inputs are answered: in order, in few shapes, the same as one by one."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cramjax.console import Meter
from cramjax.errors import UserError
from cramjax.models import network, t5
from cramjax.models.layers import FLOAT32
from cramjax.parallel import mesh as meshes
from cramjax.writing import writer
from cramjax.writing.writer import Search, Writer, layout


@given(st.lists(st.integers(1, 1500), max_size=60), st.integers(1, 5000), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_every_input_is_in_one_batch_that_is_long_enough(lengths, batch_tokens, n_shards):
    batches = layout(lengths, batch_tokens, n_shards)
    numbers = [number for batch in batches for number in batch.numbers]
    assert sorted(numbers) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[number] for number in batch.numbers)
        assert longest <= batch.length < max(2 * longest, longest + 512, 33)
        assert 0 < len(batch.numbers) <= batch.n_rows and batch.n_rows % n_shards == 0
        assert batch.n_rows * batch.length <= max(batch_tokens, batch.length * n_shards)
    # An input has the same padding whoever stands beside it.
    alone = {number: layout([lengths[number]], 1)[0].length for number in numbers}
    assert all(alone[number] == batch.length for batch in batches for number in batch.numbers)
    assert len({(batch.n_rows, batch.length) for batch in batches}) <= len(set(alone.values()))


@pytest.fixture(scope="module")
def network_and_inputs():
    config = t5.T5Config(
        vocab_size=40, n_layers=1, n_decoder_layers=2, d_model=16, n_heads=2, head_dim=8, d_ff=24
    )
    rng = np.random.default_rng(0)
    # So large that answers differ and end at different lengths.
    params = jax.tree.map(
        lambda leaf: 0.8 * rng.standard_normal(leaf.shape, np.float32),
        network.abstract_params(config),
    )
    params["embeddings"]["tokens"][1] *= 2.0
    params = jax.device_put(params)
    inputs = [rng.integers(2, 38, rng.integers(1, 40)).tolist() for _ in range(23)]
    return config, params, inputs


def make(config, **changes):
    common = {"precision": FLOAT32, "pad_id": 0, "sep_id": 1, "vocab_size": 38}
    return Writer(config=config, **common, **changes)


@pytest.mark.parametrize("n_beams", [1, 3])
def test_a_set_is_answered_as_its_inputs_are_alone(network_and_inputs, monkeypatch, n_beams):
    config, params, inputs = network_and_inputs
    monkeypatch.setattr(writer, "EXTRA_TOKENS", 0)
    one = make(config, search=Search(n_beams=n_beams))
    monkeypatch.setitem(writer.BATCH_TOKENS, "cpu", 128)
    answers = one.write(params, inputs)
    # Many end before the limit.
    assert len(answers) == len(inputs) and len(set(map(len, answers))) > 5
    assert all(1 not in answer and max(answer, default=0) < 38 for answer in answers)

    for number in (0, 7, 22):
        assert one.write(params, [inputs[number]]) == [answers[number]]
    assert one.write(params, []) == []
    if n_beams == 3:
        mesh = meshes.make_mesh(2, 1, 1, jax.devices()[:2])
        shared = make(config, search=Search(n_beams=n_beams), mesh=mesh)
        everywhere = jax.device_put(params, meshes.replicated(mesh))
        with jax.transfer_guard("disallow"):
            assert shared.write(everywhere, inputs) == answers


def test_progress_is_shown_and_a_request_to_stop_is_heard(network_and_inputs, monkeypatch):
    config, params, inputs = network_and_inputs
    monkeypatch.setitem(writer.BATCH_TOKENS, "cpu", 64)
    short = make(config, search=Search(n_beams=1, max_len=3))
    lines = []
    meter = Meter(lines.append, interval_s=0.0, has_bar=False)
    assert all(len(answer) <= 3 for answer in short.write(params, inputs, meter=meter))
    assert lines[-1] == "written 23 of 23 texts, 0:00 left"
    assert [line.split()[1] for line in lines] == sorted(
        (line.split()[1] for line in lines), key=int
    )

    asked = []
    assert short.write(params, inputs, is_stopped=lambda: asked.append(0) or len(asked) > 2) is None
    assert len(asked) == 3


@pytest.mark.parametrize("n_beams", [1, 2])
def test_weights_that_are_no_numbers_are_refused(network_and_inputs, n_beams):
    config, params, inputs = network_and_inputs
    params = jax.tree.map(lambda leaf: leaf * np.nan, params)
    one = make(config, search=Search(n_beams=n_beams, max_len=3))
    with pytest.raises(UserError, match="are no numbers"):
        one.write(params, inputs[:2])
