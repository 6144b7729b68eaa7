"""Runs jobs in other processes and gives their results in order: on this machine.

`ray_executor.py` does the same on a cluster. Workers import neither JAX nor the user's main
program.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor as Pool
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, Self, TypeVar

from cramjax import stop
from cramjax.errors import RunFailed

# Eight keep memory bounded.
_MAX_WORKERS = 8
_WAIT_S = 1.0


class Named(Protocol):
    """The argument of a call that is run elsewhere. It can be pickled."""

    @property
    def name(self) -> str:
        """A name for people."""
        ...


Item = TypeVar("Item", bound=Named)
Result = TypeVar("Result")
Running = TypeVar("Running")
"""A call that was begun elsewhere."""


class Executor(Protocol):
    """Calls a function many times at once. Use it as a context; it starts nothing before."""

    @property
    def n_workers(self) -> int:
        """Calls that run at the same time."""
        ...

    @property
    def n_threads(self) -> int:
        """Cores that a call may use if it is the only one."""
        ...

    def __enter__(self) -> Self:
        """Start."""
        ...

    def __exit__(self, *_: object) -> None:
        """Stop what still runs: it is not needed, or will be done again."""
        ...

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        is_wanted: Callable[[Item], bool] = lambda _: True,
        on_wait: Callable[[Item], None] = lambda _: None,
    ) -> Generator[tuple[Item, Result], None, None]:
        """Yield each item and `function(item)`, in order; two calls a worker run ahead.

        A call whose process is lost may be made again. Do not use two iterators at a time.

        Args:
            function: Pure, up to files that it may write again.
            items: Taken as late as possible.
            is_wanted: False once an item's result is not needed: it is left out, and not begun if
                it can be helped.
            on_wait: Called every second while the next result is not there.

        Raises:
            RunFailed: if a worker was killed.
            Exception: what `function` raises.
        """
        ...


def in_order(
    items: Iterable[Item],
    *,
    submit: Callable[[Item], Running],
    wait: Callable[[Item, Running], Result],
    cancel: Callable[[Running], object],
    n_ahead: int,
    is_wanted: Callable[[Item], bool],
) -> Generator[tuple[Item, Result], None, None]:
    """Yield each wanted item and the result of its call, in order: the window of `Executor.map`.

    Args:
        items: Taken as late as possible.
        submit: Begins the call of an item elsewhere.
        wait: Returns the result of a call that was begun.
        cancel: Gives up a call whose result is not needed.
        n_ahead: Calls that run beside the one that is waited for.
        is_wanted: See `Executor.map`.
    """
    coming = iter(items)
    running: collections.deque[tuple[Item, Running]] = collections.deque()
    try:
        while True:
            while len(running) <= n_ahead:
                if (item := next(coming, None)) is None:
                    break
                running.append((item, submit(item)))
            if not running:
                return

            item, call = running.popleft()
            if is_wanted(item):
                yield item, wait(item, call)
            else:
                cancel(call)
    finally:
        for _, call in running:
            cancel(call)


class LocalExecutor:
    """Processes of this machine."""

    def __init__(self, n_workers: int | None = None):
        """Start no process yet.

        Args:
            n_workers: Processes (None: one per core, at most 8).
        """
        self.n_workers = n_workers or min(n_cores(), _MAX_WORKERS)
        self.n_threads = n_cores()
        self._pool: Pool | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is None:
            return
        processes: list[Any] = []
        if isinstance(self._pool, ProcessPoolExecutor):
            processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        self._pool = None

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        is_wanted: Callable[[Item], bool] = lambda _: True,
        on_wait: Callable[[Item], None] = lambda _: None,
    ) -> Generator[tuple[Item, Result], None, None]:
        """See `Executor.map`."""
        return in_order(
            items,
            submit=functools.partial(self._submit, function),
            wait=functools.partial(_result, on_wait),
            cancel=Future.cancel,
            n_ahead=2 * self.n_workers,
            is_wanted=is_wanted,
        )

    def _submit(self, function: Callable[[Item], Result], item: Item) -> Future[Result]:
        if self._pool is None:
            self._pool = open_pool(self.n_workers)
        with _without_main_program(), stop.held_back():
            try:
                return self._pool.submit(function, item)
            except BrokenProcessPool as error:
                raise _killed(item) from error


def _result(on_wait: Callable[[Item], None], item: Item, future: Future[Result]) -> Result:
    """Wait for the result of a call."""
    while True:
        try:
            return future.result(timeout=_WAIT_S)
        except BrokenProcessPool as error:
            raise _killed(item) from error
        except TimeoutError:
            # The call may itself have raised a TimeoutError.
            if future.done():
                return future.result()
        on_wait(item)


def _killed(item: Named) -> RunFailed:
    # A signal to the whole group reaches this process as well, and is the answer.
    time.sleep(_WAIT_S)
    return RunFailed(
        f"a process at work on {item.name} was killed, probably for memory; what was finished is "
        "kept: run the command again"
    )


def open_pool(n_workers: int) -> Pool:
    """Returns worker processes, or a thread where the system has no semaphores for processes.

    They lie in /dev/shm, which a container may not let anybody write.
    """
    context = multiprocessing.get_context("spawn")
    try:
        with stop.held_back(), _quiet_tracker():
            return ProcessPoolExecutor(
                n_workers, context, initializer=_start_worker, initargs=(os.getpid(),)
            )
    except (OSError, ImportError):
        return ThreadPoolExecutor(1)


def n_cores() -> int:
    """Count the cores that this process may use, or all if the system cannot tell."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _without_main_program() -> Iterator[None]:
    """Start workers that do not import the main program.

    It may import JAX or lack a `__main__` guard.
    """
    main = sys.modules["__main__"]
    hidden = {name: getattr(main, name) for name in ("__spec__", "__file__") if hasattr(main, name)}
    try:
        main.__spec__ = None
        if "__file__" in hidden:
            del main.__file__
        yield
    finally:
        for name, value in hidden.items():
            setattr(main, name, value)


@contextlib.contextmanager
def _quiet_tracker() -> Iterator[None]:
    """Start Python's tracker of semaphores so that it does not warn.

    It removes those of a process that left at a signal, and that is no news.
    """
    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")
    try:
        yield
    finally:
        sys.warnoptions.pop()


def _start_worker(parent: int) -> None:
    """Prepare a worker: it ends with its parent."""
    stop.watch_parent(parent, functools.partial(os._exit, 1))
