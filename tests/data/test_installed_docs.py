import pickle

from cramjax.data import installed_docs
from cramjax.data.installed_docs import InstalledDocs

PROSE = "This sentence explains at some length what the thing does and why anybody would want to have it done. " * 3


def drop(reason, where):
    raise AssertionError(f"{reason}: {where}")


def test_docstrings_are_found_by_pattern_as_by_parsing():
    import ast
    import pathlib
    import textwrap
    import typing

    path = pathlib.Path(typing.__file__)
    code = path.read_text()
    nodes = [node for node in ast.walk(ast.parse(code)) if hasattr(node, "body") and isinstance(node.body, list)]
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
    assert installed_docs._docstrings(f'def f(\n    a,\n):  # note\n\n    r"""{PROSE}"""\n').startswith("This sentence")


def test_tables_and_prompts_are_not_prose():
    assert installed_docs._document("a.txt", "1 2 3 4\n" * 100) == ""
    assert installed_docs._document("a.rst", PROSE + "\n>>> code()\n" + PROSE).count(">>>") == 0


def test_parts_are_a_fair_and_stable_sample_of_this_machine():
    source = pickle.loads(pickle.dumps(InstalledDocs(spec="installed-docs", weight=1.0, index=2)))
    parts = source.parts()
    assert parts == source.parts() and parts[0].source == 2
    assert len({path for part in parts for path in part.paths}) == sum(len(part.paths) for part in parts)
    texts = list(source.read(parts[0], drop))
    assert len(texts) > 5 and all(len(text) >= installed_docs.MIN_CHARS for text in texts)
    assert not any("/tests/" in path or "__pycache__" in path for part in parts for path in part.paths)
