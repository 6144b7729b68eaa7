"""Running out of memory: one sentence with the bytes needed and settings that fit."""

import types

import jax
import pytest
import stepping

from cramjax.errors import RunFailed
from cramjax.training import remedies, session
from cramjax.tuning import devices, microbatch

MESSAGE = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12345678 bytes."


@pytest.fixture
def made():
    return stepping.open_tiny("microbatch_size=16", "model.unroll=1")


def needed(made, *overrides):
    changed = stepping.open_tiny("microbatch_size=16", "model.unroll=1", *overrides)
    return microbatch.needed_bytes(lambda: session.compile_train_step(changed)[0])


@pytest.mark.slow
def test_settings_that_fit_are_found_nearest_first(made):
    vocabulary, on = session.AssumedVocabulary(vocab_size=64), jax.devices()[:1]
    room = 0.9 * needed(made)
    fitting = remedies.find(made.config, vocabulary, on, microbatch_size=16, room=room)
    assert 1 <= len(fitting) <= 3
    assert set(fitting[0].overrides) == {"microbatch_size"}
    assert fitting[0].overrides["microbatch_size"] < 16
    for remedy in fitting:
        flags = [f"{key}={value}" for key, value in remedy.overrides.items()]
        assert remedy.used_bytes == needed(made, *flags) <= room
        assert "mesh.fsdp" not in remedy.overrides  # there is one device
    assert not remedies.find(made.config, vocabulary, on, microbatch_size=16, room=1000)


def compiled(made):
    """Stands for `session.compile_train_step`: a sequence takes the memory that its blocks keep."""
    kept = {"none": 64, "dots": 32, "full": 8}[made.config.model.remat]
    used = (16 + kept * made.microbatch_size) * 2**20
    sizes = {
        "argument_size_in_bytes": used,
        "temp_size_in_bytes": 0,
        "output_size_in_bytes": 0,
        "alias_size_in_bytes": 0,
    }
    return types.SimpleNamespace(
        memory_analysis=lambda: types.SimpleNamespace(**sizes), as_text=lambda: ""
    ), 0.0


def test_the_formula_counts_the_rows_of_a_tokenizer_from_outside(made):
    """It may have more entries than `data.vocab_size`, which only a new tokenizer follows."""
    vocabulary, on = session.AssumedVocabulary(vocab_size=4096), jax.devices()[:1]
    larger = session.session_on(made.config, vocabulary, on)
    per_sequence = [opened.step_bytes(1) - opened.step_bytes(0) for opened in (made, larger)]
    logits = 2 * 4 * made.objective.n_predicted * (4096 - 64)  # logits and their gradient
    assert per_sequence[1] - per_sequence[0] == logits


def test_running_out_of_memory_is_explained(made, monkeypatch):
    monkeypatch.setattr(devices, "memory_bytes", lambda device: 2**30)
    monkeypatch.setattr(session, "compile_train_step", compiled)
    with (
        pytest.raises(RunFailed) as raised,
        remedies.explained(made, session.AssumedVocabulary(vocab_size=64)),
    ):
        raise jax.errors.JaxRuntimeError(MESSAGE)
    assert str(raised.value) == (
        "out of memory: a step of 16 sequence(s) a pass needs 1.0 GiB, cpu has 1.0 GiB; these fit: "
        "--config.microbatch_size=8 (0.5 GiB), --config.model.remat=dots (0.5 GiB), "
        "--config.model.remat=full (0.1 GiB); checkpoints are kept, run again in the same workdir"
    )


def test_other_errors_pass(made):
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"),
        remedies.explained(made, session.AssumedVocabulary(vocab_size=64)),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_a_compiler_that_refuses_says_how_much_it_wanted():
    def refuse():
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. "
            "Used 19.50G of 15.75G hbm. Exceeded hbm capacity by 3.76G."
        )

    assert microbatch.needed_bytes(refuse) == round(19.5 * 2**30)
    # The search goes on below what was refused.
    sizes = [1, 2, 4, 8, 16, 32]
    found = microbatch.search(
        lambda n: (2 + n) * 2**30, sizes, 12 * 2**30, lambda n: (2 + n) * 2**30
    )
    assert found.largest == 8 and set(found.used) <= set(sizes) and found.per_sequence == 2**30
