"""Damaged results of a finetuning and damaged files of tasks are named, and no traceback."""

import json
import random
import shutil

import pytest

from cramjax.errors import RunFailed, UserError
from cramjax.finetuning import run
from cramjax.finetuning.protocols import Protocol, Settings
from cramjax.finetuning.request import FinetuneRequest
from cramjax.glue import inputs, local_files, tasks
from tests.faults.test_damaged_models import DAMAGE, STRANGE, files_of, replaced
from tests.finetuning import grammar

SETTINGS = Settings(lr=2e-3, epochs=1, batch_size=16, dropout=0.0, attention_dropout=0.0)
PROTOCOL = Protocol(name="quick", source="tests", settings=SETTINGS, n_seeds=1)
ALL_DAMAGE = (*DAMAGE, "directory", "pipe", "device", "loop")
N_SAMPLED = 14
ROWS = {
    "boolq": {"question": "is it", "passage": "It is.", "label": True, "idx": 0},
    "copa": {
        "premise": "a", "choice1": "b", "choice2": "c", "question": "cause", "label": 1, "idx": 0,
    },
    "multirc": {
        "idx": 0,
        "passage": {
            "text": "A b.",
            "questions": [
                {"question": "c?", "idx": 0, "answers": [{"text": "d", "idx": 0, "label": 1}]}
            ],
        },
    },
    "record": {
        "idx": 0,
        "passage": {"text": "Ann b.", "entities": [{"start": 0, "end": 2}]},
        "qas": [
            {
                "query": "@placeholder c",
                "idx": 0,
                "answers": [{"start": 0, "end": 2, "text": "Ann"}],
            }
        ],
    },
    "wic": {
        "word": "a", "sentence1": "a b", "sentence2": "c a", "idx": 0, "label": True,
        "start1": 0, "start2": 2, "end1": 1, "end2": 3,
    },
    "wsc": {
        "text": "Ann saw her", "idx": 0, "label": True,
        "target": {"span1_index": 0, "span2_index": 2, "span1_text": "Ann", "span2_text": "her"},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    return grammar.write_glue(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="module")
def files(glue, tmp_path_factory):
    """Files of GLUE and of SuperGLUE."""
    folder = tmp_path_factory.mktemp("files")
    shutil.copytree(glue, folder, dirs_exist_ok=True)
    for name, row in ROWS.items():
        (task,) = tasks.find_tasks([name])
        path = local_files.file_of(task, folder, "train")
        path.parent.mkdir()
        path.write_text(json.dumps(row) + "\n")
    return folder


@pytest.fixture(scope="module")
def model():
    return grammar.model()


def finetune(model, glue, out):
    request = FinetuneRequest(
        checkpoint="a/model",
        tasks=["cola"],
        data_dir=str(glue),
        out=out,
        protocol=PROTOCOL,
        n_seeds=1,
    )
    return run.Finetuning(request, model, lambda text: None).run()


@pytest.fixture(scope="module")
def results(model, glue, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    finetune(model, glue, out)
    return out


def damage(whole, folder, number, kind, seed):
    """Copies a folder, damages the file of that number, and returns its path."""
    shutil.copytree(whole, folder)
    path = files_of(folder)[number % len(files_of(folder))]
    if kind in DAMAGE:
        path.write_bytes(DAMAGE[kind](path.read_bytes(), random.Random(seed)))
    else:
        replaced(path, kind)
    return path


def check_results(model, glue, results, folder, number, kind, seed):
    path = damage(results, folder, number, kind, seed)
    try:
        found = finetune(model, glue, folder)
    except (UserError, RunFailed) as error:
        assert path.name in str(error) or "holds runs of another" in str(error)
    else:
        assert found["cola"]["seeds"] == [0]


def check_task(files, folder, number, kind, seed):
    path = damage(files, folder, number, kind, seed)
    for name in ("cola", "stsb", *ROWS):
        (task,) = tasks.find_tasks([name])
        for split in ("train", "validation"):
            if local_files.file_of(task, folder, split) == path:
                read(task, folder, split)


def read(task, folder, split):
    """Reads a file that may be damaged; what it says of it has its name."""
    path = local_files.file_of(task, folder, split)
    try:
        for row in local_files.read(task, folder, split, lambda text: None):
            inputs.samples(task, row)
            inputs.source_text(task, row)
            inputs.target_texts(task, row)
    except UserError as error:
        assert path.name in str(error)


@pytest.mark.parametrize("seed", range(N_SAMPLED))
def test_damaged_results_are_named_or_do_not_matter(model, glue, results, seed, tmp_path):
    kind = ALL_DAMAGE[seed % len(ALL_DAMAGE)]
    number = random.Random(seed).randrange(99)
    check_results(model, glue, results, tmp_path / "out", number, kind, seed)


@pytest.mark.parametrize("seed", range(N_SAMPLED))
def test_damaged_files_of_a_task_are_named_or_do_not_matter(files, seed, tmp_path):
    kind = ALL_DAMAGE[seed % len(ALL_DAMAGE)]
    check_task(files, tmp_path / "files", random.Random(seed).randrange(99), kind, seed)


def places(value, path=()):
    """Yields the path of every value below a value of JSON."""
    inner = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    for key, entry in inner:
        yield (*path, key)
        yield from places(entry, (*path, key))


@pytest.mark.parametrize("name", ROWS)
def test_a_value_of_another_type_is_named_or_does_not_matter(files, name, tmp_path):
    (task,) = tasks.find_tasks([name])
    path = local_files.file_of(task, tmp_path, "train")
    path.parent.mkdir()
    for keys in places(ROWS[name]):
        for value in STRANGE:
            row = json.loads(json.dumps(ROWS[name]))
            holder = row
            for key in keys[:-1]:
                holder = holder[key]
            holder[keys[-1]] = value
            path.write_text(json.dumps(row) + "\n")
            read(task, tmp_path, "train")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL_DAMAGE)
def test_every_file_with_every_damage(model, glue, files, results, kind, tmp_path):
    for seed in range(4):
        for number in range(len(files_of(files))):
            check_task(files, tmp_path / f"glue-{number}-{seed}", number, kind, seed)
        for number in range(len(files_of(results))):
            folder = tmp_path / f"out-{number}-{seed}"
            check_results(model, glue, results, folder, number, kind, seed)
