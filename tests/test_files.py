"""Small files: whole or absent, whatever the disk, a kill, a stranger or another process does."""

import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

from cramjax import files
from cramjax.errors import RunFailed, UserError
from cramjax.files import FileLock
from tests.conftest import ROOT

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


WRITER = """
import sys
from cramjax.files import write_json
for number in range(60):
    write_json(sys.argv[1], {"number": number, "filler": [sys.argv[2]] * 2000})
"""


def refuse(monkeypatch, module, name, number):
    """Let a system call fail with an error."""

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, name, fail)


def test_what_json_does_not_have_is_null(tmp_path):
    values = {"loss": float("nan"), "losses": (1.5, float("inf")), "n": 3, "name": None}
    files.write_json(tmp_path / "a.json", values)
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail) == {
        "loss": None, "losses": [1.5, None], "n": 3, "name": None,
    }  # fmt: skip


def test_a_name_that_is_no_utf_8_is_read_back(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xc3\xa9")
    files.write_json(tmp_path / name, {"dataset": name})
    content = (tmp_path / name).read_text(encoding="utf-8")
    assert json.loads(content) == {"dataset": name} and "é" in content


@pytest.mark.parametrize("left", ["file", "of another user", "link"])
def test_what_a_killed_process_has_left_is_replaced(tmp_path, monkeypatch, left):
    files.write_json(tmp_path / "a.json", {"steps": 1})
    temporaries = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda source, target: temporaries.append(source))
        files.write_json(tmp_path / "a.json", {"steps": 2})
    (temporary,) = temporaries
    if left == "link":
        temporary.unlink()
        temporary.symlink_to(tmp_path / "elsewhere")
    if left == "of another user":
        opened = os.open

        def open_as_another(path, flags, mode=0o777):
            if os.path.lexists(path) and flags & os.O_WRONLY:
                raise PermissionError(errno.EACCES, "Permission denied")
            return opened(path, flags, mode)

        monkeypatch.setattr(os, "open", open_as_another)

    files.write_json(tmp_path / "a.json", {"steps": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"steps": 3}


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path):
    path = tmp_path / "a.json"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], cwd=ROOT) for name in "ab"
    ]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            assert len(set(json.loads(path.read_text())["filler"])) == 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "number, kind", [(errno.ENOSPC, RunFailed), (errno.EDQUOT, RunFailed), (errno.EROFS, UserError)]
)
def test_a_disk_that_takes_nothing_is_one_sentence_and_the_old_file_stays(
    tmp_path, monkeypatch, number, kind
):
    files.write_json(tmp_path / "a.json", {"steps": 1})
    refuse(monkeypatch, os, "fsync", number)
    with pytest.raises(kind, match=rf"a.json: cannot be written \({os.strerror(number)}\)"):
        files.write_json(tmp_path / "a.json", {"steps": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"steps": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_file_system_without_locks_and_syncs_keeps_json_all_the_same(tmp_path, monkeypatch):
    refuse(monkeypatch, fcntl, "flock", errno.ENOTSUP)
    refuse(monkeypatch, os, "fsync", errno.EINVAL)
    refuse(monkeypatch, os, "chmod", errno.EPERM)
    files.write_json(tmp_path / "a.json", {"steps": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"steps": 1}


def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, caplog):
    refuse(monkeypatch, fcntl, "flock", errno.ENOLCK)
    with FileLock(tmp_path / "lock") as lock:
        assert lock.acquire()
    assert len(caplog.records) == 1 and "has no locks (No locks available)" in caplog.text


def test_a_copy_is_an_ordinary_file_that_can_be_replaced(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    for content in (b"one", b"two"):
        source.unlink(missing_ok=True)
        source.write_bytes(content)
        source.chmod(0o444)
        files.copy_file(source, target)
        assert target.read_bytes() == content and os.stat(target).st_mode & 0o200


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "absent"])
def test_what_is_no_regular_file_is_not_copied(tmp_path, kind):
    source = tmp_path / "source"
    if kind == "link":
        (tmp_path / "secret").write_text("secret")
        source.symlink_to(tmp_path / "secret")
    elif kind == "pipe":
        os.mkfifo(source)
    elif kind == "folder":
        source.mkdir()
    with pytest.raises(UserError, match="source: (is a link|is no regular|cannot be read)"):
        files.copy_file(source, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_lock_knows_whether_its_file_was_deleted(tmp_path):
    with FileLock(tmp_path / "lock") as lock:
        assert lock.is_at(tmp_path / "lock")
        (tmp_path / "lock").unlink()
        assert not lock.is_at(tmp_path / "lock")
        (tmp_path / "lock").touch()
        assert not lock.is_at(tmp_path / "lock")


def test_a_file_that_cannot_be_replaced_is_named(tmp_path):
    (tmp_path / "report.md").mkdir()
    with pytest.raises(UserError, match=r"report\.md: cannot be written \(Is a directory\)"):
        with files.replacing(tmp_path / "report.md") as path:
            path.write_text("x")
    with pytest.raises(RunFailed, match=r"other\.md: cannot be written \(No space left"):
        with files.replacing(tmp_path / "other.md"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


def test_one_command_works_in_a_folder_at_a_time(tmp_path):
    with files.alone_in(tmp_path / "out", "--out"):
        with pytest.raises(UserError, match="--out .*out: another command is using it"):
            with files.alone_in(tmp_path / "out", "--out"):
                pass
    with files.alone_in(tmp_path / "out", "--out"):
        pass


def test_types_of_values_are_compared(tmp_path):
    kinds = {"a": (int,), "b.c": (str, type(None))}
    files.check_types({"a": 1}, kinds, "x.json", "restore it")
    for content in ({"a": True}, {"a": 1, "b": {"c": 5}}, {}):
        with pytest.raises(UserError, match=r"x\.json: .* is of another type than .*; restore it"):
            files.check_types(content, kinds, "x.json", "restore it")
