"""Measures the start of a run on an absent card, beside the bare compilation of the same step.

    python -m tests.startup bare|main CARD FILE[:ARG] [KEY=VALUE …]

"bare" compiles the train step for the card and prints how long that takes. "main" does all that
`cramjax.main` does on prepared data until the first step would start; programs for the card are
compiled and not run. Both need the wheels of jax[cuda12]. They print seconds, seconds of the
processors, and voluntary context switches.
"""

import os
import pathlib
import resource
import sys
import tempfile

os.environ["JAX_PLATFORMS"] = "cuda"
os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0"


def used():
    """Returns seconds since the process started, seconds of processors, voluntary switches."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    ticks = int(pathlib.Path("/proc/self/stat").read_text().rsplit(")")[-1].split()[19])
    uptime_s = float(pathlib.Path("/proc/uptime").read_text().split()[0])
    return (
        uptime_s - ticks / os.sysconf("SC_CLK_TCK"),
        usage.ru_utime + usage.ru_stime,
        usage.ru_nvcsw,
    )


def say(name, before=(0.0, 0.0, 0)):
    seconds, cpu_s, switches = (now - then for now, then in zip(used(), before, strict=True))
    print(
        f"{name}: {seconds:.1f} s, {cpu_s:.1f} s of processors, {switches:,} context switches",
        flush=True,
    )


def on_card(card):
    """Put the devices of an absent card in the place of the present ones; returns them."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # read by `start`, not yet by JAX
    from cramjax import start
    from cramjax.planning import cards, targets
    from cramjax.tuning import devices

    found = targets.devices(cards.find(card))
    jax.devices = jax.local_devices = lambda *_: found
    devices.memory_bytes = lambda _: round(cards.find(card).memory_bytes * start.GPU_FRACTION)
    return found


def bare(card, config):
    from cramjax.training import session

    vocabulary = session.AssumedVocabulary(
        vocab_size=config.data.vocab_size, extra_ids=config.data.extra_ids
    )
    made = session.session_on(config, vocabulary, on_card(card))
    before = used()
    session.compile_train_step(made)
    say("bare compilation", before)


def main(card, config):
    import jax

    from cramjax import start

    start.check_devices = lambda: None  # there is no card
    prepare, start.start = start.start, lambda **_: (prepare(), on_card(card))
    from cramjax.parallel import mesh as meshes
    from cramjax.training import evaluate, opening, run
    from cramjax.training import state as states

    def shapes(value, sharding):
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)

    def compiled_state(task, optimizer, dynamic_scale, abstract, seed):
        def make():
            return states.initial(task, optimizer, dynamic_scale, jax.random.key(seed))

        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        jax.jit(make, out_shardings=shardings).lower().compile()
        return abstract

    def until_first_step(*_):
        say("command to first step")
        os._exit(0)

    meshes.place = shapes
    opening.initial_state = compiled_state
    evaluate.Evaluator.unigram_loss = lambda self, counts: 0.0
    opening.open_recorder = until_first_step
    with tempfile.TemporaryDirectory() as folder:
        run.train(config, pathlib.Path(folder) / "run")


if __name__ == "__main__":
    from cramjax.config.resolve import resolve

    how, card, spec, *overrides = sys.argv[1:]
    {"bare": bare, "main": main}[how](card, resolve(spec, overrides))
