import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from cramjax.errors import UserError
from cramjax.parallel import mesh as meshes
from cramjax.parallel import rules


def test_minus_one_takes_the_rest():
    devices = jax.devices()
    assert dict(meshes.make_mesh(-1, 2, 1, devices).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert meshes.batch_shards(meshes.make_mesh(2, 2, 2, devices)) == 4


def test_sizes_that_do_not_fit_the_devices_are_refused():
    with pytest.raises(UserError, match="mesh.data=3"):
        meshes.make_mesh(3, 1, 1, jax.devices())
    with pytest.raises(UserError, match="8"):
        meshes.make_mesh(-1, 3, 1, jax.devices())


def test_an_axis_the_mesh_does_not_divide_stays_whole():
    mesh = meshes.make_mesh(1, 4, 2, jax.devices())
    assert rules.partition_spec(("vocab", "embed"), (64, 16), mesh) == P("tensor", "fsdp")
    assert rules.partition_spec(("vocab", "embed"), (65, 18), mesh) == P(None, None)
    assert rules.partition_spec(
        ("layer", "embed", None, "heads", "head_dim"), (3, 16, 3, 2, 8), mesh
    ) == P(None, "fsdp", None, "tensor", None)


def test_two_dimensions_on_one_mesh_axis_are_an_error():
    mesh = meshes.make_mesh(1, 4, 2, jax.devices())
    with pytest.raises(ValueError, match="one mesh axis"):
        rules.partition_spec(("heads", "mlp"), (8, 8), mesh)


@pytest.mark.parametrize(
    "optimizer", [optax.scale_by_adam(), optax.chain(optax.scale_by_lion(), optax.scale(-1.0))]
)
def test_moments_lie_like_their_parameters(optimizer):
    mesh = meshes.make_mesh(2, 4, 1, jax.devices())
    params = {
        "kernel": jax.ShapeDtypeStruct((16, 8), jnp.float32),
        "bias": jax.ShapeDtypeStruct((3,), jnp.float32),
    }
    shardings = rules.param_shardings({"kernel": ("embed", "mlp"), "bias": ("mlp",)}, params, mesh)
    placed = rules.optimizer_shardings(optimizer, params, shardings, mesh)
    state = jax.jit(
        lambda: optimizer.init({"kernel": jnp.ones((16, 8)), "bias": jnp.ones((3,))}),
        out_shardings=placed,
    )()
    kernels = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (16, 8)]
    assert kernels and all(
        leaf.sharding.is_equivalent_to(shardings["kernel"], 2) for leaf in kernels
    )
    assert shardings["kernel"].spec == P("fsdp", "tensor")
