"""The kernel for short sequences in a train step, run as ordinary operations: the losses stay."""

import numpy as np
import pytest

from cramjax.models import kernels, short_attention
from tests.stepping import batches, losses, open_tiny

SHORT = (
    "model.n_layers=1", "model.first_norm=True", "model.d_model=64", "data.seq_len=64",
    "microbatch_size=8", "optimizer.name=adamw",
)  # fmt: skip
DROPOUT = ("model.attention_dropout=0.3", "model.dropout=0.1")


@pytest.fixture
def short(monkeypatch):
    """A function that makes sessions take this kernel."""
    plain = short_attention.attention

    def interpreted(*arguments):
        return plain(*arguments[:7], True)

    def take():
        monkeypatch.setattr(kernels, "candidates", lambda call, device: ["short64x8", "einsum"])
        monkeypatch.setattr(short_attention, "attention", interpreted)

    return take


def trained(*overrides, devices=1):
    made = open_tiny(*SHORT, *overrides, devices=devices)
    return made.attention, losses(made, batches(3, length=64))[0]


@pytest.mark.parametrize("documents", [False, True])
def test_losses_are_those_of_plain_operations(short, documents):
    settings = (f"model.document_attention={documents}",)
    name, expected = trained(*settings)
    assert name == "einsum"
    short()
    name, found = trained(*settings)
    assert name == "short64x8"
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_copies_on_several_devices_have_the_losses_of_one(short):
    short()
    alone, apart = trained(), trained("mesh.data=8", devices=8)
    assert alone[0] == apart[0] == "short64x8"
    np.testing.assert_allclose(apart[1], alone[1], rtol=2e-5)


def test_what_is_recomputed_drops_the_same(short):
    short()
    expected = trained(*DROPOUT)[1]
    for settings in (("model.remat=full",), ("model.unroll=1",)):
        np.testing.assert_allclose(trained(*DROPOUT, *settings)[1], expected, rtol=2e-5)
    assert not np.allclose(expected, trained()[1], rtol=1e-4)
