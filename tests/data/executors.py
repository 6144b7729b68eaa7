"""Executors for tests: they do the jobs in this process, which starts at once."""

from __future__ import annotations


class Killed(BaseException):
    """Stands for SIGKILL."""


class InThisProcess:
    """Does one job at a time, and remembers their names in `done`."""

    n_workers = 1
    n_threads = 1

    def __init__(self, n_before_kill=None):
        """Be killed after so many jobs, when their files are whole (None: never)."""
        self.done = []
        self._n_before_kill = n_before_kill

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, function, items, *, is_wanted=lambda _: True, on_wait=lambda _: None):
        for item in items:
            if self._n_before_kill == len(self.done):
                raise Killed
            if is_wanted(item):
                result = function(item)
                # Those that only look have no stem.
                if hasattr(item, "stem"):
                    self.done.append(f"{item.stem.parent.name}/{item.stem.name}")
                if self._n_before_kill == len(self.done):
                    raise Killed
                yield item, result
