"""Tells what a path is: a run, sweep, study, track, finetuning, compression, plan or dataset."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

from cramjax.errors import UserError
from cramjax.reporting import plans
from cramjax.reporting.reading import read_value

_RUN_FILES = ("metrics.jsonl", "summary.json", "history.jsonl", "environment.json")
MOST_RUNS = 24
"""Runs of a sweep whose curves are drawn: more of them nobody can tell apart."""


@dataclasses.dataclass
class Subjects:
    """The folders and files of a page by their kind, in the order in which they were named."""

    runs: list[pathlib.Path] = dataclasses.field(default_factory=list)
    sweeps: list[pathlib.Path] = dataclasses.field(default_factory=list)
    studies: list[pathlib.Path] = dataclasses.field(default_factory=list)
    tracks: list[pathlib.Path] = dataclasses.field(default_factory=list)
    finetunings: list[pathlib.Path] = dataclasses.field(default_factory=list)
    compressions: list[pathlib.Path] = dataclasses.field(default_factory=list)
    plans: list[pathlib.Path] = dataclasses.field(default_factory=list)
    datasets: list[pathlib.Path] = dataclasses.field(default_factory=list)

    def add(self, path: pathlib.Path) -> bool:
        """Take in a path and what belongs to it; returns whether it is anything."""
        if path.is_file():
            return self._add_file(path)
        if (path / "track.json").is_file():
            self._add_track(path)
            return True
        is_known = False
        for name, kind in (
            ("sweep.csv", self.sweeps),
            ("results.json", self.finetunings),
            ("pareto.json", self.compressions),
            ("manifest.json", self.datasets),
        ):
            if (path / name).is_file():
                _append(kind, path)
                is_known = True
        if (path / "sweep.csv").is_file():
            self._add_all(sorted(path.iterdir()), MOST_RUNS)
        elif any((path / name).is_file() for name in _RUN_FILES):
            _append(self.runs, path)
            is_known = True
        return is_known or self._add_folder(path)

    def _add_file(self, path: pathlib.Path) -> bool:
        if plans.entries(read_value(path, [])):
            _append(self.plans, path)
            return True
        return path.name in (*_RUN_FILES, "sweep.csv", "pareto.json", "track.json") and self.add(
            path.parent
        )

    def _add_track(self, path: pathlib.Path) -> None:
        """Take in a track and the run of the first seed of each entry."""
        _append(self.tracks, path)
        entries = [child.parent for child in sorted(path.glob("*/sweep.csv"))]
        for entry in entries[:MOST_RUNS]:
            self._add_all(sorted(entry.iterdir()), 1)

    def _add_folder(self, path: pathlib.Path) -> bool:
        """Take in the children of a folder: a study, or a folder of runs."""
        try:
            children = sorted(child for child in path.iterdir() if child.is_dir())
        except OSError:
            return False
        is_study = any((child / "sweep.csv").is_file() for child in children)
        if is_study:
            _append(self.studies, path)
        n_known = 0
        for child in children:
            names = ("sweep.csv", "results.json", "pareto.json", "track.json", *_RUN_FILES)
            if any((child / name).is_file() for name in names):
                n_known += self.add(child)
        return n_known > 0

    def _add_all(self, children: Iterable[pathlib.Path], most: int) -> None:
        runs = [child for child in children if (child / "metrics.jsonl").is_file()]
        for run in runs[:most]:
            _append(self.runs, run)

    def files(self) -> list[pathlib.Path]:
        """Returns the files that make the page, to see whether one has changed."""
        files = []
        for run in self.runs:
            names = (*_RUN_FILES, "config.json", "samples.jsonl")
            files += [run / name for name in names]
        files += [folder / "sweep.csv" for folder in self.sweeps]
        files += [folder / "report.md" for folder in self.studies]
        for folder in self.tracks:
            files += [folder / "track.json", folder / "report.md"]
        files += [folder / "results.json" for folder in self.finetunings]
        files += [folder / "pareto.json" for folder in self.compressions]
        return files + self.plans


def find(paths: Sequence[pathlib.Path]) -> Subjects:
    """Returns what `paths` are.

    Raises:
        UserError: for a path that is missing, or that no command of ours wrote.
    """
    subjects = Subjects()
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such folder or file; name the --workdir or --out of a run")
        if not subjects.add(path):
            raise UserError(
                f"{path}: is no run, sweep, study, track, finetuning, compression, plan (--json) "
                "or dataset; name the folder or file that a command of cramjax wrote"
            )
    return subjects


def names(folders: Sequence[pathlib.Path]) -> list[str]:
    """Returns a short name for each folder; equal ones get the folders around them."""
    depth = 1
    absolute = [folder.resolve() for folder in folders]
    while True:
        listed = ["/".join(folder.parts[-depth:]) for folder in absolute]
        longest = max((len(folder.parts) for folder in absolute), default=0)
        if len(set(listed)) == len(set(absolute)) or depth >= longest:
            return listed
        depth += 1


def _append(kind: list[pathlib.Path], path: pathlib.Path) -> None:
    known = [folder.resolve() for folder in kind]
    if path.resolve() not in known:
        kind.append(path)
