"""What README and the other pages name exists, and the commands they show are ones the parsers take."""

import re
import shlex

import pytest

from cramjax.config.resolve import resolve

PAGES = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "docs/benchmarks.md",
    "docs/studies/scale_efficiently.md",
    "docs/studies/glue_small.md",
    "docs/studies/growth.md",
    "docs/studies/train_large_compress.md",
)


def commands(root):
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", (root / page).read_text(), re.DOTALL):
            yield from (line for line in block.replace("\\\n", " ").splitlines() if line.strip())


@pytest.mark.parametrize("page", PAGES)
def test_paths_in_backticks_and_links_exist(root, page):
    text = (root / page).read_text()
    named = re.findall(r"`((?:cramjax|configs|tools|tests|docs)/[\w./-]+)`", text) + re.findall(
        r"\]\((?!http)([^)#]+)\)", text
    )
    named += [
        f"cramjax/{path}"
        for path in re.findall(
            r"`((?:training|models|data|optim|parallel|config|objectives)/\w+\.py)`", text
        )
    ]
    assert named
    # A link is relative to its page, a path in backticks to the repository.
    missing = [
        path
        for path in named
        if not ((root / path).exists() or (root / page).parent.joinpath(path).exists())
    ]
    assert not missing


def test_recipes_named_in_commands_resolve_with_their_overrides(root):
    found = 0
    for command in commands(root):
        words = shlex.split(command)
        if "--config" not in words:
            continue
        spec = words[words.index("--config") + 1]
        overrides = [
            word.removeprefix("--config.") for word in words if word.startswith("--config.")
        ]
        resolve(str(root / spec), [text for text in overrides if "=" in text])
        found += 1
    assert found >= 3


def test_every_recipe_stands_in_the_readme(root):
    text = (root / "README.md").read_text()
    assert all(f"configs/{path.name}" in text for path in (root / "configs").glob("*.py"))


def test_names_in_the_way_of_a_batch_exist(root):
    text = (root / "ARCHITECTURE.md").read_text()
    way = text[text.index("## The way of a batch") : text.index("## Storeys")]
    for path, name in re.findall(r"`(\w+/\w+)\.(?!py`)(\w+)`", way):
        source = (root / "cramjax" / f"{path}.py").read_text()
        assert re.search(rf"(def|class) {name}\b", source), f"{path}.{name}"
