import pytest
from hypothesis import given
from hypothesis import strategies as st

from cramjax.config.span_lengths import span_lengths

DENSITIES, MEANS = st.floats(0.01, 0.9), st.floats(1.0, 20.0)


@pytest.mark.parametrize(
    "n_inputs, n_raw, n_noise, n_spans, n_targets",
    [
        (64, 70, 10, 3, 14),
        (128, 141, 21, 7, 29),
        (256, 284, 43, 14, 58),
        (512, 568, 85, 28, 114),
        (1024, 1137, 171, 57, 229),
    ],
)
def test_lengths_are_t5s(n_inputs, n_raw, n_noise, n_spans, n_targets):
    lengths = span_lengths(n_inputs, 0.15, 3.0)
    assert (lengths.n_raw, lengths.n_noise, lengths.n_spans) == (n_raw, n_noise, n_spans)
    assert (lengths.n_inputs, lengths.n_targets) == (n_inputs, n_targets)


@given(st.integers(8, 400), DENSITIES, MEANS)
def test_inputs_are_filled_exactly_by_the_longest_text_or_it_is_said(n_inputs, density, mean):
    try:
        lengths = span_lengths(n_inputs, density, mean)
    except ValueError as error:
        assert str(n_inputs) in str(error)
        return
    assert lengths.n_inputs == n_inputs
    assert 1 <= lengths.n_spans <= min(lengths.n_noise, lengths.n_raw - lengths.n_noise)
    assert abs(lengths.n_noise - density * lengths.n_raw) <= 1


@given(st.integers(8, 2000))
def test_t5s_own_settings_fill_every_length(n_inputs):
    assert span_lengths(n_inputs, 0.15, 3.0).n_inputs == n_inputs
