"""Runs jobs on a Ray cluster: the same jobs and the same files as on one machine.

The nodes share the folder of the dataset; Ray carries jobs and their records only. A call whose
process or node is lost is made again. Ray is imported here alone.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import os
import pathlib
import signal
import sys
import threading
import unicodedata
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self

import cramjax
from cramjax import stop
from cramjax.console import Announce
from cramjax.data.executors import Item, Result, in_order, n_cores
from cramjax.errors import RunFailed, UserError

if TYPE_CHECKING:
    from ray import ObjectRef

# Times that a call is made again after its process was lost.
_RETRIES = 4
_WAIT_S = 1.0
# Records are small: Ray's least.
_OBJECT_STORE_BYTES = 100 << 20
# What the files of a job depend on beside the code.
_LIBRARIES = ("tokenizers", "sentencepiece", "rensa", "numpy")


class RayExecutor:
    """Processes of a Ray cluster, or of a cluster on this machine alone."""

    n_threads = 1

    def __init__(
        self,
        cache_dir: str | os.PathLike,
        announce: Announce,
        *,
        address: str | None = None,
        n_workers: int | None = None,
    ):
        """Start nothing yet.

        Args:
            cache_dir: The folder that all nodes share.
            announce: Prints the size of the cluster.
            address: "auto" for the cluster of this node, or HOST:PORT; None starts a cluster of
                this machine's processes, and ends it at the end.
            n_workers: Processes of that local cluster (None: one a core).

        Raises:
            UserError: if Ray is not installed.
        """
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "--executor ray: the package ray is not installed; pip install 'ray>=2.60,<3'"
            ) from error

        self._ray: Any = ray
        self._cache_dir = pathlib.Path(cache_dir).absolute()
        self._announce = announce
        self._address = address
        self._n_local = n_workers or n_cores()
        self.n_workers = 1

    def __enter__(self) -> Self:
        self._start()
        try:
            self._check_nodes()
        except BaseException:
            self._ray.shutdown()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def _start(self) -> None:
        """Start a cluster of this machine, or join the one at the address."""
        # A cluster of one's own sends nothing home.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # A job that takes all memory each time must come to an end.
        os.environ.setdefault("RAY_task_oom_retries", str(_RETRIES))
        local: dict[str, Any] = {}
        if self._address is None:
            local = {
                "num_cpus": self._n_local,
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
            }

        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
            with _own_signals(), _own_path(self._address is None), stop.held_back():
                self._ray.init(
                    address=self._address or "local",
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    **local,
                )
        except (OSError, RuntimeError, ValueError, self._ray.exceptions.RayError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"--ray_address {self._address}: no Ray cluster answers there ({reason}); start "
                "one with 'ray start --head', or leave the flag out"
            ) from error

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        is_wanted: Callable[[Item], bool] = lambda _: True,
        on_wait: Callable[[Item], None] = lambda _: None,
    ) -> Generator[tuple[Item, Result], None, None]:
        """See `Executor.map`."""
        task = self._ray.remote(_attempt).options(num_cpus=1, max_retries=_RETRIES)
        folder = os.getcwd()
        return in_order(
            items,
            submit=lambda item: task.remote(function, item, folder),
            wait=functools.partial(self._result, on_wait),
            cancel=functools.partial(self._ray.cancel, force=False),
            n_ahead=2 * self.n_workers,
            is_wanted=is_wanted,
        )

    def _result(self, on_wait: Callable[[Item], None], item: Item, reference: ObjectRef) -> Any:
        """Wait for the result of a call."""
        while not self._ray.wait([reference], timeout=_WAIT_S)[0]:
            on_wait(item)
        try:
            is_done, value = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise RunFailed(
                f"{item.name}: a node cannot do this work ({error.cause}); what was finished is "
                "kept: install the same packages on all nodes and run the command again"
            ) from error
        except self._ray.exceptions.RayError as error:
            raise RunFailed(
                f"{item.name}: {_RETRIES + 1} processes at work on it were lost, probably for "
                "memory; what was finished is kept: run the command again"
            ) from error
        if not is_done:
            raise value
        return value

    def _check_nodes(self) -> None:
        """Count the cluster, and ask each node for the shared folder and its libraries.

        Raises:
            UserError: if a node cannot do the work.
        """
        nodes = [
            node
            for node in self._ray.nodes()
            if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
        ]
        self.n_workers = sum(int(node["Resources"]["CPU"]) for node in nodes)
        if not nodes:
            raise UserError("--executor ray: the cluster has no node with a core; start one")

        mark = self._cache_dir / f".seen-{uuid.uuid4().hex}"
        mark.touch()
        try:
            answers = [(node, self._ask(node, mark)) for node in nodes]
            for node, answer in answers:
                self._judge(node["NodeManagerAddress"], answer)
        finally:
            mark.unlink(missing_ok=True)
        self._announce(f"ray: {len(nodes)} node(s), {self.n_workers} cores")

    def _ask(self, node: dict[str, Any], mark: pathlib.Path) -> ObjectRef:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options = {"num_cpus": 0, "scheduling_strategy": strategy}
        return self._ray.remote(_look).options(**options).remote(mark, os.getcwd())

    def _judge(self, address: str, answer: ObjectRef) -> None:
        try:
            problem, versions = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            # The last line is that of the first exception.
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"--executor ray: the node {address} cannot run cramjax ({reason}); install it "
                "there as here, or run 'ray start' in the folder of this command"
            ) from error

        if problem:
            raise UserError(
                f"--executor ray: the node {address} cannot {problem}; put it on a file system "
                "that all nodes share"
            )
        for name, version in _versions().items():
            if versions[name] != version:
                raise UserError(
                    f"--executor ray: the node {address} has {name} {versions[name]}, and this one "
                    f"{version}; install the same on all nodes"
                )


def _attempt(function: Callable[[Item], Result], item: Item, folder: str) -> tuple[bool, Any]:
    """Call a function on a node; returns whether it did not raise, and its result or exception."""
    try:
        # Paths of the corpus may be relative.
        os.chdir(folder)
        return True, function(item)
    except Exception as error:
        return False, error


def _look(mark: pathlib.Path, folder: str) -> tuple[str, dict[str, str]]:
    """Look at this node; returns what it cannot see ("" if nothing), and its versions."""
    problem = ""
    if not mark.exists():
        problem = f"see data.cache_dir={mark.parent}"
    elif not os.path.isdir(folder):
        problem = f"see the folder of the command, {folder}"
    return problem, _versions()


def _versions() -> dict[str, str]:
    """Returns name → version of what the files of a job depend on."""
    versions = {"cramjax": cramjax.__version__, "Unicode": unicodedata.unidata_version}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "none"
    return versions


@contextlib.contextmanager
def _own_path(is_local: bool) -> Iterator[None]:
    """Inside, processes that this one starts find the modules that it finds, if `is_local`."""
    before = os.environ.get("PYTHONPATH")
    if is_local:
        os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH", None)
        if before is not None:
            os.environ["PYTHONPATH"] = before


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Inside, whatever installs a handler of a signal, ours is there again at the end."""
    is_main = threading.current_thread() is threading.main_thread()
    before = {signum: signal.getsignal(signum) for signum in stop.EXIT_CODES}
    try:
        yield
    finally:
        for signum, handler in before.items():
            # None: not Python's.
            if is_main and handler is not None:
                signal.signal(signum, handler)
