import jax.numpy as jnp

from cramjax.optim import scale


def run(state, outcomes, dynamic=True):
    for finite in outcomes:
        state = scale.next_loss_scale(state, jnp.asarray(finite), dynamic)
    return state


def test_an_overflow_halves_and_a_run_of_good_steps_doubles():
    state = scale.initial_loss_scale(dynamic=True)
    assert run(state, [False]).scale == scale.INITIAL_SCALE / 2
    almost = run(state, [True] * (scale.GROWTH_INTERVAL - 1))
    assert almost.scale == scale.INITIAL_SCALE
    assert run(almost, [True]).scale == scale.INITIAL_SCALE * 2
    assert run(almost, [False, True]).good_steps == 1


def test_it_stays_between_one_and_its_ceiling():
    state = run(scale.initial_loss_scale(dynamic=True), [False] * 40)
    assert state.scale == 1.0 and state.skipped == 40 and state.skipped_in_row == 40
    top = scale.LossScale(
        jnp.float32(scale.MAX_SCALE),
        jnp.int32(scale.GROWTH_INTERVAL - 1),
        state.skipped,
        state.skipped,
    )
    assert run(top, [True]).scale == scale.MAX_SCALE


def test_without_float16_the_scale_is_one_and_skips_are_counted():
    state = run(scale.initial_loss_scale(dynamic=False), [False, False, True, False], dynamic=False)
    assert state.scale == 1.0 and state.skipped == 3 and state.skipped_in_row == 1
