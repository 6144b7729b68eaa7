"""A compression as a whole, in this process: files, resuming, true sizes, export, and mistakes."""

import contextlib
import dataclasses
import json
import pathlib
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import cramjax
from cramjax import files
from cramjax.checkpoints import packed
from cramjax.compress import candidates
from cramjax.compress.candidates import load_candidates
from cramjax.compress.plan import CompressionPlan, CompressionRequest
from cramjax.compress.run import CompressionRun
from cramjax.errors import RunFailed, UserError
from cramjax.finetuning import run as finetuning
from cramjax.finetuning.protocols import Protocol, Settings
from cramjax.finetuning.request import FinetuneRequest
from cramjax.models import encoder
from cramjax.models.int8 import Int8
from cramjax.models.layers import FLOAT32
from cramjax.publishing.export import export
from cramjax.tuning import devices
from tests.finetuning import grammar
from tools import compress, finetune

SETTINGS = Settings(lr=2e-3, epochs=2, batch_size=16, dropout=0.0, attention_dropout=0.0)


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    return grammar.write_glue(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="module")
def finetuned(glue, tmp_path_factory):
    """A model finetuned for CoLA, as a folder."""
    out = tmp_path_factory.mktemp("finetuned")
    protocol = Protocol(name="quick", source="tests", settings=SETTINGS, n_seeds=1)
    request = FinetuneRequest(
        checkpoint="a/model",
        tasks=["cola"],
        data_dir=str(glue),
        out=out,
        protocol=protocol,
        n_seeds=1,
        save=True,
    )
    finetuning.Finetuning(request, grammar.model(), lambda text: None).run()
    return out / "models" / "cola" / "point-0" / "seed-0"


def compressed(checkpoint, glue, out, **plan):
    said = []
    request = CompressionRequest(
        checkpoints=[str(checkpoint)],
        task=None,
        data_dir=str(glue),
        out=out,
        plan=CompressionPlan(**{"epochs": 1} | plan),
    )
    found = CompressionRun(request, load_candidates(request, said.append), said.append).run()
    return found, said


@pytest.fixture(scope="module")
def whole(finetuned, glue, tmp_path_factory):
    out = tmp_path_factory.mktemp("compressed")
    return out, *compressed(finetuned, glue, out, shares=(0.5, 0.0), bits=(32, 4))


@pytest.mark.parametrize("n_bytes", [100, 20_000])
def test_a_full_disk_is_an_error_of_the_system_or_a_sentence(finetuned, glue, tmp_path, n_bytes):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with contextlib.ExitStack() as stack:
        # A limit of the size of files, whose signal Python ignores, stands in for a full disk.
        stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
        with pytest.raises((OSError, RunFailed), match="[Ff]ile too large"):
            compressed(finetuned, glue, tmp_path, shares=(0.0,), bits=(32,))


def test_every_point_is_scored_as_it_lies_on_disk(whole, finetuned):
    out, found, said = whole
    assert json.loads((out / "pareto.json").read_text()) == found
    assert (out / "pareto.png").stat().st_size
    points = [(entry["prune"], entry["bits"]) for entry in found]
    assert points == [(0, 32), (0, 4), (0.5, 32), (0.5, 4)]
    keys = "model prune bits bytes metric value loss nonzero params latency"
    assert set(keys.split()) <= found[0].keys()

    sizes = [entry["bytes"] for entry in found]

    assert sizes[3] < sizes[1] < sizes[2] < sizes[0]

    for entry in found:
        folder = out / entry["folder"]
        assert entry["bytes"] == sum(
            (folder / name).stat().st_size for name in (packed.FILE, packed.INDEX)
        )
        model = cramjax.load(folder)
        assert model.finetuned["task"] == "cola"
        assert model.config.n_layers == 2
        counted = jax.tree.leaves(model.params)
        assert entry["nonzero"] == sum(int((leaf != 0).sum()) for leaf in counted)
        assert set(entry["latency"]) == {"batch_1", "batch_32"}
        assert entry["latency"]["batch_1"]["p50_ms"] > 0

    whole_params = cramjax.load(out / found[0]["folder"]).params
    original = cramjax.load(finetuned).params
    jax.tree.map(np.testing.assert_array_equal, whole_params, original)

    pruned = flatten_dict(cramjax.load(out / found[2]["folder"]).params, sep="/")
    kernels = [leaf for path, leaf in pruned.items() if "layers" in path and leaf.ndim > 2]
    zeros = sum(int((leaf == 0).sum()) for leaf in kernels) / sum(leaf.size for leaf in kernels)
    # Half of all prunable weights are zero, with those of the head among them.
    assert 0.4 < zeros < 0.6
    assert found[1]["loss"] is not None
    assert any("prune 0.5, 4 bits" in line for line in said)


