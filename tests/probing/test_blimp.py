"""Reading BLiMP, counting, tables and the picture."""

import json

import numpy as np
import pytest

from cramjax.errors import UserError
from cramjax.probing import blimp, results


def line(paradigm, good="the cats see", bad="the cats sees", field="syntax", **more):
    raw = {
        "sentence_good": good,
        "sentence_bad": bad,
        "field": field,
        "linguistics_term": "agreement",
        "UID": paradigm,
    }
    return json.dumps(raw | {"pairID": "0"} | more)


@pytest.fixture
def suite(tmp_path):
    one = [line("one", good=f"the cats see {n}") for n in "abcd"]
    two = [line("two", good=f"a dog {n}", field="morphology") for n in "ab"]
    (tmp_path / "one.jsonl").write_text("\n".join(one) + "\n")
    (tmp_path / "two.jsonl").write_text("\n".join(two) + "\n")
    return tmp_path


def test_pairs_are_counted_by_paradigm_field_and_over_all(suite):
    pairs = blimp.read(suite)
    scores = np.asarray([[2, 1], [2, 1], [2, 1], [1, 2], [1, 2], [1, 1]], float)
    found = results.accuracies(pairs, scores, -scores)

    assert found["n_pairs"] == 6
    assert found["ties"] == 1
    assert found["paradigms"]["one"]["accuracy"] == 75
    assert found["paradigms"]["one"]["control"] == 25
    assert found["paradigms"]["two"]["accuracy"] == 25
    assert found["fields"]["morphology"]["n"] == 2
    assert found["overall"] == round(100 * 3.5 / 6, 2)
    assert found["mean_of_paradigms"] == 50
    assert "75.0" in results.table(found)
    assert "| one | 75.0 | 25.0 | +50.0 | 4 |" in results.table(found, markdown=True)
    assert found["mean_of_paradigms_control"] == 50
    assert found["terms"]["agreement"]["n"] == 6

    alone = results.accuracies(pairs, scores, None)
    assert not [key for key in alone if key.endswith("_control")]
    assert "control" not in alone["paradigms"]["one"]
    assert "random weights" not in results.table(alone)
    assert "| two | 25.0 | 2 |" in results.table(alone, markdown=True)


def test_a_limit_is_of_every_paradigm(suite):
    assert [pair.paradigm for pair in blimp.read(suite, 1)] == ["one", "two"]


@pytest.mark.parametrize("with_control", [True, False])
def test_the_picture_is_drawn(suite, tmp_path, with_control):
    pairs = blimp.read(suite)
    scores = np.zeros((len(pairs), 2))
    control = scores if with_control else None
    results.draw(results.accuracies(pairs, scores, control), tmp_path / "blimp.png")
    assert (tmp_path / "blimp.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"bad\.jsonl:2: not a line of JSON"),
        (b"", r"bad\.jsonl:2: not a line of JSON"),
        (b"\xff\xfe\x00", r"bad\.jsonl:2: not a line of JSON"),
        (b'{"UID": "x"}', r"bad\.jsonl:2: has no sentence_good; a line of BLiMP has"),
        (b"3", r"bad\.jsonl:2: not a JSON object"),
        (line("one", field=3).encode(), r"bad\.jsonl:2: field is 3; it has to be text"),
        (line("one", good=3).encode(), r"bad\.jsonl:2: sentence_good is 3; it has to be text"),
        (line("one", bad=" ").encode(), r"bad\.jsonl:2: sentence_bad is ' '; it has to be text"),
    ],
)
def test_wrong_lines_are_named(tmp_path, content, message):
    (tmp_path / "bad.jsonl").write_bytes(line("one").encode() + b"\n" + content + b"\n")
    with pytest.raises(UserError, match=message):
        blimp.read(tmp_path)
    # Lines beyond the limit are not read.
    assert len(blimp.read(tmp_path, 1)) == 1


def test_a_folder_without_pairs_is_named(tmp_path):
    with pytest.raises(UserError, match="absent: no such folder"):
        blimp.read(tmp_path / "absent")
    with pytest.raises(UserError, match="no .jsonl files"):
        blimp.read(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match="are empty"):
        blimp.read(tmp_path)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UserError, match=r"folder\.jsonl: cannot be read"):
        blimp.read(tmp_path)


def test_the_real_suite_where_it_is(root):
    folder = root.parent / "shared" / "data" / "blimp"
    if not folder.is_dir():
        pytest.skip("needs the real suite")
    pairs = blimp.read(folder)
    found = results.accuracies(pairs, np.zeros((len(pairs), 2)), None)

    assert {entry["n"] for entry in found["paradigms"].values()} == {1000}
    assert len(found["paradigms"]) == 67
    assert set(found["fields"]) == {"morphology", "semantics", "syntax", "syntax/semantics"}
    assert len(found["terms"]) == 13
    assert pairs[1000].where.endswith("anaphor_gender_agreement.jsonl:1")
