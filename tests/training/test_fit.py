import types

import pytest

from cramjax.config.errors import UserError
from cramjax.training.fit import HEADROOM, choose_microbatch


class Device:
    """A device on which a step of n sequences takes `fixed + slope * n` bytes; counts compilations."""

    def __init__(self, fixed=1000, slope=10, bend=0):
        self.fixed, self.slope, self.bend, self.compiled = fixed, slope, bend, []

    def compile(self, n):
        self.compiled.append(n)
        used = self.fixed + self.slope * n + self.bend * n * n
        analysis = types.SimpleNamespace(
            argument_size_in_bytes=used // 2,
            temp_size_in_bytes=used - used // 2,
            output_size_in_bytes=300,
            alias_size_in_bytes=300,
        )
        return types.SimpleNamespace(memory_analysis=lambda: analysis)


def choose(device, limit, batch_size=96, shards=1):
    return choose_microbatch(device.compile, batch_size=batch_size, shards=shards, seq_len=128, limit_bytes=limit)


@pytest.mark.parametrize("room, wanted", [(1010, 1), (1320, 32), (1479, 32), (1480, 48), (1960, 96), (10**9, 96)])
def test_it_is_the_largest_divisor_that_fits(room, wanted):
    device = Device()
    assert choose(device, room / HEADROOM + 1) == wanted
    assert len(device.compiled) <= 3


def test_a_wrong_prediction_is_corrected_by_the_compilation():
    assert choose(Device(bend=1), (1000 + 24 * 10 + 24 * 24) / HEADROOM + 1) == 24


def test_sizes_are_multiples_of_the_devices():
    assert choose(Device(), 10**9, batch_size=96, shards=8) == 96
    assert choose(Device(), 1320 / HEADROOM + 1, batch_size=96, shards=8) == 32
    with pytest.raises(UserError, match="batch_size=12"):
        choose(Device(), 10**9, batch_size=12, shards=8)


def test_too_small_a_device_is_told_what_to_change():
    with pytest.raises(UserError, match="remat"):
        choose(Device(fixed=2**31), 2**30)


def test_on_cpu_nothing_is_compiled_and_a_pass_stays_in_the_caches():
    device = Device()
    assert choose(device, None, batch_size=8192) == 32 and device.compiled == []
