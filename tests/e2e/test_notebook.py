"""The Colab notebook runs from top to bottom in its own kernel, on CPU with a toy budget."""

import json
import re
import shutil

import pytest

from tests.e2e import test_main as cli
from tests.finetuning import grammar

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")


def read(root):
    return nbformat.read(root / "notebooks" / "cramjax_colab.ipynb", as_version=4)


def with_toy_settings(book, corpus, tmp_path):
    """Returns the notebook with a cell of small settings after its parameters."""
    tags = [cell.metadata.get("tags", ()) for cell in book.cells]
    (place,) = [i for i, names in enumerate(tags) if "parameters" in names]
    settings = [flag.removeprefix("--config.") for flag in cli.SMALL]
    settings += [
        f"data.source=text:{corpus}",
        f"data.cache_dir={corpus.parent / 'prepared'}",
        "log.every_steps=1",
        "budget.hours=None",
        "budget.steps=8",
        "eval.every_fraction=0.5",
    ]
    toy = {
        "SETTINGS": settings,
        "WORKDIR": str(tmp_path / "run"),
        "MASKED": "anna reads [MASK] .",
        "TASK_FILES": str(grammar.write_glue(tmp_path / "glue")),
    }
    source = "\n".join(f"{key} = {value!r}" for key, value in toy.items())
    book.cells.insert(place + 1, nbformat.v4.new_code_cell(source))
    return book


def test_it_is_committed_without_outputs(root):
    for cell in read(root).cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, cell.id


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(root, corpus, tmp_path, monkeypatch):
    book = with_toy_settings(read(root), corpus, tmp_path)
    # A stranger opens it in the folder of the notebook, inside a checkout.
    for name, value in cli.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    resources = {"metadata": {"path": str(root / "notebooks")}}
    nbclient.NotebookClient(book, timeout=240, kernel_name="python3", resources=resources).execute()

    outputs = {cell.id: cell.outputs for cell in book.cells if cell.cell_type == "code"}
    shown = {}
    for name, parts in outputs.items():
        shown[name] = "".join(part.get("text", "") for part in parts)
    pictures = [part for part in outputs["train"] if "image/png" in part.get("data", {})]
    assert len(pictures) == 1 and "eval_loss" in shown["train"]
    assert len(re.findall(r"\d%", shown["fill"])) == 5
    assert "CoLA MCC" in shown["finetune"]
    assert len(re.findall(r"'label': '(?:un)?acceptable', 'score': 0\.\d", shown["classify"])) == 2
    assert "ModernBertForMaskedLM" in shown["export"]
    assert "ModernBertForSequenceClassification" in shown["export"]
    assert "library_name: transformers" in shown["again"]
    assert "nothing was pushed" in shown["push"]

    exported = json.loads((tmp_path / "run-export" / "cola" / "config.json").read_text())
    assert exported["id2label"] == {"0": "unacceptable", "1": "acceptable"}
    assert shutil.which("git") is None or not (root / "notebooks" / "runs").exists()