@pytest.mark.slow
def test_it_goes_on_where_it_was_and_gives_the_same_bytes(whole, finetuned, glue, tmp_path):
    out, found, _ = whole
    first, said = compressed(finetuned, glue, tmp_path / "parts", shares=(0.0,), bits=(4,))
    assert [entry["bits"] for entry in first] == [4]

    again, said = compressed(finetuned, glue, tmp_path / "parts", shares=(0.0, 0.5), bits=(32, 4))
    assert [line[:4] for line in said if "bits:" in line] == ["1/2 ", "2/2 "]
    assert [entry["value"] for entry in again] == [entry["value"] for entry in found]

    for entry in found:
        for name in (packed.FILE, packed.INDEX):
            one = out / entry["folder"] / name
            other = tmp_path / "parts" / entry["folder"] / name
            assert one.read_bytes() == other.read_bytes()

    # A model with a bit that flipped is missing; the others stay.
    hurt = tmp_path / "parts" / found[1]["folder"] / packed.FILE
    whole_bytes = hurt.read_bytes()
    hurt.write_bytes(whole_bytes[:-1] + bytes([whole_bytes[-1] ^ 1]))
    compressed(finetuned, glue, tmp_path / "parts", shares=(0.0, 0.5), bits=(32, 4))
    assert hurt.read_bytes() == whole_bytes

    with pytest.raises(UserError, match="holds runs of another plan"):
        compressed(
            finetuned, glue, tmp_path / "parts", shares=(0.0,), bits=(4,), granularity="tensor"
        )


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"structured": True}, marks=pytest.mark.slow),
        pytest.param(
            {"qat_epochs": 1, "granularity": "group", "scope": "matrix"}, marks=pytest.mark.slow
        ),
    ],
)
def test_other_ways(finetuned, glue, tmp_path, options):
    found, _ = compressed(finetuned, glue, tmp_path / "out", shares=(0.5,), bits=(32, 3), **options)
    assert found[1]["bytes"] < found[0]["bytes"]
    assert np.isfinite(found[1]["value"])

    folder = tmp_path / "out" / found[1]["folder"]
    model = cramjax.load(folder)
    if "structured" in options:
        assert (model.config.n_heads, model.config.pruned_heads, model.config.d_ff) == (1, 1, 24)
        leaves = jax.tree.leaves(cramjax.load(finetuned).params)
        assert found[0]["params"] < 0.9 * sum(leaf.size for leaf in leaves)
    tokens = jnp.asarray(np.random.default_rng(0).integers(5, 50, (2, 9)))
    export(folder, tmp_path / "hf", tell=lambda text: None)

    assert (
        "50% of the weights pruned, quantised to 3 bits"
        in (tmp_path / "hf" / "README.md").read_text()
    )

    stock = cramjax.load(tmp_path / "hf")
    states = []
    for one in (model, stock):
        params = {"encoder": one.params["encoder"]}
        states.append(np.asarray(encoder.encode(one.config, FLOAT32, params, tokens)))
    np.testing.assert_allclose(states[0], states[1], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def judged(small_run, tmp_path_factory):
    """A run of pretraining, compressed."""
    out = tmp_path_factory.mktemp("judged")
    return out, *compressed(small_run, None, out, shares=(0.0, 0.3), bits=(32, 8))


@pytest.mark.slow
def test_a_run_is_judged_by_its_text(judged, small_run, tmp_path):
    out, found, said = judged
    assert {entry["metric"] for entry in found} == {"heldout_loss"}

    summary = json.loads((small_run / "summary.json").read_text())
    assert abs(found[0]["value"] - summary["eval_loss"]) < 1e-5
    assert found[1]["value"] - found[0]["value"] < 0.05
    assert "not finetuned" in said[0]

    export(out / found[3]["folder"], tmp_path / "hf", tell=lambda text: None)


@pytest.mark.slow
def test_bytes_stay_bytes_where_a_device_is_faster_with_them(judged, tmp_path, monkeypatch):
    out, found, _ = judged
    folder = out / found[1]["folder"]
    monkeypatch.setattr(packed, "LEAST_NUMBERS", 0)
    monkeypatch.setattr(devices, "_cpu_flags", lambda: {"avx2"})

    def n_whole(model):
        return sum(isinstance(leaf, Int8) for leaf in flatten_dict(model.params).values())

    whole, floats = cramjax.load(folder), cramjax.load(folder, dequantize=True)

    assert n_whole(whole) > 4
    assert n_whole(floats) == 0

    text = "the [MASK] of"
    (ours,), (theirs,) = (cramjax.fill_mask(model, text) for model in (whole, floats))

    assert [word for word, _ in ours][:1] == [word for word, _ in theirs][:1]

    np.testing.assert_allclose([p for _, p in ours], [p for _, p in theirs], rtol=0.1)
    export(folder, tmp_path / "hf", tell=lambda text: None)
    monkeypatch.setattr(devices, "_cpu_flags", lambda: {"avx512_bf16"})

    assert n_whole(cramjax.load(folder)) == 0


@pytest.mark.slow
def test_a_t5_and_two_models_in_one_picture(glue, tmp_path):
    model = grammar.model("t5")
    folder = tmp_path / "t5"
    settings = dataclasses.replace(SETTINGS, optimizer="adafactor", batch_size=16)
    protocol = Protocol(name="quick", source="tests", settings=settings, n_seeds=1)
    for seed in range(2):
        request = FinetuneRequest(
            checkpoint="a/model",
            tasks=["cola"],
            data_dir=str(glue),
            out=folder / f"run{seed}",
            protocol=protocol,
            n_seeds=1,
            save=True,
        )
        finetuning.Finetuning(request, model, lambda text: None).run()

    saved = pathlib.Path("models", "cola", "point-0", "seed-0")
    request = CompressionRequest(
        checkpoints=[str(folder / f"run{seed}" / saved) for seed in range(2)],
        task="cola",
        data_dir=str(glue),
        out=tmp_path / "out",
        plan=CompressionPlan(shares=(0.0, 0.5), bits=(32, 8), structured=True, n_seeds=2),
    )
    found = CompressionRun(request, load_candidates(request, print), print).run()

    assert len({entry["model"] for entry in found}) == 2
    assert len(found) == 8
    assert len(found[0]["values"]) == 2
    assert cramjax.load(tmp_path / "out" / found[2]["folder"]).config.n_heads == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--bits", "5"), "--bits 5: must be 32, or one of 2, 3, 4, 6, 8"),
        (("--prune", "1.0"), "--prune 1: must be a share from 0 to below 1; at 1 nothing is left"),
        (("--prune", "0.5,0.5"), "--prune: a value stands there twice"),
        (("--scope", "layer"), "--scope layer: must be one of global, matrix"),
        (("--task", "rte"), "is finetuned for cola; leave --task out"),
        (("--data_dir", "nowhere"), "nowhere"),
        (("--set", "optimizer=muon"), "optimizer=muon: moves weights that are pruned"),
        (("--checkpoint", "."), "no checkpoint of a run there"),
    ],
)
def test_mistakes_are_one_sentence(finetuned, glue, tmp_path, capsys, flags, message):
    data = () if "--data_dir" in flags else ("--data_dir", str(glue))
    arguments = ["--checkpoint", str(finetuned), *data, "--out", str(tmp_path / "out"), *flags]
    assert compress.main(arguments) == 2
    said = capsys.readouterr().err

    assert message in said
    assert "Traceback" not in said


