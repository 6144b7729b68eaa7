"""Runs that are interrupted, moved or extended, against one that is left alone.

All of them run in this process: a signal is raised by a sink, and a kill is an error that nothing
catches. `tests/e2e/test_main.py` and `tests/chaos` kill real processes.
"""

import contextlib
import json
import os
import shutil
import signal
import types

import jax
import numpy as np
import pytest

import cramjax
from cramjax.config.recipes import RECIPES
from cramjax.config.resolve import get_config
from cramjax.data import loader
from cramjax.errors import RunFailed, UserError
from cramjax.training import dataset_choice, evaluate, finish, history, metrics
from tests import stepping

N_STEPS = 12
SMALL = (
    *stepping.RECIPES["quickstart"],
    "data.vocab_size=256",
    "data.heldout_fraction=0.1",
    "data.loader=numpy",
    "microbatch_size=8",
    "budget.hours=None",
    f"budget.steps={N_STEPS}",
    "schedule.batch_ramp=0.5",
    "eval.every_fraction=0.25",
    "eval.batches=2",
    "log.every_steps=4",
    "log.tensorboard=False",
    "checkpoint.every_steps=5",
)
TIMES = {
    "elapsed_s", "tokens_per_s", "mfu", "compile_s", "eval_s", "save_s", "time_to_first_step_s",
    "data_wait_s",
    "goodput",
    "data_wait_fraction", "resumed_from",
}  # fmt: skip


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it, and nothing is written after it."""


class Signal:
    """A sink that raises a signal when it gets a line of `step`."""

    def __init__(self, step, name="loss"):
        self._step, self._name = step, name

    def write(self, step, values):
        if step == self._step and self._name in values:
            signal.raise_signal(signal.SIGTERM)

    def close(self):
        pass


@pytest.fixture(scope="module")
def text(tmp_path_factory, corpus):
    folder = tmp_path_factory.mktemp("text")
    shutil.copy(corpus, folder / "stories.txt")
    return folder / "stories.txt"


def configured(text, *overrides):
    return get_config(
        "quickstart",
        *SMALL,
        f"data.source=text:{text}",
        f"data.cache_dir={text.parent / 'prepared'}",
        *overrides,
    )


def train(text, workdir, *overrides, sinks=()):
    with stepping.one_device():
        return cramjax.train(configured(text, *overrides), workdir, sinks=sinks)


def choose(config, workdir):
    """Returns the dataset on which the run in `workdir` would go on, and what was said."""
    said = []
    earlier = history.read(workdir)
    dataset_choice.refuse_another(config, earlier, workdir)
    return dataset_choice.open_dataset(config, earlier, workdir, said.append), "\n".join(said)


@pytest.fixture(scope="module")
def undisturbed(text, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(text, workdir)
    return workdir


@pytest.fixture
def workdir(undisturbed, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(undisturbed, tmp_path / "run")


def story(workdir):
    """Returns lines and summary of a run without anything that is a time."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    summary = json.loads((workdir / "summary.json").read_text())
    return [without_times(json.loads(line)) for line in lines] + [without_times(summary)]


def without_times(values):
    return {name: value for name, value in values.items() if name not in TIMES}


def params(workdir):
    return jax.tree.leaves(cramjax.load(workdir).params)


