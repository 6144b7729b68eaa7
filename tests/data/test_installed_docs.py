"""Docstrings and documentation of this machine: what is found, and what is left out."""

import ast
import pathlib
import pickle
import textwrap
import typing

from cramjax.data import installed_docs
from cramjax.data.installed_docs import InstalledDocs

SENTENCE = (
    "This sentence explains at some length what the thing does and why anybody would want to "
    "have it done. "
)
PROSE = SENTENCE * 3


def drop(reason, where):
    raise AssertionError(f"{reason}: {where}")


def test_docstrings_are_found_by_pattern_as_by_parsing():
    code = pathlib.Path(typing.__file__).read_text()
    wanted = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            is_plain = "\\" not in text and ">>>" not in text
            if is_plain and len(textwrap.dedent(text)) > installed_docs.MIN_CHARS + 20:
                wanted.add("".join(text.split()))

    joined = "".join(installed_docs.docstrings_of(code).split())
    assert len(wanted) > 20
    assert sum(text in joined for text in wanted) >= 0.97 * len(wanted)


def test_strings_that_are_no_docstrings_are_left_out():
    code = f'x = """{PROSE}"""\ndef f():\n    y = """{PROSE}"""\n    return y\n'
    assert installed_docs.docstrings_of(code) == ""

    code = f'def f(\n    a,\n):  # note\n\n    r"""{PROSE}"""\n'
    assert installed_docs.docstrings_of(code).startswith("This sentence")


def test_tables_and_prompts_are_not_prose():
    assert installed_docs.prose_of("a.txt", "1 2 3 4\n" * 100) == ""
    assert installed_docs.prose_of("a.rst", PROSE + "\n>>> code()\n" + PROSE).count(">>>") == 0


def test_parts_are_a_fair_and_stable_sample_of_this_machine():
    source = pickle.loads(pickle.dumps(InstalledDocs(spec="installed-docs", weight=1.0, index=2)))
    parts = source.parts()
    assert parts == source.parts() and parts[0].source == 2

    paths = []
    for part in parts:
        paths += part.paths
    assert len(set(paths)) == len(paths)
    assert not any("/tests/" in path or "__pycache__" in path for path in paths)

    texts = list(source.read(parts[0], drop))
    assert len(texts) > 5 and all(len(text) >= installed_docs.MIN_CHARS for text in texts)


def test_every_folder_of_packages_is_scanned_once_and_this_project_is_left_out(
    tmp_path, monkeypatch
):
    packages = tmp_path / "lib" / "site-packages"
    metadata = ("cramjax-0.1.0.dist-info", "pkg-1.dist-info/licenses")
    for name in ("pkg", "pkg/tests", "cramjax", *metadata):
        folder = packages / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(PROSE)
    (tmp_path / "lib64").symlink_to(tmp_path / "lib")
    (tmp_path / "other" / "dist-packages").mkdir(parents=True)
    (tmp_path / "other" / "dist-packages" / "module.py").write_text(f'"""{PROSE}"""')

    folders = {"stdlib": f"{tmp_path}/none", "purelib": f"{tmp_path}/lib/site-packages"}
    folders["platlib"] = f"{tmp_path}/lib64/site-packages"
    monkeypatch.setattr(installed_docs.sysconfig, "get_paths", lambda: folders)
    imported_from = [f"{tmp_path}/other/dist-packages", f"{tmp_path}/lib"]
    monkeypatch.setattr(installed_docs.sys, "path", imported_from)

    names = []
    for part in InstalledDocs(spec="installed-docs", weight=1.0, index=0).parts():
        names += [path.split("packages/")[1] for path in part.paths]
    assert sorted(names) == ["module.py", "pkg/README.md"]


def test_a_folder_that_cannot_be_listed_is_passed_over(tmp_path):
    assert list(installed_docs.walk(str(tmp_path / "gone"))) == []
