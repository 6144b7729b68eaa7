"""The page on languages, walked through: a dataset of the Hub becomes a model that fills masks."""

import io
import json
import os
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

import cramjax
from tests.data.hub_stand_in import serve
from tests.data.xquad import paragraphs

FOLDERS = {"de": "deu_Latn", "zh": "cmn_Hani"}
MASKED = {"de": "Die Stadt [MASK] an der Spree.", "zh": "北京是[MASK]国的首都。"}


def dataset(root, language):
    """A dataset with the layout of FineWeb-2, its paragraphs real; skips without the corpus."""
    texts = paragraphs(root, language)
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), file)
    name = f"data/{FOLDERS[language]}/train/000_00000.parquet"
    return {"HuggingFaceFW/fineweb-2": {name: file.getvalue()}}


@pytest.mark.slow
@pytest.mark.parametrize("language", ["zh", "de"], ids=["Chinese", "German"])
def test_from_the_hub_to_a_filled_mask(root, tmp_path, language):
    source = f"hf:HuggingFaceFW/fineweb-2:data/{FOLDERS[language]}/train/*.parquet"
    command = [sys.executable, "-m", "cramjax.main", "--workdir", str(tmp_path / "run")]
    command += ["--config", str(root / "configs" / "bert_1day_modern.py") + ":smoke"]
    keys = {
        "data.language": language,
        "data.source": source,
        "data.cache_dir": str(tmp_path / "data"),
        "data.vocab_size": 4096,
        "budget.steps": 8,
        "eval.every_fraction": 0,
        "log.fill_masks": 0,
    }
    command += [f"--config.{key}={value}" for key, value in keys.items()]
    with serve(dataset(root, language)) as address:
        environment = os.environ | {
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "0",
            "PYTHONPATH": str(root),
        }
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, cwd=tmp_path
        )
    assert done.returncode == 0, done.stderr
    assert f"data.language={language}: wordpiece tokenizer, case kept" in done.stderr

    (folder,) = [
        path for path in (tmp_path / "data").iterdir() if (path / "manifest.json").exists()
    ]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["language"] == language and not manifest["dropped"]
    assert manifest["unknown_token_share"] < 0.005 and manifest["deleted_character_share"] < 0.001

    model = cramjax.load(tmp_path / "run")
    (guesses,) = cramjax.fill_mask(model, MASKED[language], top_k=3)
    assert len(guesses) == 3 and all(word.strip() for word, _ in guesses)
