"""Kernels of ours in a train step, run as ordinary operations: the losses stay."""

import functools

import numpy as np
import pytest

from cramjax.models import feedforward, kernels, short_attention
from tests.stepping import batches, losses, open_tiny

SHORT = (
    "model.n_layers=1", "model.first_norm=True", "model.d_model=64", "data.seq_len=64",
    "microbatch_size=8", "optimizer.name=adamw",
)  # fmt: skip
KERNEL = "short64x8x2"
DROPOUT = ("model.attention_dropout=0.3", "model.dropout=0.1")


@functools.cache
def trained(kernel, *overrides, devices=1):
    """Returns the losses of a session that takes `kernel`, and with ours the gated GELU's too.

    Tests share them.
    """
    plain, plain_gelu = short_attention.attention, feedforward.gated_gelu

    def interpreted(*arguments):
        return plain(*arguments[:7], True)

    def interpreted_gelu(*arguments):
        return plain_gelu(*arguments, True)

    with pytest.MonkeyPatch.context() as patch:
        if kernel == KERNEL:
            patch.setattr(kernels, "candidates", lambda call, device: [KERNEL, "einsum"])
            patch.setattr(short_attention, "attention", interpreted)
            patch.setattr(feedforward, "fits_kernel", lambda *_: True)
            patch.setattr(feedforward, "gated_gelu", interpreted_gelu)
        made = open_tiny(*SHORT, *overrides, devices=devices)
        assert made.attention == kernel
        return losses(made, batches(3, length=64))[0]


DOCUMENTS = pytest.param(("model.document_attention=True",), marks=pytest.mark.slow)


@pytest.mark.parametrize("settings", [(), DOCUMENTS], ids=str)
def test_losses_are_those_of_plain_operations(settings):
    np.testing.assert_allclose(trained(KERNEL, *settings), trained("einsum", *settings), rtol=2e-5)


@pytest.mark.slow
def test_copies_on_several_devices_have_the_losses_of_one():
    apart = trained(KERNEL, "mesh.data=8", devices=8)
    np.testing.assert_allclose(apart, trained(KERNEL), rtol=2e-5)


@pytest.mark.slow
def test_what_is_recomputed_drops_the_same():
    # Dear, because it compiles three steps. Only a backward pass that runs the kernel again shows
    # that it drops the same places.
    expected = trained(KERNEL, *DROPOUT)
    for settings in (("model.remat=full",), ("model.unroll=1",)):
        found = trained(KERNEL, *DROPOUT, *settings)
        np.testing.assert_allclose(found, expected, rtol=2e-5)
    assert not np.allclose(expected, trained(KERNEL), rtol=1e-4)
