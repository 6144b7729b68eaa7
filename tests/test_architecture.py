"""ARCHITECTURE.md and docs/internals agree with the code: every name, and every room's storey."""

import ast
import re

import pytest
from test_imports import BELOW

PAGES = ("ARCHITECTURE.md", "docs/internals/index.md")


def names(root, text):
    """(path, name) of all that looks like room/module or room/module.name; name may be ""."""
    rooms = "|".join([*BELOW, "cramjax"])
    pattern = rf"(?<![\w/.-])((?:{rooms})/\w+)(?:/(\w+))?(?:\.(\w+))?"
    for path, below, name in re.findall(pattern, text):
        yield (f"{path}/{below}" if below else path), name
    # A room that is one module is named alone: `stop.answered`.
    for room, name in re.findall(rf"`({rooms})\.(\w+)`", text):
        if module_of(root, room):
            yield room, name


def module_of(root, path):
    """Returns the file of a path with or without "cramjax/", or None if there is none."""
    inner = path.removeprefix("cramjax/")
    for folder in ("cramjax", "."):
        file = root / folder / f"{inner}.py"
        if file.exists():
            return file
    return None


def defined(file):
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def storeys(text):
    """Room → number of its storey, of the first picture."""
    picture = re.search(r"## The rooms\n.*?```\n(.*?)```", text, re.DOTALL)
    storey, places = None, {}
    for line in picture[1].splitlines():
        number, rooms = re.match(r" *(\d*) +(\w+(?: · \w+)*)", line).groups()
        storey = int(number) if number else storey
        for room in rooms.split(" · "):
            assert room not in places, f"{room} stands twice"
            places[room] = storey
    return places


@pytest.mark.parametrize("page", PAGES)
def test_names_exist(root, page):
    wrong = []
    n_names = 0
    for path, name in names(root, (root / page).read_text()):
        n_names += 1
        file = module_of(root, path)
        if file is None:
            wrong.append(path)
        elif name not in ("", "py", "json") and name not in defined(file):
            wrong.append(f"{path}.{name}")
    assert not wrong
    assert n_names >= 20


def test_rooms_are_those_of_the_table_of_imports(root):
    assert set(storeys((root / "ARCHITECTURE.md").read_text())) == set(BELOW)


def test_imports_go_to_lower_storeys(root):
    places = storeys((root / "ARCHITECTURE.md").read_text())
    wrong = [
        f"{room} (storey {places[room]}) imports {below} (storey {places[below]})"
        for room, rooms_below in BELOW.items()
        for below in rooms_below
        if places[below] >= places[room]
    ]
    assert not wrong
