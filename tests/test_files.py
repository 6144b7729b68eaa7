"""JSON of ours read from files that are damaged, foreign, or no files at all."""

import os

import pytest

from cramjax import files
from cramjax.errors import UserError

DAMAGED = {
    "empty": b"",
    "cut": b'{"steps": 4',
    "not UTF-8": b'{"steps": "\xff"}',
    "an array": b"[1, 2]",
    "deep": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep and cut": b'{"a": ' * 100_000,
    "a number without end": b'{"a": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_json_is_refused_by_name(kind, tmp_path):
    path = tmp_path / "summary.json"
    path.write_bytes(DAMAGED[kind])
    with pytest.raises(UserError, match=r"summary\.json: .*; delete it$"):
        files.read_json(path, "delete it")


def test_only_regular_files_are_read(tmp_path):
    """A pipe is not waited for, and a device is not read to its end."""
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "device.json").symlink_to("/dev/zero")
    for name in ("folder", "pipe", "device", "absent"):
        with pytest.raises(UserError, match=f"{name}.json: .*; delete it"):
            files.read_json(tmp_path / f"{name}.json", "delete it")


def test_json_of_a_size_that_we_never_write_is_refused_unparsed(tmp_path):
    path = tmp_path / "summary.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole: takes no disk
    with pytest.raises(UserError, match=r"summary\.json: is larger than 32 MB; delete it"):
        files.read_json(path, "delete it")


def test_what_was_written_is_read(tmp_path):
    files.write_json(tmp_path / "a.json", {"name": "é", "n": 3})
    (tmp_path / "link.json").symlink_to("a.json")
    assert files.read_json(tmp_path / "link.json", "") == {"name": "é", "n": 3}
