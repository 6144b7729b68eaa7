"""The search for a microbatch: on a pretended compiler, which counts what it is asked to do."""

import json
import types

import jax
import pytest

from cramjax.config.resolve import get_config
from cramjax.errors import UserError
from cramjax.training import session
from cramjax.tuning import microbatch
from cramjax.tuning.answers import Answer
from cramjax.tuning.microbatch import HEADROOM

REMATERIALISED = "  %fusion.3.remat2 = f32[8]{0} fusion(%p), kind=kLoop\n"


class Compiler:
    """Compiles for a device on which a step of n sequences takes `fixed + slope * n + bend * n²`
    bytes.

    Steps of more than `recomputes_at` bytes are rematerialised, and then need only that.
    """

    def __init__(self, fixed=1000, slope=10, bend=0, recomputes_at=None, source="step"):
        self.fixed, self.slope, self.bend = fixed, slope, bend
        self.recomputes_at, self.source = recomputes_at, source
        self.probed, self.compiled = [], []

    def needs(self, n):
        return self.fixed + self.slope * n + self.bend * n * n

    def lower(self, n):
        def compile_step(compiler_options=None):
            (self.probed if compiler_options else self.compiled).append(n)
            used, text = self.needs(n), "  %fusion.3 = f32[8]{0} fusion(%p), kind=kLoop\n"
            if self.recomputes_at is not None and used > self.recomputes_at:
                used, text = self.recomputes_at, REMATERIALISED
            analysis = types.SimpleNamespace(
                argument_size_in_bytes=used,
                temp_size_in_bytes=0,
                output_size_in_bytes=100,
                alias_size_in_bytes=100,
            )
            return types.SimpleNamespace(
                memory_analysis=lambda: analysis, as_text=lambda: text, size=n
            )

        return types.SimpleNamespace(as_text=lambda: f"{self.source} of {n}", compile=compile_step)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A compile cache of this test alone."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "xla"))
    yield tmp_path / "xla" / "cramjax"
    jax.config.update("jax_compilation_cache_dir", before)


def choose(
    compiler,
    room,
    *,
    batch_size=96,
    shards=1,
    error=1.0,
    platform="gpu",
    card="some card",
    lines=None,
):
    """Returns the chosen size if a step may take `room` bytes.

    The formula is wrong by the factor `error`.
    """
    lines = [] if lines is None else lines
    size, (program, _) = microbatch.choose_microbatch(
        compiler.lower,
        microbatch.microbatch_sizes(batch_size, shards),
        round(room / HEADROOM + 1),
        lambda n: round(compiler.fixed + error * compiler.slope * n),
        platform=platform,
        answer=Answer({"card": card}),
        announce=lines.append,
    )

    assert program.size == size
    return size


@pytest.mark.parametrize("error", [0.6, 1.0, 1.3, 1.9])
@pytest.mark.parametrize(
    "room, wanted", [(1010, 1), (1320, 32), (1479, 32), (1490, 48), (1970, 96), (10**9, 96)]
)
def test_it_is_the_largest_divisor_that_fits(room, wanted, error):
    compiler = Compiler()
    assert choose(compiler, room, error=error) == wanted
    # The program that trains is the last one that is compiled, and the only one.
    assert compiler.compiled == [wanted] and len(compiler.probed) <= 2


def test_probes_are_small_and_leave_out_autotuning_on_gpus_alone():
    compiler = Compiler()
    assert choose(compiler, 1000 + 10 * 1024, batch_size=8192) == 1024
    assert max(compiler.probed) <= 1024 / 4
    compiler = Compiler()
    assert (
        choose(compiler, 1000 + 10 * 1024, batch_size=8192, platform="tpu", card="a slice") == 1024
    )
    assert (
        not compiler.probed
        and compiler.compiled[-1] == 1024
        and max(compiler.compiled[:-1]) <= 1024 / 4
    )


def test_a_wrong_prediction_is_corrected_by_the_compilation():
    compiler = Compiler(bend=1)
    assert choose(compiler, 1950) == 24
    assert compiler.compiled == [32, 24]


def test_a_program_that_the_compiler_shrinks_does_not_fit():
    # What it would shrink is below what there is room for, so that the size alone would not tell.
    compiler = Compiler(recomputes_at=1400)
    assert choose(compiler, 1500) == 32
    assert compiler.compiled == [48, 32]


def test_a_size_that_is_much_too_large_is_never_compiled():
    compiler = Compiler(recomputes_at=1400)
    choose(compiler, 1400, batch_size=8192, error=0.7)
    assert max(compiler.needs(n) for n in [*compiler.probed, *compiler.compiled]) <= 2 * 1400


