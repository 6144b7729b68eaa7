"""A folder that is deleted under its run: the run goes on, and everything is there at its end."""

import json
import shutil

import pytest

import cramjax
from tests import stepping
from tests.e2e import test_main as cli


class Deleter:
    """A sink that deletes the workdir once."""

    def __init__(self, workdir, step):
        self.workdir = workdir
        self.step = step

    def write(self, step, values):
        if step == self.step:
            self.step = None
            shutil.rmtree(self.workdir)

    def close(self):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("step", [6, 10])
def test_a_deleted_workdir_is_made_again_with_all_that_belongs_there(
    corpus, tmp_path, step, caplog
):
    workdir = tmp_path / "run"
    small = [flag.removeprefix("--config.") for flag in cli.SMALL]
    config = cramjax.get_config(
        "quickstart",
        *small,
        f"data.source=text:{corpus}",
        f"data.cache_dir={tmp_path / 'data'}",
        "budget.steps=10",
        "checkpoint.every_steps=4",
        "log.every_steps=2",
        "eval.every_fraction=0",
    )
    with stepping.one_device():
        cramjax.train(config, workdir, sinks=[Deleter(workdir, step)])

    assert caplog.text.count("the folder was deleted") == 1
    names = {path.name for path in workdir.iterdir()}
    assert names >= {"config.json", "environment.json", "tokenizer", "summary.json", "loss.png"}
    assert (workdir / "checkpoints" / "10" / "checksums.json").exists()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 8, 10]
    with stepping.one_device():
        assert cramjax.train(config, workdir)["stop_reason"] == "steps"
