"""Every name and link on the pages exists, and the commands they show are ones the parsers take."""

import importlib
import re
import shlex

import pytest

from cramjax.config.resolve import resolve

ROOT_PAGES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
# These say what was true when they were written; paths in them may be gone.
HISTORY = ("CHANGELOG.md", "docs/decisions/")
MAIN = "cramjax.main"


def pages(root):
    yield from ROOT_PAGES
    for path in sorted((root / "docs").rglob("*.md")):
        if not {"_build", "rooms"} & set(path.parts):
            yield str(path.relative_to(root))


def commands(root):
    """(page, words) of every command in a shell block, as the shell would split it."""
    for page in pages(root):
        for block in re.findall(r"```bash\n(.*?)```", (root / page).read_text(), re.DOTALL):
            for words in _split(block.replace("\\\n", "")):
                yield page, words


def _split(block):
    # A quoted value may go over several lines, so the block is split as a whole.
    lexer = shlex.shlex(block, posix=True, punctuation_chars=";&|\n")
    lexer.whitespace = " \t"
    lexer.whitespace_split = True
    words = []
    for word in lexer:
        if set(word) <= set(";&|\n"):
            yield words
            words = []
        else:
            words.append(word)
    yield words


def python_modules(root):
    """(page, module, arguments) of every `python -m` of ours."""
    for page, words in commands(root):
        if "-m" not in words or not any(word.startswith("python") for word in words):
            continue
        module, *arguments = words[words.index("-m") + 1 :]
        if module == MAIN or module.startswith("tools."):
            yield page, module, arguments


def test_links_lead_to_files(root):
    missing = []
    for page in pages(root):
        for link in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", (root / page).read_text()):
            if not (root / page).parent.joinpath(link).exists():
                missing.append(f"{page}: {link}")
    assert not missing


def test_paths_in_backticks_exist(root):
    pattern = r"`((?:cramjax|configs|tools|tests|docs|notebooks)/[\w./-]+)`"
    missing = []
    for page in pages(root):
        if page.startswith(HISTORY):
            continue
        for path in re.findall(pattern, (root / page).read_text()):
            # A module may be named without its suffix.
            if not ((root / path).exists() or (root / f"{path}.py").exists()):
                missing.append(f"{page}: {path}")
    assert not missing


def test_links_to_headings_lead_to_one(root):
    missing = []
    for page in pages(root):
        for link, heading in re.findall(
            r"\]\((?!\w+:)([^)#\s]*)#([^)\s]+)\)", (root / page).read_text()
        ):
            target = (root / page).parent / link if link else root / page
            titles = re.findall(r"(?m)^#+ (.*)$", target.read_text())
            # As GitHub and MyST make them.
            anchors = [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles]
            if heading not in anchors:
                missing.append(f"{page}: {link}#{heading}")
    assert not missing


def test_recipes_named_in_commands_resolve_with_their_overrides(root):
    n_commands = 0
    for page, _, words in python_modules(root):
        if "--config" not in words:
            continue
        overrides = [
            word.removeprefix("--config.") for word in words if word.startswith("--config.")
        ]
        spec = words[words.index("--config") + 1]
        try:
            resolve(str(root / spec), overrides)
        except Exception as error:
            raise AssertionError(f"{page}: {spec} {overrides}") from error
        n_commands += 1
    assert n_commands >= 30


def test_flags_in_commands_are_flags_of_their_tools(root, capsys):
    helps = {}
    wrong = []
    for page, module, words in python_modules(root):
        if module not in helps:
            with pytest.raises(SystemExit):
                importlib.import_module(module).main(["--help"])
            helps[module] = set(re.findall(r"--\w+", capsys.readouterr().out))
        for word in words:
            flag = word.partition("=")[0]
            is_override = flag.startswith("--config.")
            if flag.startswith("--") and not is_override and flag not in helps[module]:
                wrong.append(f"{page}: {module} {flag}")
    assert not wrong
    assert len(helps) >= 10


def test_every_recipe_stands_in_the_readme(root):
    text = (root / "README.md").read_text()
    assert all(f"configs/{path.name}" in text for path in (root / "configs").glob("*.py"))


def test_the_readme_fits_a_few_screens(root):
    assert len((root / "README.md").read_text().splitlines()) <= 150


def test_every_decision_stands_in_the_index(root):
    folder = root / "docs/decisions"
    index = (folder / "index.md").read_text()
    missing = [path.name for path in folder.glob("0*.md") if f"]({path.name})" not in index]
    assert not missing