def test_a_microbatch_divides_the_stairs_of_a_ramp():
    def sizes(*overrides, shards=8):
        return session.microbatch_sizes(get_config("bert_1day", *overrides), shards)

    assert sizes() == [8, 16, 32, 64, 128, 256, 512]
    assert sizes("log.noise_scale=True") == sizes()
    assert sizes("schedule.ramp_start=8192", "log.noise_scale=True")[-1] == 4096
    assert sizes("schedule.batch_ramp=0")[-1] == sizes("schedule.ramp_start=None")[-1] == 8192
    with pytest.raises(UserError, match="schedule.ramp_start=512: must be a multiple of the 3 dev"):
        sizes(shards=3)

    # What the run itself takes, on all devices that are here.
    vocabulary = session.AssumedVocabulary(vocab_size=1024)
    made = session.open_session(get_config("bert_1day:smoke", "microbatch_size=None"), vocabulary)
    assert made.microbatch_size == 16 and made.max_microbatches == 2


def test_sizes_are_multiples_of_the_devices():
    assert choose(Compiler(), 10**9, batch_size=96, shards=8, card="a") == 96
    assert choose(Compiler(), 1330, batch_size=96, shards=8, card="b") == 32
    with pytest.raises(UserError, match="ramp_start=12: must be a multiple of the 8 devices"):
        microbatch.microbatch_sizes(12, 8, "schedule.ramp_start")
    with pytest.raises(UserError, match="batch_size=12"):
        microbatch.microbatch_sizes(12, 8)


def test_too_small_a_device_is_told_what_to_change():
    with pytest.raises(UserError, match=r"needs 2\.0 GiB with 1 .*remat"):
        choose(Compiler(fixed=2**31), 2**30)


def test_every_size_that_is_tried_has_a_line():
    compiler, lines = Compiler(), []
    choose(compiler, 1480, lines=lines)
    for size in [*compiler.probed, *compiler.compiled]:
        assert any(f" {size} sequence(s) a pass need " in line for line in lines)


def test_the_second_start_does_not_search():
    compiler, lines = Compiler(), []
    size = choose(compiler, 1480)
    again = Compiler()
    assert choose(again, 1480, lines=lines) == size
    assert again.compiled == [size] and not again.probed and "as found before" in lines[0]


@pytest.mark.parametrize("change", [{"card": "another"}, {"source": "another step"}, {"slope": 40}])
def test_another_card_or_program_is_searched_for_again(change):
    choose(Compiler(), 1480)
    card = change.pop("card", "some card")
    again = Compiler(**change)
    size = choose(again, 1480, card=card)
    assert again.probed and again.needs(size) <= 1480


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"microbatch_size": "many"}', '{"microbatch_size": 5}']
)
def test_a_damaged_answer_costs_a_search_and_not_the_run(cache, content):
    size = choose(Compiler(), 1480)
    (file,) = cache.iterdir()
    file.write_text(content)
    again = Compiler()
    assert choose(again, 1480) == size and again.probed
    assert json.loads(file.read_text())["microbatch_size"] == size


def test_an_answer_that_cannot_be_kept_costs_a_search_and_not_the_run(cache):
    cache.parent.mkdir()
    cache.write_text("a file in the place of the folder")
    for _ in range(2):
        compiler = Compiler()
        assert choose(compiler, 1480) == 48 and compiler.probed


def test_on_cpu_nothing_is_compiled_and_a_pass_stays_in_the_caches():
    sizes = microbatch.microbatch_sizes(8192, 1)
    assert microbatch.cpu_microbatch(sizes, shards=1, seq_len=128) == 32


def test_names_of_rematerialised_instructions_are_told_from_others():
    def program(text):
        return types.SimpleNamespace(as_text=lambda: text)

    for line in (
        "  %gte.remat.17 = f32[] x(%a)",
        "  ROOT fusion.1.remat = f32[] x(%a)",
        REMATERIALISED,
    ):
        assert microbatch.is_rematerialised(program(f"ENTRY %main {{\n{line}\n}}"))
    # jax.checkpoint, which `model.remat` asks for, names what it recomputes in the metadata.
    own = (
        '  %dot.4 = f32[] dot(%a), metadata={op_name="jit(step)/rematted_computation/dot.remat = "}'
    )
    assert not microbatch.is_rematerialised(program(f"ENTRY %main {{\n{own}\n}}"))


def test_a_probe_that_has_forgotten_its_temporaries_is_not_believed():
    class Forgetful(Compiler):
        """Says of small steps, as if they came from a cache, only what they are given."""

        def needs(self, n):
            return 10 if n < 16 else super().needs(n)

    compiler = Forgetful()
    assert choose(compiler, 1490) == 48
    assert compiler.compiled == [48]
