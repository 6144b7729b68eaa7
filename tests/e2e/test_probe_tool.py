"""tools.probe as a process: its output, its files, and mistakes."""

import json
import sys

import pytest

from tests.e2e import test_main as cli

TOOL = [sys.executable, "-m", "tools.probe"]
THINGS = {
    "reads": "books",
    "writes": "letters",
    "paints": "houses",
    "builds": "boats",
    "sells": "clocks",
}


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Writes two paradigms of five pairs in the words of the corpus."""
    folder = tmp_path_factory.mktemp("blimp")
    before, without = [], []
    for verb, thing in THINGS.items():
        before.append((f"anna {verb} {thing} .", f"anna {thing} {verb} ."))
        without.append((f"boris {verb} {thing} .", f"boris {verb} chairs ."))
    write_paradigm(folder, "verb_before_thing", "syntax", before)
    write_paradigm(folder, "verb_with_thing", "syntax_semantics", without)
    return folder


def write_paradigm(folder, name, field, pairs):
    lines = []
    for number, (good, bad) in enumerate(pairs):
        row = {"sentence_good": good, "sentence_bad": bad, "pairID": str(number)}
        row |= {"field": field, "linguistics_term": "order", "UID": name}
        lines.append(json.dumps(row) + "\n")
    (folder / f"{name}.jsonl").write_text("".join(lines))


def flags(checkpoint, suite, *more):
    return [*TOOL, f"--checkpoint={checkpoint}", "--suite=blimp", f"--data_dir={suite}", *more]


@pytest.mark.slow
def test_a_run_is_probed(small_run, suite, tmp_path):
    out = tmp_path / "results" / "blimp.json"
    done = cli.run(flags(small_run, suite, "--out", str(out)))
    found = json.loads(out.read_text())

    assert found["suite"] == "blimp"
    assert found["checkpoint"] == str(small_run)
    assert found["method"] == "pll"
    assert found["n_pairs"] == 10
    assert found["pairs_per_s"] > 0
    assert found["ties"] >= 0
    keys = {"accuracy", "control", "n", "field", "term"}
    assert found["paradigms"]["verb_with_thing"].keys() == keys
    assert found["fields"].keys() == {"syntax", "syntax/semantics"}
    assert found["terms"]["order"]["n"] == 10

    for column, overall in (("accuracy", "overall"), ("control", "overall_control")):
        values = [entry[column] for entry in found["paradigms"].values()]
        assert found[overall] == pytest.approx(sum(values) / 2)

    assert {path.name for path in out.parent.iterdir()} == {"blimp.json", "blimp.md", "blimp.png"}

    for text in (done.stdout, out.with_suffix(".md").read_text()):
        assert "verb with thing" in text
        assert "random weights" in text
        assert "difference" in text

    assert "random weights: 10 pairs" in done.stderr
    assert "\r" not in done.stderr


@pytest.mark.slow
def test_the_control_can_be_left_out_and_pairs_limited(small_run, suite):
    done = cli.run(flags(small_run, suite, "--limit", "2", "--no_control"))
    assert "model: 4 pairs" in done.stderr
    assert "random weights" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--suite", "blip"), "--suite blip: unknown; there is blimp"),
        (("--data_dir", "nowhere"), "nowhere: no such folder"),
        (("--checkpoint", "docs"), "no checkpoint"),
        (("--out", "docs"), "--out docs: is a folder; give a file"),
        (("--out", "blimp.md"), "--out blimp.md: has to be a file of JSON"),
        (("--out", "README.md/blimp.json"), "its folder cannot be made"),
    ],
)
def test_mistakes_are_one_sentence(small_run, suite, changed, message):
    # The last of two equal flags counts.
    failed = cli.run(flags(small_run, suite, *changed), check=False)
    assert failed.returncode == 2
    assert message in failed.stderr
    assert failed.stderr.count("\n") == 1
