"""Runs and finetuned models are exported with their cards, and `transformers` loads them.

The tests go through the command line and a fake Hub's API.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
import resource
import shutil

import jax
import numpy as np
import pytest
from huggingface_hub import ModelCard

import cramjax
from cramjax.checkpoints import pretrained
from cramjax.errors import RunFailed, UserError
from cramjax.files import FileLock
from cramjax.finetuning import run
from cramjax.finetuning.protocols import Protocol, Settings
from cramjax.finetuning.request import FinetuneRequest
from cramjax.hub import directory
from cramjax.models.layers import FLOAT32
from cramjax.publishing import card, facts
from cramjax.publishing import push as pushing
from cramjax.publishing.export import Options, export
from cramjax.publishing.revisions import revisions
from tests.e2e import test_main as cli
from tests.finetuning import grammar
from tests.hub.fakehub import FakeHub
from tools import export_hf

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

TOKEN = "hf_" + "x" * 30
SETTINGS = Settings(
    lr=2e-3,
    epochs=1,
    batch_size=16,
    dropout=0.1,
    attention_dropout=0.0,
    head_width=99,
    single_as_pair=True,
)
PROTOCOL = Protocol(name="quick", source="tests", settings=SETTINGS, n_seeds=1)


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory):
    """The export of a run by the command line."""
    out = tmp_path_factory.mktemp("export") / "small-bert"
    command = ["--checkpoint", str(small_run), "--out", str(out)]
    command += ["--verify", "--license", "apache-2.0"]
    assert export_hf.main(command) == 0
    return out


def code_of(page):
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    return code


def run_code(folder, monkeypatch, capsys):
    """Returns the output of the card's example, run beside the export."""
    monkeypatch.chdir(folder.parent)
    exec(compile(code_of((folder / "README.md").read_text()), "README.md", "exec"), {})
    return capsys.readouterr().out


def test_a_run_is_a_folder_of_transformers(exported, small_run):
    # Dear, because a run is trained and exported for the whole file. The tests of formats use
    # random parameters; this one follows a run's checkpoint, tokenizer and metrics to the folder.
    names = {path.name for path in exported.iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "loss.png"} <= names
    assert {"tokenizer.json", "tokenizer_config.json"} <= names

    ours, theirs = cramjax.load(small_run), cramjax.load(exported)
    model, params, tokenizer = theirs
    assert model is theirs and params is theirs.params and tokenizer is theirs.tokenizer
    assert ours.step == 20 and ours.config.vocab_size == theirs.config.vocab_size
    np.testing.assert_array_equal(
        ours.params["head"]["dense"]["kernel"], theirs.params["head"]["dense"]["kernel"]
    )

    sentence = "anna reads [MASK] in the garden ."
    guesses = transformers.pipeline("fill-mask", model=str(exported), top_k=3)(sentence)
    model = dataclasses.replace(ours, precision=FLOAT32)
    (expected,) = cramjax.fill_mask(model, sentence, top_k=3)
    assert [guess["token_str"] for guess in guesses] == [token for token, _ in expected]
    scores = [guess["score"] for guess in guesses]
    np.testing.assert_allclose(scores, [share for _, share in expected], rtol=1e-4)


def test_the_card_says_what_the_run_noted(exported, small_run, monkeypatch, capsys):
    page = (exported / "README.md").read_text()
    summary = json.loads((small_run / "summary.json").read_text())
    data = ModelCard.load(exported / "README.md").data
    assert (data.license, data.language) == ("apache-2.0", "en")
    assert (data.library_name, data.pipeline_tag) == ("transformers", "fill-mask")
    assert data.model_name == "small-bert" and "cramjax" in data.tags
    values = {result.metric_type: result.metric_value for result in data.eval_results}
    assert values["loss"] == round(summary["eval_loss"], 4)

    environment = json.loads((small_run / "environment.json").read_text())
    assert environment["git"] in page
    assert "python -m cramjax.main --config configs/quickstart.py" in page
    assert "20 steps" in page and "![" in page and "text:stories.txt" in page
    # A small corpus gives fewer entries than data.vocab_size.
    n_entries = cramjax.load(exported).tokenizer.get_vocab_size()
    assert f"| tokenizer | `wordpiece`, {n_entries:,} entries |" in page
    printed = run_code(exported, monkeypatch, capsys)
    assert len(printed.splitlines()) == 5


