"""The Colab notebook from top to bottom in a kernel of its own, on CPU with a toy budget."""

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


def test_it_is_committed_without_outputs(root):
    for cell in read(root).cells:
        assert cell.cell_type != "code" or (not cell.outputs and cell.execution_count is None), (
            cell.id
        )


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(root, corpus, tmp_path, monkeypatch):
    book = read(root)
    (at,) = [
        i for i, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", ())
    ]
    settings = [flag.removeprefix("--config.") for flag in cli.SMALL]
    settings = [
        *settings,
        f"data.source=text:{corpus}",
        f"data.cache_dir={corpus.parent / 'prepared'}",
        "log.every_steps=1",
    ]
    toy = {
        "SETTINGS": [*settings, "budget.hours=None", "budget.steps=8", "eval.every_fraction=0.5"],
        "WORKDIR": str(tmp_path / "run"),
        "MASKED": "anna reads [MASK] .",
        "TASK_FILES": str(grammar.write_glue(tmp_path / "glue")),
    }
    book.cells.insert(
        at + 1,
        nbformat.v4.new_code_cell("\n".join(f"{key} = {value!r}" for key, value in toy.items())),
    )
    # As a stranger opens it: in the folder of the notebook, inside a checkout.
    for name, value in cli.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    client = nbclient.NotebookClient(
        book,
        timeout=240,
        kernel_name="python3",
        resources={"metadata": {"path": str(root / "notebooks")}},
    )
    client.execute()
    cells = {cell.id: cell for cell in book.cells if cell.cell_type == "code"}
    shown = {
        name: "".join(output.get("text", "") for output in cell.outputs)
        for name, cell in cells.items()
    }
    pictures = [
        output for output in cells["train"].outputs if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 1 and "eval_loss" in shown["train"]
    assert len(re.findall(r"\d%", shown["fill"])) == 5
    assert "CoLA MCC" in shown["finetune"]
    assert (
        "ModernBertForMaskedLM" in shown["export"]
        and "ModernBertForSequenceClassification" in shown["export"]
    )
    assert "library_name: transformers" in shown["again"] and "nothing was pushed" in shown["push"]
    card = json.loads((tmp_path / "run-export" / "cola" / "config.json").read_text())
    assert card["id2label"] == {"0": "unacceptable", "1": "acceptable"}
    assert shutil.which("git") is None or not (root / "notebooks" / "runs").exists()
