"""Tasks from files as distributed: every column form, every mistake."""

import pytest

from cramjax.errors import UserError
from cramjax.glue import local_files, rows
from cramjax.glue.tasks import SUITES, find_tasks
from tests.glue import distributed

TASKS = [(suite, task) for suite in SUITES for task in SUITES[suite]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {suite: distributed.write(tmp_path_factory.mktemp(suite), suite) for suite in SUITES}


@pytest.mark.parametrize(("suite", "task"), TASKS, ids=lambda value: getattr(value, "name", value))
def test_the_files_as_distributed_are_read(folders, suite, task):
    said = []
    data = rows.open_task(task, str(folders[suite]), said.append, test=True)
    split = "test" if task.first else "train"

    assert data.splits[split][0] == distributed.FIRST_ROWS[suite, task.name]

    tests = [] if task.first else [name.replace("validation", "test") for name in task.splits]
    assert set(data.splits) == {*task.splits, *([] if task.first else ["train"]), *tests}
    assert all("label" not in row for name in tests for row in data.splits[name])
    # A few rows are not what was published, and a warning says so.
    assert len(data.differences) == len(set(data.splits) - set(tests))
    assert any(f"{task.sizes[task.splits[0]]:,} were published" in line for line in said)


def test_lines_end_where_the_file_says(folders):
    (task,) = find_tasks(["cola"])
    found = local_files.read(task, folders["glue"], "train", print)
    assert [row["sentence"] for row in found] == ['He said "go.', "Go\u2028he said."]


def test_broken_lines_of_qqp_are_left_out_and_counted(folders):
    said = []
    (task,) = find_tasks(["qqp"])
    assert len(local_files.read(task, folders["glue"], "train", said.append)) == 1
    assert said == [f"{folders['glue']}/QQP/train.tsv: 1 broken lines left out"]


def test_a_cell_may_be_an_article_and_a_blank_line_may_end_a_file(tmp_path):
    (task,) = find_tasks(["rte"])
    (tmp_path / "RTE").mkdir()
    article = "a" * 140_000
    text = RTE + f"0\t{article}\tb\tentailment\n1\tc\td\tnot_entailment\n\n \n"
    (tmp_path / "RTE" / "train.tsv").write_text(text)
    found = local_files.read(task, tmp_path, "train", print)
    assert [row["sentence1"] for row in found] == [article, "c"]


@pytest.mark.parametrize(
    "line",
    [
        '{"a": ' * 100_000,
        '{"idx": 0, "question": "q", "passage": ["p"], "label": true}',
        '{"idx": {}, "question": "q", "passage": "p", "label": true}',
    ],
)
def test_a_line_of_json_with_other_types_is_named(tmp_path, line):
    (task,) = find_tasks(["boolq"])
    (tmp_path / "BoolQ").mkdir()
    (tmp_path / "BoolQ" / "train.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"train\.jsonl:1: "):
        local_files.read(task, tmp_path, "train", print)


RTE = "index\tsentence1\tsentence2\tlabel\n"
STSB = "index\tsentence1\tsentence2\tscore\n"
# Task, split, content of the file (None: no file), message.
MISTAKES = [
    ("rte", "train.tsv", None, r"no such file \(there: dev\.tsv\); .*as it is distributed"),
    ("rte", "train.tsv", "index\tsentence1\tlabel\n",
     r": has no column 'sentence2' \(found: index, sentence1, label\)"),
    ("rte", "train.tsv", RTE + "0\ta\tb\tmaybe\n", r":2: unknown label 'maybe'"),
    ("rte", "train.tsv", RTE + "0\ta\tb\n", r":2: 3 columns where the header has 4"),
    ("rte", "train.tsv", RTE, "train .*has no rows"),
    ("rte", "train.tsv", "", "has no column"),
    ("rte", "train.tsv", RTE.encode() + b"0\t\xff\tb\tentailment\n", "not UTF-8"),
    ("cola", "train.tsv", "1\tHe left.\n", r":1: 2 columns"),
    ("stsb", "train.tsv", STSB + "0\ta\tb\thigh\n", r"the score 'high' is no number"),
    ("cb", "train.jsonl", "{\n", r":1: not a line of JSON"),
    ("cb", "train.jsonl", "[]\n", r":1: not a JSON object"),
    ("cb", "train.jsonl", '{"idx": 0, "premise": "a", "label": "neutral"}\n',
     r":1: has no 'hypothesis'"),
    ("cb", "train.jsonl", '{"idx": 0, "premise": "a", "hypothesis": "b"}\n',
     "rows without a label"),
    ("cb", "train.jsonl", '{"idx": 0, "premise": "a", "hypothesis": "b", "label": "yes"}\n',
     "unknown label 'yes'"),
    ("multirc", "train.jsonl", '{"idx": 0, "passage": 3}\n', r":1: has no"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "content", "message"), MISTAKES)
def test_mistakes_are_one_sentence_that_names_the_place(tmp_path, name, file, content, message):
    suite, files = "superglue", distributed.SUPERGLUE
    if file.endswith("tsv"):
        suite, files = "glue", distributed.GLUE
    for other, text in files[name].items():
        (tmp_path / other).parent.mkdir(exist_ok=True)
        if "test" not in other:
            (tmp_path / other).write_text(text)

    (task,) = find_tasks([name], suite)
    path = tmp_path / task.folder / file
    path.unlink()
    if content is not None:
        if isinstance(content, str):
            content = content.encode()
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        rows.open_task(task, str(tmp_path), lambda _: None)
    # Messages about a split as a whole name the split instead of its file.
    assert f"{task.folder}/{file}" in str(raised.value) or "the split train" in str(raised.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        rows.open_task(SUITES["glue"][0], str(tmp_path / "none"), print)


def test_without_the_mismatched_set_mnli_goes_on_with_a_warning(folders, tmp_path):
    said = []
    (task,) = find_tasks(["mnli"])
    for name in ("train", "dev_matched"):
        path = tmp_path / "MNLI" / f"{name}.tsv"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((folders["glue"] / "MNLI" / path.name).read_bytes())

    data = rows.open_task(task, str(tmp_path), said.append, test=True)

    assert set(data.splits) == {"train", "validation_matched"}
    assert "validation_mismatched is missing" in data.differences
    assert any("dev_mismatched.tsv" in line for line in said)
    assert any("no submission" in line for line in said)


def test_names_of_tasks():
    chosen = find_tasks(["RTE", "SST-2", "sts-b", "cola"])
    assert [task.name for task in chosen] == ["cola", "sst2", "stsb", "rte"]
    assert len(find_tasks(["glue"])) == 9
    assert [task.name for task in find_tasks(["superglue"])][-2:] == ["axb", "axg"]
    assert find_tasks(["rte", "cb"])[1].suite == "superglue"
    assert find_tasks(["rte"])[0].suite == "glue"
    assert find_tasks(["rte"], "superglue")[0].fields == ("premise", "hypothesis")

    for wrong, message in (
        (["cola", "cb"], "each suite by itself"),
        (["colla"], "unknown; the tasks are cola, sst2"),
    ):
        with pytest.raises(UserError, match=message):
            find_tasks(wrong)


def test_a_name_both_suites_have_is_what_the_files_are(folders):
    for suite in SUITES:
        assert local_files.suite_of("RTE", folders[suite]) == suite
    assert local_files.suite_of("RTE", folders["glue"] / "nowhere") is None


@pytest.mark.parametrize("suite", SUITES)
def test_the_real_files_where_they_are(root, suite):
    folder = root.parent / "shared" / "data" / suite
    if not folder.is_dir():
        pytest.skip("needs the real tasks")
    complete = {"cola", "sst2", "mrpc", "stsb", "rte", "wnli", "cb", "copa"}
    complete |= {"multirc", "wic", "wsc", "axb", "axg"}
    for task in SUITES[suite]:
        if task.name in complete:
            assert rows.open_task(task, str(folder), print).differences == ()