def test_what_a_killed_export_left_goes_with_the_next(small_run, tmp_path):
    (tmp_path / ".out.export").mkdir()
    (tmp_path / ".out.export" / "model.safetensors").write_bytes(b"half")
    export(small_run, tmp_path / "out", tell=lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_at_the_same_time_is_refused(small_run, tmp_path):
    with FileLock(tmp_path / ".out.export.lock") as lock:
        assert lock.acquire()
        with pytest.raises(UserError, match="another export writes there"):
            export(small_run, tmp_path / "out", tell=lambda _: None)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(small_run, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with contextlib.ExitStack() as stack:
        # A limit of the size of files, whose signal Python ignores, stands in for a full disk.
        stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
        with pytest.raises(RunFailed, match=r"--out .*/out: cannot be written .*; free space"):
            export(small_run, tmp_path / "out", tell=lambda _: None)
    assert not list(tmp_path.iterdir())


def forget_config(workdir):
    """Makes the checkpoints those of version 0.2.0, which did not keep the configuration."""
    for path in workdir.glob("checkpoints/*/sidecar/metadata"):
        sidecar = json.loads(path.read_text())
        del sidecar["config"]
        path.write_text(json.dumps(sidecar))
        (path.parent.parent / "checksums.json").unlink()


def test_the_card_has_the_configuration_that_the_checkpoint_was_made_with(small_run, tmp_path):
    workdir = shutil.copytree(small_run, tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["optimizer"]["lr"] = 99.0
    (workdir / "config.json").write_text(json.dumps(config))
    export(workdir, tmp_path / "out", tell=lambda _: None)
    assert "peak learning rate 99" not in (tmp_path / "out" / "README.md").read_text()
    forget_config(workdir)
    export(workdir, tmp_path / "old", tell=lambda _: None)
    assert "peak learning rate 99" in (tmp_path / "old" / "README.md").read_text()


def test_an_export_that_is_killed_while_its_files_move_is_made_again(
    small_run, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    out.mkdir()
    replace = pathlib.Path.replace

    def replace_one(path, target):
        if any(out.iterdir()):
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pathlib.Path, "replace", replace_one)
        export(small_run, out, tell=lambda _: None)
    assert len(list(out.iterdir())) == 1
    export(small_run, out, tell=lambda _: None)
    assert (out / "model.safetensors").exists()


def test_text_of_others_stays_text_in_the_card(small_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(small_run, workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["source"] = "text:/home/me/a`b|c\n<script>.txt"
    (workdir / "config.json").write_text(json.dumps(config))
    forget_config(workdir)
    environment = json.loads((workdir / "environment.json").read_text())
    command = "/home/me/bin/python3.11 -m cramjax.main --workdir /home/me/x"
    environment |= {
        "devices": ["<img src=x> | `y`"],
        "command": f"{command} --config.data.source=text:/home/me/b.txt",
    }
    (workdir / "environment.json").write_text(json.dumps(environment))
    (workdir / "history.jsonl").unlink()  # as version 0.2.0 leaves a run
    (workdir / "loss.png").unlink(missing_ok=True)
    (workdir / "loss.png").symlink_to("/etc/hostname")

    out = tmp_path / 'a "quoted"\nname'
    export(workdir, out, tell=lambda _: None)
    page = (out / "README.md").read_text()
    assert not (out / "loss.png").exists() and "![" not in page
    assert "| data | `` text:a`b\\|c <script>.txt `` |" in page
    assert r"\<img src=x\> \| \`y\`" in page
    assert "python -m cramjax.main --workdir x --config.data.source=text:b.txt" in page
    assert f"model={json.dumps(out.name)}" in code_of(page)
    compile(code_of(page), "README.md", "exec")


def test_the_card_says_what_changed_while_the_run_was_trained(small_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(small_run, workdir)
    command = "/home/me/bin/python -m cramjax.main --workdir /home/me/x"

    def line(step, fingerprint="f", **changes):
        dataset = {"directory": "/home/me/d", "fingerprint": fingerprint}
        shown = command + "".join(f" --config.{key}={now}" for key, (_, now) in changes.items())
        entry = {"step": step, "command": shown, "changes": changes, "dataset": dataset}
        return json.dumps(entry) + "\n"

    lines = [
        line(0),
        line(3, seed=(1, 2)),  # thrown away by the next
        line(2, **{"data.source": ("text:/home/me/a|b", "text:/home/me/<c>")}),
        '{"step": 4, "changes": [',
        '{"step": 4, "command": "x", "changes": {"a": 5}, "dataset": {}}\n',
        line(5),  # nothing has changed
        line(6, "g", **{"optimizer.lr": (0.5, 0.25)}),
        line(1000, seed=(1, 3)),  # after the exported step
    ]
    (workdir / "history.jsonl").write_text("".join(lines))
    export(workdir, tmp_path / "out", tell=lambda _: None)
    page = (tmp_path / "out" / "README.md").read_text()
    assert [row for row in page.splitlines() if row.startswith(("| 2 |", "| 6 |"))] == [
        "| 2 | `data.source` | `text:a\\|b` | `text:<c>` |",
        "| 6 | `optimizer.lr` | `0.5` | `0.25` |",
        "| 6 | text | | prepared again, with another content |",
    ]
    (commands,) = re.findall(r"```bash\n(.*?)\n```", page, re.DOTALL)
    assert commands.splitlines() == [
        "python -m cramjax.main --workdir x",
        "# stopped, and gone on from step 2:",
        "python -m cramjax.main --workdir x '--config.data.source=text:<c>'",
        "# stopped, and gone on from step 6:",
        "python -m cramjax.main --workdir x --config.optimizer.lr=0.25",
    ]
    assert "seed" not in page.split("## Changes during training")[1].split("##")[0]


def test_scores_of_a_finetuning_stand_in_the_card(small_run, tmp_path, monkeypatch):
    spread = {
        "median": 61.25,
        "mean": 61.0,
        "std": 1.5,
        "min": 59.0,
        "max": 63.0,
        "seeds": [59.0, 61.25, 63.0],
    }
    results = {
        "rte": {"accuracy": spread, "n_train": 9, "n_eval": 9},
        "suite": "glue",
        "protocol": {"name": "cramming", "source": "a paper"},
        "model": "small",
        "command": "python -m tools.finetune --task rte",
    }
    for name in ("small-cramming", "small-untrained-cramming"):
        (tmp_path / "runs" / "finetune" / name).mkdir(parents=True)
        (tmp_path / "runs" / "finetune" / name / "results.json").write_text(json.dumps(results))

    monkeypatch.chdir(tmp_path)
    assert export_hf.main(["--checkpoint", str(small_run), "--out", "out"]) == 0
    page = (tmp_path / "out" / "README.md").read_text()
    assert "| rte | accuracy | 61.2 | 1.5 | 3 |" in page
    assert "python -m tools.finetune --task rte" in page

    evaluations = ModelCard(page).data.eval_results
    (result,) = [result for result in evaluations if result.dataset_config == "rte"]
    assert (result.metric_type, result.metric_value) == ("accuracy", 61.25)
    assert result.dataset_type == "nyu-mll/glue"

    # An earlier checkpoint has none, unless somebody says that these are its own.
    cards = []
    named = ("--results", "runs/finetune/small-cramming/results.json")
    for flags in (("--step", "1"), ("--step", "1", *named), ("--revisions", *named)):
        assert export_hf.main(["--checkpoint", str(small_run), "--out", "other", *flags]) == 0
        folders = [path.parent for path in sorted((tmp_path / "other").rglob("README.md"))]
        cards.append({path.name: "| rte |" in (path / "README.md").read_text() for path in folders})
        shutil.rmtree(tmp_path / "other")
    assert cards == [{"other": False}, {"other": True}, {"1e-06h": False, "main": True}]


def test_an_export_is_replaced_and_other_files_stay(small_run, tmp_path):
    out = tmp_path / "out"
    export(small_run, out, Options(dtype="bfloat16", max_shard_size="20KB"), tell=lambda _: None)
    assert (out / "model.safetensors.index.json").is_file()
    (out / "notes.txt").write_text("mine")
    export(small_run, out, tell=lambda _: None)
    assert not list(out.glob("model-*")) and not (out / "model.safetensors.index.json").exists()
    assert (out / "notes.txt").read_text() == "mine" and not list(tmp_path.glob(".out*"))
    assert directory.read_model(out).config.n_layers == 2


@pytest.mark.parametrize(
    ("checkpoint", "flags", "message"),
    [
        ("nothing/here", (), "no checkpoint of a run there"),
        ("RUN", ("--step", "7"), "no checkpoint of step 7; there are 1, 20"),
        ("RUN", ("--results", "none.json"), "--results none.json: is no results.json"),
        ("RUN", ("--push_to_hub", "me/x"), "HF_TOKEN is not set"),
        ("RUN", ("--max_shard_size", "apples"), "--max_shard_size apples: must be a size"),
        ("EXPORT", (), "is a model of transformers already"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(
    exported, small_run, tmp_path, monkeypatch, capsys, checkpoint, flags, message
):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "nothing").mkdir()
    monkeypatch.chdir(tmp_path)
    checkpoint = {"RUN": str(small_run), "EXPORT": str(exported)}.get(checkpoint, checkpoint)
    assert export_hf.main(["--checkpoint", checkpoint, "--out", str(tmp_path / "out"), *flags]) == 2
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1] and len(said) == 1
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_a_folder_with_other_files_is_left_alone(small_run, tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(UserError, match="holds other files"):
        export(small_run, tmp_path)


def test_a_wrong_export_never_stands_there(small_run, tmp_path, monkeypatch):
    from cramjax.publishing import saving

    original = saving._cast

    def wrong_cast(name, tensor, dtype):
        return original(name, tensor, dtype) + ("Wi" in name)

    monkeypatch.setattr(saving, "_cast", wrong_cast)
    with pytest.raises(RunFailed, match="does not hold the parameters"):
        export(small_run, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.iterdir())


def finetuned(kind, tasks, tmp_path, **changes):
    glue = grammar.write_glue(tmp_path / "glue")
    protocol = dataclasses.replace(PROTOCOL, settings=dataclasses.replace(SETTINGS, **changes))
    request = FinetuneRequest(
        checkpoint="a/base",
        tasks=tasks,
        data_dir=str(glue),
        out=tmp_path / "ft",
        protocol=protocol,
        n_seeds=1,
        save=True,
    )
    run.Finetuning(request, grammar.model(kind), lambda _: None).run()
    return [tmp_path / "ft" / "models" / task / "point-0" / "seed-0" for task in tasks]


@pytest.mark.slow
def test_a_finetuned_encoder_is_a_classifier(tmp_path, monkeypatch, capsys):
    cola, stsb = finetuned("encoder", ["cola", "stsb"], tmp_path)
    for folder in (cola, stsb):
        out = tmp_path / "out" / folder.parents[1].name
        export(folder, out, Options(verify=True), tell=lambda _: None)

    out = tmp_path / "out" / "cola"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out).eval()
    assert type(model).__name__ == "ModernBertForSequenceClassification"
    assert model.config.id2label == {0: "unacceptable", 1: "acceptable"}

    # The export gives the predictions of the finetuning, from text alone.
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    predictions = []
    for line in (tmp_path / "glue" / "CoLA" / "dev.tsv").read_text().splitlines():
        text = line.split("\t")[-1]
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits
        predictions.append(int(logits.argmax()))
    noted = json.loads((tmp_path / "ft" / "runs" / "cola" / "point-0" / "seed-0.json").read_text())
    assert predictions == noted["predictions"]["cola"]["validation"]

    page = (out / "README.md").read_text()
    assert "| cola | matthews |" in page and "stsb" not in page and "single_as_pair" not in page
    assert "'label': '" in run_code(out, monkeypatch, capsys)
    regression = json.loads((tmp_path / "out" / "stsb" / "config.json").read_text())
    assert regression["problem_type"] == "regression" and regression["id2label"] == {"0": "score"}
    assert "'label': 'score'" in run_code(tmp_path / "out" / "stsb", monkeypatch, capsys)

    # Moved away from its finetuning, the model still exports, without that table.
    moved = tmp_path / "moved"
    cola.rename(moved)
    export(moved, tmp_path / "alone", tell=lambda _: None)
    assert "| cola | matthews |" not in (tmp_path / "alone" / "README.md").read_text()
    with pytest.raises(UserError, match="finetuned for cola"):
        cramjax.fill_mask(cramjax.load(moved), "a [MASK]")


@pytest.mark.slow
def test_a_finetuned_t5_is_a_t5(tmp_path, monkeypatch, capsys):
    (rte,) = finetuned("t5", ["rte"], tmp_path)
    out = tmp_path / "out"
    export(rte, out, Options(verify=True), tell=lambda _: None)
    (architecture,) = json.loads((out / "config.json").read_text())["architectures"]
    assert architecture == "T5ForConditionalGeneration"

    page = (out / "README.md").read_text()
    assert "rte sentence1:" in page and ModelCard(page).data.pipeline_tag == "text2text-generation"
    assert run_code(out, monkeypatch, capsys).strip()


def test_an_unfinished_run_is_described_by_its_metrics(small_run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "environment.json", "metrics.jsonl"):
        (folder / name).write_bytes((small_run / name).read_bytes())
    noted = facts.read_facts(folder, None, 10)
    last = [entry for entry in cli.lines(folder) if entry["step"] <= 10][-1]
    assert noted.spent["steps"] == last["step"] and noted.spent["tokens"] == last["tokens"]

    (tmp_path / "out").mkdir()
    raw = {"architectures": ["BertForMaskedLM"], "model_type": "bert"}
    card.write(tmp_path / "out", noted, raw, name="me/x", license="mit", language="de")
    assert "10 steps" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_to_the_hub_and_back(small_run, tmp_path, monkeypatch):
    """A run is exported, pushed to a branch named by its step, and loaded by its id."""
    with FakeHub(TOKEN) as hub:
        settings = {"HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
        environment = hub.environment(tmp_path / "home") | settings
        command = [cli.sys.executable, "-m", "tools.export_hf"]
        command += ["--checkpoint", str(small_run), "--out", str(tmp_path / "out")]
        command += ["--push_to_hub", "me/small", "--revision", "step-{step}", "--private"]
        done = cli.run(command, **environment)
        assert "/me/small" in done.stdout and TOKEN not in done.stdout + done.stderr
        (*_, commit) = hub.repos["me/small"].branches["step-20"]
        files = {"config.json", "model.safetensors", "README.md", "tokenizer.json"}
        assert files <= set(commit.files)

        # The same with each hour as a branch.
        command = [*command[:4], str(small_run), "--out", str(tmp_path / "hours")]
        command += ["--revisions", "--push_to_hub", "me/hours"]
        cli.run(command, **environment)
        branches = hub.repos["me/hours"].branches
        assert branches.keys() == {"main", "1e-06h"}
        assert all(files <= set(commits[-1].files) for commits in branches.values())
        weights = {commits[-1].files["model.safetensors"].oid for commits in branches.values()}
        assert len(weights) == 2

        code = (
            "import cramjax; model = cramjax.load('me/small@step-20'); "
            "print(cramjax.fill_mask(model, 'anna reads [MASK] .', top_k=1)[0][0][0])"
        )
        loaded = cli.run([cli.sys.executable, "-c", code], **environment)

    (guess,) = cramjax.fill_mask(cramjax.load(tmp_path / "out"), "anna reads [MASK] .", top_k=1)
    assert loaded.stdout.split()[-1] == guess[0][0]


def test_one_command_exports_every_hour_and_the_end(small_run, tmp_path, monkeypatch, capsys):
    pushed = []

    def push(directory, repo_id, *, revision, message, **_):
        pushed.append((directory.name, repo_id, revision, message))
        return f"https://hub/{repo_id}/{revision}"

    monkeypatch.setattr(pushing, "push", push)
    monkeypatch.setattr(pushing, "check", lambda repo_id: TOKEN)
    command = ["--checkpoint", str(small_run), "--out", str(tmp_path / "out"), "--revisions"]
    assert export_hf.main([*command, "--push_to_hub", "me/small"]) == 0
    # The run was never so long as 1,000 hours.
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"main", "1e-06h"}
    first, last = (cramjax.load(tmp_path / "out" / name).params for name in ("1e-06h", "main"))
    jax.tree.map(np.testing.assert_array_equal, first, cramjax.load(small_run, step=1).params)
    with pytest.raises(AssertionError):
        jax.tree.map(np.testing.assert_array_equal, first, last)
    assert [entry[:3] for entry in pushed] == [
        ("main", "me/small", None),
        ("1e-06h", "me/small", "1e-06h"),
    ]
    assert [entry[3].rpartition(" ")[2] for entry in pushed] == ["20", "1"]
    assert "https://hub/me/small/1e-06h" in capsys.readouterr().out


def test_revisions_that_are_not_there_or_named_twice_are_one_sentence(small_run, tmp_path, capsys):
    command = ["--checkpoint", str(small_run), "--out", str(tmp_path / "out"), "--revisions"]
    assert export_hf.main([*command, "--step", "20"]) == 2
    assert "--step: --revisions names the checkpoints itself" in capsys.readouterr().err
    with pytest.raises(UserError, match="no checkpoint is kept for an hour"):
        revisions(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such directory, and the Hub cannot be reached"):
        pretrained.locate("nobody/nothing")
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match="no checkpoint of a run there"):
        pretrained.locate("runs/mine")
