"""Puts a page together: sections from what the paths hold, then one file of HTML.

The page loads nothing. Its data stand in it as JSON, and its policy allows its two scripts alone.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import html
import json
import os
import pathlib
from collections.abc import Sequence

from cramjax import __version__
from cramjax.files import finite
from cramjax.reporting import (
    compressions,
    datasets,
    drawing,
    finetunings,
    markdown,
    plans,
    runs,
    setups,
    subjects,
    sweeps,
    tracks,
)
from cramjax.reporting.blocks import Page, Section, as_json
from cramjax.reporting.drawing import Drawn
from cramjax.reporting.reading import RunFiles, read_object, read_run, read_text, read_value
from cramjax.reporting.subjects import Subjects
from cramjax.reporting.words import is_number

_ASSETS = pathlib.Path(__file__).parent / "assets"


def make(found: Subjects, *, price: float | None = None) -> Page:
    """Returns the page about what was found; `price` is that of an hour of each run."""
    problems: list[str] = []
    read = []
    # Of a track each entry has one run here, and the entry is what it is known by.
    known_by = [run.parent if run.parent.parent in found.tracks else run for run in found.runs]
    for folder, name in zip(found.runs, subjects.names(known_by), strict=True):
        read.append(read_run(folder, name))
    for run in read:
        problems += run.problems

    drawn = drawing.draw(read)
    of_studies = [path for path in found.compressions if path.parent in found.studies]
    others = [path for path in found.compressions if path not in of_studies]
    sections = _studies(found, problems)
    sections += _sweeps(found, drawn, problems)
    sections += _compressions(found, of_studies, problems)
    sections += runs.sections(drawn, price)
    sections += _finetunings(found, problems)
    sections += _compressions(found, others, problems)
    sections += _plans(found, problems)
    sections += _datasets(found, read, problems)
    sections += setups.sections(read)
    return Page(
        title=_title(found),
        runs=runs.names(read),
        sections=[section for section in sections if section],
        xs=[x for one in drawn for x in one.xs],
        problems=problems,
        along=_along(found, read),
    )


def _along(found: Subjects, read: Sequence[RunFiles]) -> str:
    """Returns the first axis of curves: time, where a study compares runs of equal time."""
    budgets = [run.config.get("budget") for run in read]
    limits = [budget.get("hours") for budget in budgets if isinstance(budget, dict)]
    is_timed = bool(found.studies or found.tracks) and all(map(is_number, limits))
    return "elapsed_s" if is_timed and limits else "tokens"


def _title(found: Subjects) -> str:
    wholes = (*found.studies, *found.tracks)
    named = list(wholes)
    named += [folder for folder in found.sweeps if folder.parent not in wholes]
    named += [run for run in found.runs if not _is_of_sweep(run, found)]
    named += found.finetunings
    named += [folder for folder in found.compressions if folder.parent not in wholes]
    named += [*found.plans, *found.datasets]
    names = subjects.names(named)
    listed = ", ".join(names[:4])
    return f"{listed} and {len(names) - 4} more" if len(names) > 4 else listed


def _is_of_sweep(run: pathlib.Path, found: Subjects) -> bool:
    return run.parent in found.sweeps or run.parent.parent in found.tracks


def _studies(found: Subjects, problems: list[str]) -> list[Section]:
    """Returns the sections about studies and tracks."""
    sections = []
    for number, folder in enumerate(found.studies):
        path = folder / "report.md"
        text = read_text(path, problems)
        if text is None:
            continue
        blocks = markdown.blocks(text)
        title = f"Study {folder.resolve().name}"
        sections.append(Section(name=f"study-{number}", title=title, blocks=blocks))
    names = subjects.names(found.tracks)
    for number, (folder, name) in enumerate(zip(found.tracks, names, strict=True)):
        sections.append(tracks.section(name, folder, number, problems))
    return sections


def _sweeps(found: Subjects, drawn: Sequence[Drawn], problems: list[str]) -> list[Section]:
    sections = []
    names = subjects.names(found.sweeps)
    for number, (folder, name) in enumerate(zip(found.sweeps, names, strict=True)):
        rows = sweeps.read(folder / "sweep.csv", problems)
        if rows:
            own = [one for one in drawn if one.run.folder.parent == folder]
            sections.append(sweeps.section(name, rows, number, own))
    return sections


def _finetunings(found: Subjects, problems: list[str]) -> list[Section | None]:
    results = []
    names = subjects.names(found.finetunings)
    for folder, name in zip(found.finetunings, names, strict=True):
        content = read_object(folder / "results.json", problems)
        if content:
            results.append((name, folder, content))
    return [finetunings.section(results)]


def _compressions(
    found: Subjects, chosen: Sequence[pathlib.Path], problems: list[str]
) -> list[Section | None]:
    sections = []
    names = subjects.names(found.compressions)
    for number, (folder, name) in enumerate(zip(found.compressions, names, strict=True)):
        entries = read_value(folder / "pareto.json", problems) if folder in chosen else None
        if isinstance(entries, list):
            sections.append(compressions.section(name, entries, number))
    return sections


def _plans(found: Subjects, problems: list[str]) -> list[Section | None]:
    sections = []
    names = subjects.names(found.plans)
    for number, (path, name) in enumerate(zip(found.plans, names, strict=True)):
        listed = plans.entries(read_value(path, problems))
        if listed:
            sections.append(plans.section(name, listed, number))
    return sections


def _datasets(
    found: Subjects, read: Sequence[RunFiles], problems: list[str]
) -> list[Section | None]:
    users: dict[pathlib.Path, list[str]] = {}
    for folder in found.datasets:
        users.setdefault(pathlib.Path(os.path.realpath(folder)), [])
    for run in read:
        named = run.environment.get("dataset")
        if not isinstance(named, str) or not os.path.isfile(os.path.join(named, "manifest.json")):
            continue
        # A path of a run may be relative or lead through links.
        users.setdefault(pathlib.Path(os.path.realpath(named)), []).append(run.name)

    sections = []
    short = subjects.names(list(users))
    for number, (name, (folder, listed)) in enumerate(zip(short, users.items(), strict=True)):
        sections.append(datasets.section(name, folder, listed, number, problems))
    return sections


def data(page: Page, *, follow_s: float | None = None) -> str:
    """Returns the page's data as JSON, safe inside a script of HTML.

    With `follow_s` the page asks for new ones every so many seconds.
    """
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    content = as_json(page) | {"follow_s": follow_s, "made": made}
    text = json.dumps(finite(content), allow_nan=False, separators=(",", ":"))
    # No end of the script and no comment can stand in it, whatever a name or a sentence says.
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def render(page: Page, *, follow_s: float | None = None) -> str:
    """Returns the page as HTML; see `data`."""
    library = _asset("echarts.min.js")
    script = _asset("page.js")
    values = {
        "policy": _policy(library, script, follow_s is not None),
        "version": __version__,
        "title": html.escape(_unbroken(page.title)),
        "style": _asset("page.css"),
        "data": data(page, follow_s=follow_s),
        "licences": _licences(),
        "library": library,
        "script": script,
    }
    # Part by part: a text may hold what looks like another place.
    pieces = _asset("page.html").split("@")
    pieces[1::2] = [values[name] for name in pieces[1::2]]
    return "".join(pieces)


def _policy(library: str, script: str, is_live: bool) -> str:
    """Returns what the page may do: run its two scripts and, if it is live, ask its own server."""
    allowed = []
    for text in (library, script):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        allowed.append(f"'sha256-{digest}'")
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {' '.join(allowed)}"
    policy += "; img-src data:; base-uri 'none'; form-action 'none'"
    return policy + ("; connect-src 'self'" if is_live else "")


def _licences() -> str:
    """Returns the notices that go wherever the library goes, as a comment of HTML."""
    names = ("echarts.NOTICE", "licenses/LICENSE-d3", "licenses/LICENSE-zrender")
    return "\n\n".join(_asset(name).strip() for name in names)


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _unbroken(text: str) -> str:
    """Returns text as UTF-8 can hold it; a name of a folder need not be."""
    return text.encode("utf-8", errors="replace").decode()
