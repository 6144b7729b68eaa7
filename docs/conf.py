"""Builds the pages of docs/ as a site: Markdown by MyST, the API from the docstrings.

The build executes no code of a page and needs no network and no accelerator. It is strict: the
command is in CONTRIBUTING.md.
"""

import pathlib
import re
import sys
import tomllib
import typing

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "cramjax"
author = "the authors of cramjax"
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

# Links to headings are made as GitHub makes them.
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"cramjax {release}"
html_copy_source = False

# One page a room, written into a folder that git ignores.
apidoc_modules = [{"path": "../cramjax", "destination": "api/rooms", "module_first": True}]
# The lazy names of the package have a page of their own.
autodoc_default_options = {"members": True, "member-order": "bysource", "ignore-module-all": True}
autodoc_typehints_format = "short"
# Needed by one source or one peer only, and not installed everywhere.
autodoc_mock_imports = ["tensorflow", "tensorflow_datasets", "torch", "transformers", "IPython"]
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
# With an entry for every function the side bar would take most of the time of a build.
toc_object_entries = False

# Names of other projects have no pages here: their inventories would need a network.
# Neither have private classes of ours.
nitpick_ignore_regex = [("py:.*", r"(?!cramjax\.).*"), ("py:.*", r".*\._\w+")]
# An annotation says `Plan` or `Meter` for the one that its module imports; several modules have
# one.
suppress_warnings = ["ref.python"]

# Pages that are files of the repository's root.
ROOT_PAGES = {
    "index": "README.md",
    "architecture": "ARCHITECTURE.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
}


def _read_page(app, docname, source):
    """Take pages of the root from there, and point links to them at their pages."""
    text = source[0]
    if text.startswith("<!-- root page"):
        path = ROOT / ROOT_PAGES[docname]
        app.env.note_dependency(str(path))
        text = path.read_text(encoding="utf-8")
        # A link of the root is relative to it; this page lies in docs/.
        text = re.sub(r"\]\((?!\w+:|#)(?:docs/)?", "](", text)
        text = re.sub(r"\]\((cramjax|configs|tools|tests|notebooks)/", r"](../\1/", text)
    for name, file in ROOT_PAGES.items():
        text = re.sub(rf"\]\((?:\.\./)*{re.escape(file)}", f"](/{name}.md", text)
    source[0] = text


def _show_as_code(app, what, name, obj, options, lines):
    """Turn a docstring's Markdown into reStructuredText.

    Docstrings are read in editors first. They write `name` for code, as Markdown does, and use
    stars, bars and underscores as they are.
    """
    del app, what, name, obj, options
    text = "\n".join(lines)
    text = "\n\n".join(map(_as_list, text.strip("\n").split("\n\n"))) + "\n"
    text = re.sub(r"(?m)(?<!:):\n\n(?=( +)\S)", _literal_block, text)
    parts = re.split(r"(``.+?``|(?<![:\\])`[^`]+`)", text, flags=re.DOTALL)
    for number, part in enumerate(parts):
        if number % 2 == 0:
            parts[number] = _escaped(part)
        elif not part.startswith("``"):
            # A character behind a literal has to be set apart from it: `row`s.
            behind = parts[number + 1][:1]
            parts[number] = f"`{part}`" + ("\\ " if behind.isalnum() else "")
    lines[:] = "".join(parts).split("\n")


def _as_list(paragraph):
    """Make a list of a paragraph whose lines are entries: "name  what it is", or indented ones."""
    lines = paragraph.split("\n")
    margin = min(_indent(line) for line in lines)
    n_title = next((n for n, line in enumerate(lines) if _indent(line) > margin), 0)
    has_title = n_title > 0 and lines[n_title - 1].endswith(":")
    has_title = has_title and all(_indent(line) > margin for line in lines[n_title:])
    has_columns = bool(re.match(r" *[\w`./]+ {2,}\S", lines[0]))
    # Lists are left as they are, and so are the fields and directives that napoleon writes.
    is_markup = lines[0].lstrip().startswith(("- ", "* ", ":", ".."))
    if is_markup or not (has_title or has_columns):
        return paragraph

    title, entries = ([*lines[:n_title], ""], lines[n_title:]) if has_title else ([], lines)
    margin = min(_indent(line) for line in entries)
    listed = list(title)
    for line in entries:
        text = line[margin:]
        if text.startswith(" "):
            listed.append("  " + text.strip())
        else:
            listed.append("- " + re.sub(r"^`?([\w./]+)`? {2,}", r"`\1`: ", text))
    return "\n".join(listed)


def _indent(line):
    return len(line) - len(line.lstrip())


def _literal_block(match):
    start = match.string.rfind("\n", 0, match.start()) + 1
    line = match.string[start : match.start()]
    is_block = len(match[1]) > _indent(line) and not line.lstrip().startswith((":", ".."))
    return "::\n\n" if is_block else match[0]


def _escaped(text):
    """Escape what is no pair of stars, and all bars and trailing underscores."""
    text = re.sub(
        r"(?<!\\)(?:(\*\*?)(?=[^\s*])[^*\n]+(?<=\S)\1|\*)",
        lambda match: match[0] if match[1] else "\\*",
        text,
    )
    text = re.sub(r"(?<!\\)\|", r"\\|", text)
    return re.sub(r"(?<=\w)_(?!\w)", r"\\_", text)


def _type_variable(app, env, node, contnode):
    """Show a type variable as text: it has no entry to link to."""
    del app, env
    module, _, name = node.get("reftarget", "").rpartition(".")
    value = getattr(sys.modules.get(module), name, None)
    return contnode if isinstance(value, typing.TypeVar) else None


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", _read_page)
    app.connect("missing-reference", _type_variable)
    # After napoleon (500), which writes the fields.
    app.connect("autodoc-process-docstring", _show_as_code, priority=900)