# A signal with the line of step 8 stops the run at step 9, whose evaluation it prevents. The others
# come in the middle of a line's window, and with an evaluation.
@pytest.mark.parametrize(
    "step, name",
    [
        pytest.param(4, "loss", marks=pytest.mark.slow),
        pytest.param(6, "eval_loss", marks=pytest.mark.slow),
        pytest.param(8, "loss", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_tells_the_same_story_as_one_left_alone(
    undisturbed, text, tmp_path, step, name
):
    stopped = train(text, tmp_path, sinks=[Signal(step, name)])
    assert stopped["stop_reason"] == "sigterm" and stopped["steps"] < N_STEPS
    assert not (tmp_path / "summary.json").exists()

    train(text, tmp_path)
    assert story(tmp_path) == story(undisturbed)
    for ours, theirs in zip(params(tmp_path), params(undisturbed), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_a_stopped_run_whose_embeddings_come_from_counts_goes_on_with_those_it_has(text, tmp_path):
    counts = ("init_embeddings=cooccurrence", "model.d_model=16", "eval.every_fraction=0.5")
    train(text, tmp_path / "whole", *counts)
    train(text, tmp_path / "stopped", *counts, sinks=[Signal(4)])
    train(text, tmp_path / "stopped", *counts)
    for one, other in zip(params(tmp_path / "whole"), params(tmp_path / "stopped"), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_card_with_less_memory_takes_the_same_steps(undisturbed, text, tmp_path):
    """Its microbatch is 4 and not 8; the batch grows from 8 to 16 on both."""
    train(text, tmp_path, "microbatch_size=4", "schedule.ramp_start=8")
    ours = [line for line in story(tmp_path) if "loss" in line]
    others = [line for line in story(undisturbed) if "loss" in line]
    # Up to step 4, three steps of 8 sequences and one of 16.
    assert ours[0]["tokens"] == (3 * 8 + 16) * 32
    for line, other in zip(ours, others, strict=True):
        assert (line["batch_size"], line["tokens"]) == (other["batch_size"], other["tokens"])
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_an_error_saves_the_state_and_a_kill_at_the_end_costs_an_evaluation(
    undisturbed, text, tmp_path, monkeypatch, capsys
):
    """First the data cannot be read at step 9, then the process dies before its summary."""
    read = loader.DevicePrefetch.get
    n_left = iter(range(8))

    def fails(self):
        if next(n_left, None) is None:
            raise OSError(5, "Input/output error")
        return read(self)

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr(loader.DevicePrefetch, "get", fails)
        train(text, tmp_path)
    assert history.read(tmp_path).step == 8
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(finish, "write_json", kill)
        train(text, tmp_path)

    capsys.readouterr()
    train(text, tmp_path)
    said = capsys.readouterr().err
    assert "only the last evaluation is left" in said and "compiling" not in said
    assert story(tmp_path) == story(undisturbed)


def test_a_finished_run_needs_neither_its_dataset_nor_its_text(workdir, text, monkeypatch, capsys):
    before = (workdir / "summary.json").read_bytes()
    monkeypatch.setattr("cramjax.data.prepare.prepare", None)
    nowhere = text.parent / "nowhere.txt"
    assert train(nowhere, workdir, "data.allow_change=True")["steps"] == N_STEPS
    said = capsys.readouterr().err
    assert f"{workdir} is finished: steps after {N_STEPS} steps" in said
    assert "data.source: " in said and f"→ text:{nowhere}" in said
    assert (workdir / "summary.json").read_bytes() == before


@contextlib.contextmanager
def edited(text, old, new):
    """Inside, `text` holds `new` for `old`; afterwards it is as it was, the time included."""
    words, times = text.read_text(), text.stat()
    text.write_text(words.replace(old, new))
    try:
        yield
    finally:
        text.write_text(words)
        os.utime(text, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_changed_text_does_not_change_the_dataset_of_a_run(workdir, text, capsys):
    dataset = history.read(workdir).dataset
    with edited(text, "garden", "orchard"):
        summary = train(text, workdir, "budget.steps=13", "optimizer.lr=0.002")
    said = capsys.readouterr().err
    assert summary["steps"] == 13 and f"in {dataset}" in said
    assert "changed since that checkpoint:\n  budget.steps: 12 → 13\n" in said

    # The evaluation at the end of the shorter budget stays.
    evaluations = [
        line["step"] for line in metrics.read(workdir / "metrics.jsonl") if "eval_loss" in line
    ]
    assert evaluations == [3, 6, 9, 12, 13]

    noted = [json.loads(line) for line in (workdir / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in noted] == [0, 12]
    assert noted[0]["changes"] == {}
    assert noted[1]["changes"]["budget.steps"] == [12, 13]
    assert noted[1]["dataset"]["directory"] == str(dataset)


def test_another_dataset_is_taken_when_asked_and_read_with_the_tokenizer_of_the_run(
    workdir, text, tmp_path
):
    other = tmp_path / "stories.txt"
    other.write_text(text.read_text().replace("garden", "orchard"))
    with pytest.raises(UserError, match=r"another dataset \(data.source text:.*allow_change"):
        choose(configured(other), workdir)
    dataset, _ = choose(configured(other, "data.allow_change=True"), workdir)
    before = history.read(workdir)
    assert dataset.directory.parent == tmp_path / "prepared"
    assert dataset.manifest["fingerprint"] != before.fingerprint
    assert dataset.manifest["tokenizer_sha256"] == before.sidecar["tokenizer_sha256"]


def test_the_same_text_under_another_path_is_the_dataset_of_the_run(workdir, text, tmp_path):
    moved = tmp_path / "elsewhere" / text.name
    moved.parent.mkdir()
    shutil.copy(text, moved)
    before = history.read(workdir)
    dataset, _ = choose(configured(moved, f"data.cache_dir={tmp_path / 'other'}"), workdir)
    assert dataset.directory == before.dataset
    # Lost, it is prepared again from where the text lies now.
    forget_dataset(workdir, tmp_path)
    dataset, said = choose(configured(moved, f"data.cache_dir={tmp_path / 'other'}"), workdir)
    assert dataset.directory.parent == tmp_path / "other" and "has changed" not in said
    assert dataset.manifest["fingerprint"] == before.fingerprint


def test_a_run_of_a_version_that_knew_files_by_their_paths_goes_on(workdir, text, tmp_path):
    older = shutil.copytree(history.read(workdir).dataset, tmp_path / "older")
    manifest = json.loads((older / "manifest.json").read_text()) | {"fingerprint": "0" * 64}
    (older / "manifest.json").write_text(json.dumps(manifest))

    def edit(sidecar):
        sidecar["dataset"] = {"directory": str(older), "fingerprint": "0" * 64}
        del sidecar["config"]["data"]["keep"]

    edit_sidecar(workdir, edit)
    dataset, said = choose(configured(text), workdir)
    assert dataset.directory == older and "changed" not in said


def test_a_lost_dataset_is_prepared_again(workdir, text, tmp_path):
    before = history.read(workdir)
    forget_dataset(workdir, tmp_path)
    # Nothing else has changed, so it is the same dataset as before.
    dataset, said = choose(configured(text), workdir)
    assert dataset.manifest["fingerprint"] == before.fingerprint
    assert "the dataset that this run was made with is gone" in said and "changed" not in said


def test_a_lost_dataset_whose_text_has_changed_gets_the_tokenizer_of_the_run(
    workdir, text, tmp_path
):
    before = history.read(workdir)
    forget_dataset(workdir, tmp_path)
    with edited(text, "garden", "orchard"):
        dataset, said = choose(configured(text), workdir)
    assert "goes on with the same tokenizer on the text that is there now" in said
    assert dataset.manifest["fingerprint"] != before.fingerprint
    assert dataset.manifest["tokenizer_sha256"] == before.sidecar["tokenizer_sha256"]


def forget_dataset(workdir, tmp_path):
    """Makes the newest checkpoint name a dataset that is not there."""

    def edit(sidecar):
        sidecar["dataset"]["directory"] = str(tmp_path / "gone")

    edit_sidecar(workdir, edit)


def edit_sidecar(workdir, edit):
    """Changes the JSON beside the newest checkpoint in place."""
    folder = workdir / "checkpoints" / str(N_STEPS)
    note = folder / "sidecar" / "metadata"
    sidecar = json.loads(note.read_text())
    edit(sidecar)
    note.write_text(json.dumps(sidecar))
    (folder / "checksums.json").unlink()


def test_a_moved_dataset_is_the_same_dataset(workdir, text, tmp_path):
    moved = shutil.copytree(history.read(workdir).dataset, tmp_path / "moved")
    config = configured(text, f"data.source=prepared:{moved}")
    assert choose(config, workdir)[0].directory == moved
    # The folder now holds another dataset, which nobody asked for.
    manifest = json.loads((moved / "manifest.json").read_text())
    (moved / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": "0" * 64}))
    with pytest.raises(UserError, match="another dataset"):
        choose(config, workdir)


@pytest.mark.slow
def test_a_run_that_stop_loss_has_ended_says_how_to_go_on(text, tmp_path, capsys):
    failing = ("schedule.stop_loss=0.01", "schedule.stop_after=0.5")
    ended = train(text, tmp_path, *failing)
    assert ended["stop_reason"] == "early_termination" and ended["steps"] < N_STEPS
    train(text, tmp_path, *failing)
    assert "on all the same: --config.schedule.stop_loss=None" in capsys.readouterr().err
    assert train(text, tmp_path)["steps"] == N_STEPS


def test_a_run_whose_loss_is_not_a_number_fails(undisturbed):
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert finish.checked(summary) == summary
    for loss in (None, float("nan")):
        with pytest.raises(RunFailed, match="eval_loss is not a number"):
            finish.checked(summary | {"eval_loss": loss})


@pytest.mark.slow
def test_how_a_network_is_computed_may_change_on_the_way(workdir, text, capsys):
    assert train(text, workdir, "budget.steps=13", "model.remat=full")["steps"] == 13
    assert "model.remat: none → full" in capsys.readouterr().err


def test_a_dataset_without_rows_for_a_later_stage_is_refused_before_anything_is_compiled(
    text, tmp_path, capsys
):
    stages = 'growth.stages=[{"until": 0.5, "depth": 1.0, "length": 0.03125}]'
    with pytest.raises(UserError, match="no sequence of 16384 tokens"):
        train(text, tmp_path, "data.seq_len=16384", "model.positions=rotary", stages)
    assert "compiling" not in capsys.readouterr().err


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.py")))
def test_a_larger_budget_names_the_same_text_for_every_recipe(recipe):
    """A recipe takes an amount of text from its budget, not another text."""
    from cramjax.data.plan import text_settings

    short = get_config(recipe)
    longer = get_config(recipe, f"budget.hours={2 * (short.budget.hours or 24)}")
    assert text_settings(short.data) == text_settings(longer.data)
    changed = set(history.changes(short, longer))
    assert "budget.hours" in changed and changed <= {"budget.hours", "data.max_mb"}


@pytest.mark.slow
def test_an_amount_of_text_from_the_budget_stays_when_the_budget_grows(text, tmp_path, capsys):
    """The amount depends on devices and budget; a run that goes on keeps what it was made with."""
    amount = ("data.max_mb=budget", "data.tokenizer_sample_mb=0.02")
    summary = train(text, tmp_path, *amount)
    assert "data.max_mb=budget: at most" in capsys.readouterr().err
    first = json.loads((tmp_path / "config.json").read_text())["data"]["max_mb"]
    assert 0.02 <= first < 1
    assert summary["data_epochs"] == pytest.approx(
        summary["tokens"] / history.dataset_of(tmp_path)[1].manifest["train_tokens"], rel=0.05
    )

    longer = train(text, tmp_path, *amount, "budget.steps=30")
    told = capsys.readouterr().err
    assert "data.max_mb" not in told and "budget.steps: 12 → 30" in told
    assert json.loads((tmp_path / "config.json").read_text())["data"]["max_mb"] == first
    assert longer["data_epochs"] > summary["data_epochs"] and longer["steps"] == 30


DAMAGE = {
    "clock": None,
    "config": {"model": {}},
    "dataset": "a folder",
    "record": {"recent": 5},
    "scorings": {"every": "now and then"},
    "spent": {"eval_s": "long"},
    "stage": -1,
}


def damage(folder, **values):
    """Changes the JSON beside the arrays of a checkpoint that was killed before it was sealed."""
    note = folder / "sidecar" / "metadata"
    note.write_text(json.dumps(json.loads(note.read_text()) | values))
    (folder / "checksums.json").unlink()


@pytest.mark.parametrize("name", DAMAGE)
def test_a_checkpoint_with_a_damaged_sidecar_is_a_damaged_one(workdir, name):
    assert history.read(workdir).step == N_STEPS
    damage(workdir / "checkpoints" / str(N_STEPS), **{name: DAMAGE[name]})
    assert history.read(workdir).step == N_STEPS - 2


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_sidecar(workdir, text, undisturbed):
    damage(workdir / "checkpoints" / str(N_STEPS), clock={"steps": "many"})
    train(text, workdir)
    assert (workdir / "checkpoints" / f"damaged-{N_STEPS}").is_dir()
    assert story(workdir) == story(undisturbed)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("config.json", {"model": {"family": "bird"}}, "of no family that this version knows"),
        ("config.json", {"budget": None}, "budget=None is of another type"),
        ("config.json", {"growth": {"stages": [5]}}, "no list of stages"),
        ("environment.json", {"dataset": 5}, "dataset=5 is of another type"),
    ],
)
def test_files_of_an_older_version_that_are_damaged_are_named(workdir, name, content, said):
    note = workdir / "checkpoints" / str(N_STEPS) / "sidecar" / "metadata"
    sidecar = json.loads(note.read_text())
    for later in ("config", "dataset", "record", "evaluations", "stop_reason"):
        del sidecar[later]
    note.write_text(json.dumps(sidecar))
    (note.parent.parent / "checksums.json").unlink()
    assert history.read(workdir).dataset is not None
    path = workdir / name
    path.write_text(json.dumps(json.loads(path.read_text()) | content))
    with pytest.raises(UserError, match=f"{name}: .*{said}"):
        history.read(workdir)


@pytest.mark.parametrize("damage", [{"stop_reason": 5}, {"eval_loss": "low"}, {"train_loss": {}}])
def test_a_summary_that_is_damaged_is_none(workdir, damage):
    path = workdir / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    assert history.read(workdir).summary is None


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    for name in ("metrics.jsonl", "history.jsonl"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl: is no regular file"):
        metrics.MetricsWriter(tmp_path)
    with pytest.raises(UserError, match=r"history\.jsonl: cannot be written"):
        history.append(tmp_path, 0, {}, {})


def test_a_file_in_the_place_of_the_checkpoints_is_named_at_the_start(workdir, text):
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "checkpoints").write_text("")
    with pytest.raises(UserError, match="checkpoints: is no folder"):
        train(text, workdir)


def test_a_line_of_history_that_a_crash_cut_is_followed_by_a_whole_one(workdir):
    path = workdir / "history.jsonl"
    path.write_bytes(b'{"step": 0}\n{"st')
    history.append(workdir, 5, {}, {})
    history.append(workdir, 6, {}, {})
    lines = path.read_text().splitlines()
    assert lines[:2] == ['{"step": 0}', '{"st']
    assert [json.loads(line)["step"] for line in lines[2:]] == [5, 6]


def test_a_leading_tilde_is_the_home_in_python_too(text, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"{tmp_path}/file"):
        train(text, "~/file")
    with pytest.raises(UserError, match=f"{tmp_path}/nothing"):
        cramjax.load("~/nothing")
    recipe = RECIPES / "quickstart.py"
    (tmp_path / "mine.py").write_text(recipe.read_text())
    assert get_config("~/mine.py").name == "quickstart"


def test_a_text_without_a_token_to_predict_is_refused():
    objective = types.SimpleNamespace(
        frequencies=lambda counts: counts, predicted=None, evaluate=lambda: None
    )
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1])[:, None], ("data", "fsdp"))
    with pytest.raises(UserError, match="no token to predict"):
        evaluate.Evaluator(objective, mesh, []).unigram_loss(np.ones(3, np.int64))