def test_a_second_command_in_the_same_folder_is_refused(finetuned, glue, tmp_path, capsys):
    common = ["--data_dir", str(glue), "--out", str(tmp_path)]
    with files.alone_in(tmp_path, "--out"):
        assert compress.main(["--checkpoint", str(finetuned), *common]) == 2
        assert finetune.main(["--checkpoint", str(finetuned), "--task", "rte", *common]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.startswith(f"error: --out {tmp_path}: another command") for line in said] == [
        True,
        True,
    ]


def test_a_model_without_task_or_text_says_what_it_lacks(small_run, finetuned, tmp_path, capsys):
    export(small_run, tmp_path / "hf", tell=lambda text: None)
    out = ("--out", str(tmp_path / "out"))
    for checkpoint, message in (
        (tmp_path / "hf", "neither finetuned nor a run with its text; give --task and --data_dir"),
        (finetuned, "--data_dir: give the folder with the data of cola"),
    ):
        assert compress.main(["--checkpoint", str(checkpoint), *out]) == 2
        assert message in capsys.readouterr().err

    assert compress.main(["--checkpoint", str(small_run), *out, "--structured"]) == 2
    assert "is not finetuned and nothing would repair it" in capsys.readouterr().err


def test_data_with_other_labels_are_refused(finetuned, glue, tmp_path, monkeypatch):
    model = cramjax.load(finetuned)
    notes = model.finetuned | {"labels": ["acceptable", "unacceptable"]}
    other = dataclasses.replace(model, finetuned=notes)
    monkeypatch.setattr(candidates.inference, "load", lambda *_, **__: other)
    message = (
        "is finetuned for the labels acceptable, unacceptable, and the data of cola have "
        "unacceptable, acceptable; give the data"
    )
    with pytest.raises(UserError, match=message):
        compressed(finetuned, glue, tmp_path, shares=(0.0,), bits=(32,))


@pytest.mark.parametrize("flag", ["--bits", "--prune"])
def test_lists_of_words_are_a_usage_error(finetuned, tmp_path, capsys, flag):
    with pytest.raises(SystemExit) as ended:
        compress.main(["--checkpoint", str(finetuned), "--out", str(tmp_path), flag, "8,many"])
    assert ended.value.code == 2
    assert f"{flag}: 8,many: must be numbers with commas" in capsys.readouterr().err
