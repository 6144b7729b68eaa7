"""Reading BLiMP, counting, and the tool as a process."""

import json
import sys

import numpy as np
import pytest

from cramjax.config.errors import UserError
from cramjax.probing import blimp
from tests.e2e import test_main as cli


def line(paradigm, good="the cats see", bad="the cats sees", field="syntax", **more):
    raw = {"sentence_good": good, "sentence_bad": bad, "field": field, "linguistics_term": "agreement", "UID": paradigm}
    return json.dumps(raw | {"pairID": "0"} | more)


@pytest.fixture
def suite(tmp_path):
    (tmp_path / "one.jsonl").write_text("\n".join(line("one", good=f"the cats see {n}") for n in "abcd") + "\n")
    (tmp_path / "two.jsonl").write_text(
        "\n".join(line("two", good=f"a dog {n}", field="morphology") for n in "ab") + "\n"
    )
    return tmp_path


def test_pairs_are_counted_by_paradigm_field_and_over_all(suite):
    pairs = blimp.read(suite)
    scores = np.asarray([[2, 1], [2, 1], [2, 1], [1, 2], [1, 2], [1, 1]], float)
    found = blimp.accuracies(pairs, scores, -scores)
    assert found["n_pairs"] == 6 and found["ties"] == 1
    assert found["paradigms"]["one"]["accuracy"] == 75 and found["paradigms"]["one"]["control"] == 25
    assert found["paradigms"]["two"]["accuracy"] == 25 and found["fields"]["morphology"]["n"] == 2
    assert found["overall"] == round(100 * 3.5 / 6, 2) and found["mean_of_paradigms"] == 50
    assert "75.0" in blimp.table(found) and "| one | 75.0 | 25.0 | 4 |" in blimp.table(found, markdown=True)
    assert "overall_control" not in blimp.accuracies(pairs, scores, None)


def test_a_limit_is_of_every_paradigm(suite):
    assert [pair.paradigm for pair in blimp.read(suite, 1)] == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"bad\.jsonl:1: not a line of JSON"),
        ('{"UID": "x"}', r"bad\.jsonl:1: has no 'sentence_good'"),
        ("3", "has no"),
    ],
)
def test_wrong_lines_are_named(tmp_path, content, message):
    (tmp_path / "bad.jsonl").write_text(content + "\n")
    with pytest.raises(UserError, match=message):
        blimp.read(tmp_path)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="no .jsonl files"):
        blimp.read(tmp_path)


def test_the_tool(suite, small_run, tmp_path):
    workdir = small_run
    tool = [sys.executable, "-m", "tools.probe", "--suite", "blimp", "--data_dir"]
    out = tmp_path / "results" / "blimp.json"
    done = cli.run([*tool, str(suite), "--checkpoint", str(workdir), "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["n_pairs"] == 6 and 0 <= found["overall"] <= 100 and "overall_control" in found
    assert "SYNTAX" in done.stdout and out.with_suffix(".md").stat().st_size and out.with_suffix(".png").stat().st_size
    for wrong, message in (
        ([str(suite), "--checkpoint", str(suite)], "no checkpoint"),
        ([str(workdir / "tokenizer"), "--checkpoint", str(workdir)], "no .jsonl"),
    ):
        failed = cli.run([*tool, *wrong], check=False)
        assert failed.returncode == 2 and message in failed.stderr and "Traceback" not in failed.stderr
