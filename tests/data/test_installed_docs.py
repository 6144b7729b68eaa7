import pickle

from cramjax.data import installed_docs
from cramjax.data.installed_docs import InstalledDocs

PROSE = (
    "This sentence explains at some length what the thing does and why anybody would want to have it done. "
    * 3
)


def drop(reason, where):
    raise AssertionError(f"{reason}: {where}")


def test_docstrings_are_found_by_pattern_as_by_parsing():
    import ast
    import pathlib
    import textwrap
    import typing

    path = pathlib.Path(typing.__file__)
    code = path.read_text()
    nodes = [
        node
        for node in ast.walk(ast.parse(code))
        if hasattr(node, "body") and isinstance(node.body, list)
    ]
    wanted = {
        "".join(text.split())
        for node in nodes
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and (text := ast.get_docstring(node)) and "\\" not in text
        and len(textwrap.dedent(text)) > installed_docs.MIN_CHARS + 20 and ">>>" not in text
    }  # fmt: skip
    found = "".join(installed_docs._docstrings(code).split())
    assert len(wanted) > 20
    assert sum(text in found for text in wanted) >= 0.97 * len(wanted)


def test_strings_that_are_no_docstrings_are_left_out():
    code = f'x = """{PROSE}"""\ndef f():\n    y = """{PROSE}"""\n    return y\n'
    assert installed_docs._docstrings(code) == ""
    assert installed_docs._docstrings(
        f'def f(\n    a,\n):  # note\n\n    r"""{PROSE}"""\n'
    ).startswith("This sentence")


def test_tables_and_prompts_are_not_prose():
    assert installed_docs._document("a.txt", "1 2 3 4\n" * 100) == ""
    assert installed_docs._document("a.rst", PROSE + "\n>>> code()\n" + PROSE).count(">>>") == 0


def test_parts_are_a_fair_and_stable_sample_of_this_machine():
    source = pickle.loads(pickle.dumps(InstalledDocs(spec="installed-docs", weight=1.0, index=2)))
    parts = source.parts()
    assert parts == source.parts() and parts[0].source == 2
    assert len({path for part in parts for path in part.paths}) == sum(
        len(part.paths) for part in parts
    )
    texts = list(source.read(parts[0], drop))
    assert len(texts) > 5 and all(len(text) >= installed_docs.MIN_CHARS for text in texts)
    assert not any(
        "/tests/" in path or "__pycache__" in path for part in parts for path in part.paths
    )


def test_every_folder_of_packages_is_scanned_once_and_this_project_is_left_out(
    tmp_path, monkeypatch
):
    for name in (
        "pkg",
        "pkg/tests",
        "cramjax",
        "cramjax-0.1.0.dist-info",
        "pkg-1.dist-info/licenses",
    ):
        folder = tmp_path / "lib" / "site-packages" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(PROSE)
    (tmp_path / "lib64").symlink_to(tmp_path / "lib")
    (tmp_path / "other" / "dist-packages").mkdir(parents=True)
    (tmp_path / "other" / "dist-packages" / "module.py").write_text(f'"""{PROSE}"""')
    folders = {"stdlib": f"{tmp_path}/none", "purelib": f"{tmp_path}/lib/site-packages"}
    folders["platlib"] = f"{tmp_path}/lib64/site-packages"
    monkeypatch.setattr(installed_docs.sysconfig, "get_paths", lambda: folders)
    monkeypatch.setattr(
        installed_docs.sys, "path", [f"{tmp_path}/other/dist-packages", f"{tmp_path}/lib"]
    )
    source = InstalledDocs(spec="installed-docs", weight=1.0, index=0)
    found = [path.split("packages/")[1] for part in source.parts() for path in part.paths]
    assert sorted(found) == ["module.py", "pkg/README.md"]


def test_a_folder_that_cannot_be_listed_is_passed_over(tmp_path):
    assert list(installed_docs.walk(str(tmp_path / "gone"))) == []
