"""tools.probe as a process: what it prints and writes, and mistakes."""

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
    """Two paradigms of five pairs in the words of the corpus."""
    folder = tmp_path_factory.mktemp("blimp")
    pairs = {
        "verb_before_thing": [
            (f"anna {verb} {thing} .", f"anna {thing} {verb} .") for verb, thing in THINGS.items()
        ],
        "verb_with_thing": [
            (f"boris {verb} {thing} .", f"boris {verb} chairs .") for verb, thing in THINGS.items()
        ],
    }
    for (paradigm, lines), field in zip(pairs.items(), ("syntax", "syntax_semantics"), strict=True):
        common = {"field": field, "linguistics_term": "order", "UID": paradigm}
        rows = [
            {"sentence_good": good, "sentence_bad": bad, "pairID": str(number)} | common
            for number, (good, bad) in enumerate(lines)
        ]
        (folder / f"{paradigm}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def flags(checkpoint, suite, *more):
    return [
        *TOOL,
        "--checkpoint",
        str(checkpoint),
        "--suite",
        "blimp",
        "--data_dir",
        str(suite),
        *more,
    ]


@pytest.mark.slow
def test_a_run_is_probed(small_run, suite, tmp_path):
    out = tmp_path / "results" / "blimp.json"
    done = cli.run(flags(small_run, suite, "--out", str(out)))
    found = json.loads(out.read_text())
    assert (found["suite"], found["checkpoint"], found["method"]) == (
        "blimp",
        str(small_run),
        "pll",
    )
    assert found["n_pairs"] == 10 and found["pairs_per_s"] > 0 and found["ties"] >= 0
    assert found["paradigms"]["verb_with_thing"].keys() == {
        "accuracy",
        "control",
        "n",
        "field",
        "term",
    }
    assert (
        found["fields"].keys() == {"syntax", "syntax/semantics"}
        and found["terms"]["order"]["n"] == 10
    )
    for column, overall in (("accuracy", "overall"), ("control", "overall_control")):
        assert found[overall] == pytest.approx(
            sum(entry[column] for entry in found["paradigms"].values()) / 2
        )
    assert {path.name for path in out.parent.iterdir()} == {"blimp.json", "blimp.md", "blimp.png"}
    for text in (done.stdout, out.with_suffix(".md").read_text()):
        assert "verb with thing" in text and "random weights" in text and "difference" in text
    assert "random weights: 10 pairs" in done.stderr and "\r" not in done.stderr


def test_the_control_can_be_left_out_and_pairs_limited(small_run, suite):
    done = cli.run(flags(small_run, suite, "--limit", "2", "--no_control"))
    assert "model: 4 pairs" in done.stderr and "random weights" not in done.stdout + done.stderr


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
    failed = cli.run(
        flags(small_run, suite, *changed), check=False
    )  # the last of two equal flags counts
    assert failed.returncode == 2 and message in failed.stderr and failed.stderr.count("\n") == 1
