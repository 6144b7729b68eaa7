"""A few stories of `python -m tests.chaos`, which tells any number of them."""

import pytest

from tests.chaos import __main__ as chaos


def tell(stories, folder):
    (folder / "stories").mkdir()
    struck, failed = chaos.tell_all(stories, folder / "stories")
    assert not failed, "\n".join(failed)
    assert struck.total() > 0


@pytest.mark.slow
def test_a_disturbed_preparation_gives_the_same_dataset(tmp_path):
    tell([("prepare", 9)], tmp_path)


@pytest.mark.slow
def test_disturbed_commands_give_the_same_results(tmp_path):
    tell([(chaos.command_of(seed), seed) for seed in range(40)], tmp_path)
