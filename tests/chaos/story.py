"""A story: a command that is disturbed again and again, and the invariants of its end.

`tell` draws everything from the seed. `Violation` says which invariant does not hold.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import pty
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time

from tests.chaos import commands, faults
from tests.chaos.commands import COMMANDS, MEMORIES, World
from tests.conftest import QUICK_TO_COMPILE

ROOT = pathlib.Path(__file__).resolve().parents[2]
MAX_STARTS = 30
# Nobody waits for a start that hangs.
PATIENCE_S = 60.0
BAD_WORDS = ("Traceback", "Exception ignored", "Fatal Python error", "Segmentation fault")
_SENTENCE = re.compile(r"^error: ", re.MULTILINE)
# Files that tell a person something, and are not read again.
_OURS = re.compile(r"lock|log\.txt|history\.jsonl|metrics\.jsonl|\.verified\.json")


class Violation(AssertionError):
    """An invariant does not hold; the message says which, in which start, and what was said."""


class Zygote:
    """Forks commands; see `zygote.py`."""

    def __init__(self, programs: pathlib.Path):
        """Start the process; compiled programs are kept in the folder `programs`."""
        settings = {
            "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK_TO_COMPILE, "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": str(programs), "HF_HUB_OFFLINE": "1",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "TF_CPP_MIN_LOG_LEVEL": "3",
            "OPENBLAS_NUM_THREADS": "1",
        }  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.zygote"],
            cwd=ROOT,
            env=os.environ | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def order(self, **order):
        """Send an order; returns the answer."""
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self):
        """End the process."""
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@dataclasses.dataclass
class Ended:
    """A start that has ended.

    Attributes:
        pid: the number of its process and of its session.
        code: its exit code, negative for the signal that killed it.
        said: its output.
        struck: the ways of `faults.DURING` by which a fault has come.
    """

    pid: int
    code: int
    said: str
    struck: set[str]


def run(zygote, words, start, where):
    """Run one start up to its end.

    Args:
        zygote: the process that forks it.
        words: the module and its flags.
        start: what it suffers.
        where: path of the file for its output; files beside it have its name, too.
    """
    streams, closing = _streams(start, where)
    struck = where.with_suffix(".struck")
    pid = zygote.order(
        command=words,
        streams=streams,
        fault=start.inside and {"struck": str(struck), **start.inside},
    )
    began, met = time.monotonic(), set()
    with open(os.pidfd_open(pid), "rb", buffering=0) as process:
        events = [*start.signals]
        if start.closes_after_s is not None:
            events = sorted([*events, (start.closes_after_s, None)], key=lambda event: event[0])
        for after_s, signum in [*events, (PATIENCE_S, signal.SIGKILL)]:
            left_s = max(0.0, began + after_s - time.monotonic())
            if select.select([process], [], [], left_s)[0]:
                break
            if signum is None:
                met.add("output")
                closing()
            else:
                met.add("signals")
                _send(pid, signum, start.to_group)

    seconds = time.monotonic() - began
    code = zygote.order(wait=pid)
    closing()
    said = where.read_text(errors="replace") if where.exists() else ""
    if seconds >= PATIENCE_S:
        raise Violation(f"a start hangs ({start.inside}, {start.signals})\n{said}")
    if struck.exists() and struck.stat().st_size:
        met.add("inside")
    if start.output == "full":
        met.add("output")
    return Ended(pid, code, said, met)


def _send(pid, signum, to_group):
    # The zygote has not asked for its exit code yet, so the number is still its own.
    with contextlib.suppress(ProcessLookupError):
        if to_group:
            os.killpg(pid, signum)
        else:
            os.kill(pid, signum)


def _streams(start, where):
    """Returns (path, flags) of stdin, stdout and stderr, and what closes their other end.

    A start that may write no file can write into a pipe.
    """
    if start.output != "terminal":
        pipe = where.with_suffix(".pipe")
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        ends = [("/dev/null", os.O_RDONLY), *[(str(pipe), os.O_WRONLY)] * 2]
        if start.output == "full":
            ends[1] = ("/dev/full", os.O_WRONLY)
    else:
        reader, slave = pty.openpty()
        # A process without a terminal gets the first one that it opens.
        ends = [(os.ttyname(slave), os.O_RDWR)] * 3
        threading.Timer(1.0, os.close, (slave,)).start()
    return ends, _drained(reader, where)


def _drained(reader, where):
    """Read a pipe or a terminal into a file; returns a function that closes it."""
    is_over = threading.Event()

    def drain():
        with where.open("wb") as file:
            is_last = False
            while not is_last:
                # Asked first: what was written before the end is then read in this round.
                is_last = is_over.is_set()
                while select.select([reader], [], [], 0)[0]:
                    # A terminal that nobody has open is an error, such a pipe gives nothing.
                    with contextlib.suppress(OSError):
                        if block := os.read(reader, 65536):
                            file.write(block)
                            continue
                    break
                is_over.wait(0.02)
        os.close(reader)

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()

    def close():
        is_over.set()
        thread.join()

    return close


@dataclasses.dataclass(frozen=True)
class Stage:
    """The things that all stories share.

    Attributes:
        folder: for stories.
        given: inputs of commands.
        zygote: the process that forks.
        expected: command → its result without faults.
        names: command → the files that it leaves.
        seconds: command → seconds of an undisturbed start.
        n_operations: command → its operations on files.
    """

    folder: pathlib.Path
    given: pathlib.Path
    zygote: Zygote
    expected: dict = dataclasses.field(default_factory=dict)
    names: dict = dataclasses.field(default_factory=dict)
    seconds: dict = dataclasses.field(default_factory=dict)
    n_operations: dict = dataclasses.field(default_factory=dict)

    def learn(self, name):
        """Run a command without faults and keep what it leaves."""
        if name in self.expected:
            return
        if COMMANDS[name].data > 0:
            self.give()
        world = self.world(f"undisturbed-{name}", with_data=COMMANDS[name].data > 0)
        start = faults.Start(world.folder, 0, 1)
        start.count_operations()
        began = time.monotonic()
        ended = run(self.zygote, COMMANDS[name].words(world), start, world.folder / "0.txt")
        if ended.code:
            raise Violation(f"{name} without faults ends with {ended.code}\n{ended.said}")

        self.seconds[name] = time.monotonic() - began
        self.n_operations[name] = (world.folder / "0.struck").stat().st_size
        self.expected[name] = COMMANDS[name].result(world)
        self.names[name] = _names(world)

    def world(self, name, *, with_data):
        """Returns a new folder for a story, with a copy of the prepared data if it is to have."""
        world = World(self.folder / name, self.given)
        (world.folder / "results").mkdir(parents=True)
        if with_data:
            shutil.copytree(self.given / "prepared", world.cache)
        return world

    def give(self):
        """Make the inputs of commands that read a trained run."""
        if (self.given / "run").exists():
            return
        world = World(self.given, self.given)
        commands.write_tasks(self.given / "glue")
        for name in ("prepare", "main"):
            words = COMMANDS[name].words(world)
            if name == "main":
                words[-1] = f"--workdir={self.given / 'run'}"
            start = faults.Start(self.given, 0, 1)
            ended = run(self.zygote, words, start, self.given / f"{name}.txt")
            if ended.code:
                raise Violation(ended.said)


def open_stage(folder, zygote):
    """Returns a stage in an empty folder, with a text to read."""
    stage = Stage(folder, folder / "given", zygote)
    stage.given.mkdir()
    commands.write_text(stage.given / "stories.txt")
    return stage


def _names(world):
    """Returns the names of all files that a command has left, steps of checkpoints as N.

    Without memories, which may be there or not, and what a killed start has written of them: that
    has one name, and the next file of that name takes its place.
    """
    passed_over = {*MEMORIES, *(f".{name}.tmp" for name in MEMORIES)}
    found = set()
    for path in [*world.cache.rglob("*"), *world.out.parent.rglob("*")]:
        if path.name in passed_over:
            continue
        name = path.relative_to(world.folder).as_posix()
        # A damaged checkpoint is put aside, for the user to look at.
        name = re.sub(r"checkpoints/\d+(/.*)?$", "checkpoints/N", name)
        if not re.search(r"checkpoints/damaged-\d+", name):
            found.add(name)
    return found


@dataclasses.dataclass
class Damage:
    """A file that was damaged: its path, its content before, and the name of the fault."""

    path: pathlib.Path
    before: bytes
    fault: str


class Story:
    """One story on a stage; `tell` runs it."""

    def __init__(self, stage, name, seed):
        self.stage, self.name, self.seed = stage, name, seed
        self.chooser = random.Random(f"{name} {seed}")
        with_data = self.chooser.random() < COMMANDS[name].data
        self.world = stage.world(f"{name}-{seed}", with_data=with_data)
        self.damages: list[Damage] = []
        self.struck: list[str] = []
        self.sessions: set[int] = set()
        self.n_starts = 0

    def tell(self):
        """Run the story; returns the names of the faults that have struck.

        Raises:
            Violation: if an invariant does not hold.
        """
        code = None
        for _ in range(self.chooser.randint(2, 5)):
            # A command that is done reads its files no more.
            if code not in (None, 0) and self.chooser.random() < 0.5:
                self._damage()
            ways = list(faults.DURING)
            code = self._start(self.chooser.sample(ways, self.chooser.randint(1, len(ways))))
        while code != 0:
            if self.n_starts > MAX_STARTS:
                raise self._violation("it never comes to its end")
            code = self._start(())
        self._check_end()
        return self.struck

    def _start(self, ways):
        """Start the command with a fault by each of some ways; returns its exit code."""
        name = self.name
        start = faults.Start(
            self.world.folder, self.stage.seconds[name], self.stage.n_operations[name]
        )
        chosen = {way: self.chooser.choice(list(faults.DURING[way])) for way in ways}
        for way, fault in chosen.items():
            faults.DURING[way][fault](self.chooser, start)

        self.n_starts += 1
        where = self.world.folder / f"{self.n_starts}.txt"
        ended = run(self.stage.zygote, COMMANDS[name].words(self.world), start, where)
        self.sessions.add(ended.pid)
        self.struck += [fault for way, fault in chosen.items() if way in ended.struck]
        suffered = ", ".join(map(str, [*chosen.values(), start.inside, start.signals]))
        said = f"start {self.n_starts} ({suffered})"
        where.with_suffix(".fault").write_text(f"{said} → {ended.code}\n")
        self._check(start, ended, said)
        return ended.code

    def _check(self, start, ended, said):
        """Check what a start has said and its exit code; cure the damage that it names."""
        if any(word in ended.said for word in BAD_WORDS):
            raise self._violation(f"a traceback in {said}", ended)
        # A terminal or a pipe that was closed may have taken the sentence along.
        is_heard = start.output == "kept"
        # A disk that fails explains it as well; then the next start tells of the damage.
        if ended.code in {1, 2} - start.codes and self.damages:
            if is_heard:
                self._cure(ended, said)
        elif ended.code not in start.codes:
            raise self._violation(f"exit code {ended.code} in {said}", ended)
        is_explained = len(_SENTENCE.findall(ended.said)) == 1 or not is_heard
        if ended.code in (1, 2) and not is_explained:
            raise self._violation(f"no sentence says why {said} ended with {ended.code}", ended)

    def _damage(self):
        """Damage a file of the command, or move the times of all."""
        folders = {self.world.out, COMMANDS[self.name].reads(self.world)}
        files = [
            path
            for folder in sorted(folders)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not _OURS.fullmatch(path.name) and not self._is_done(path)
        ]
        if not files:
            return
        if self.chooser.random() < 0.2:
            faults.move_times(self.chooser, self.world.folder)
            self.struck.append("times moved")
            return

        path = self.chooser.choice(files)
        fault = self.chooser.choice(list(faults.BETWEEN))
        before = path.read_bytes()
        after = faults.BETWEEN[fault](self.chooser, before)
        if after == before:
            return
        if after is None:
            path.unlink()
        else:
            path.write_bytes(after)
        self.damages.append(Damage(path, before, fault))
        self.struck.append(fault)

    def _is_done(self, path):
        """Returns whether a file is that of a run of a sweep that has ended: nothing reads it."""
        folders = [self.world.out, *self.world.out.glob("seed-*")]
        ended = [folder for folder in folders if (folder / "summary.json").exists()]
        return self.name == "sweep" and any(folder in path.parents for folder in ended)

    def _cure(self, ended, said):
        """Put damaged files back, as a user who reads the sentence does."""
        if not any(_names_it(ended.said, damage.path, self.world) for damage in self.damages):
            hurt = [(damage.fault, str(damage.path)) for damage in self.damages]
            raise self._violation(f"no damaged file of {hurt} is named in {said}", ended)
        for damage in self.damages:
            damage.path.parent.mkdir(parents=True, exist_ok=True)
            damage.path.write_bytes(damage.before)
        self.damages = []

    def _check_end(self):
        self._wait_for_processes()
        expected, found = self.stage.expected[self.name], COMMANDS[self.name].result(self.world)
        for key, value in expected.items():
            if found[key] != value:
                raise self._violation(f"{key} differ: {_difference(value, found[key])}")
        names = _names(self.world)
        if more := names - self.stage.names[self.name]:
            raise self._violation(f"left behind: {sorted(more)[:9]}")
        # A picture that cannot be drawn is warned of, and a finished command draws none.
        pictures = {name for name in self.stage.names[self.name] if name.endswith(".png")}
        if less := self.stage.names[self.name] - names - pictures:
            raise self._violation(f"missing: {sorted(less)[:9]}")

    def _wait_for_processes(self):
        """Wait for processes that a killed command has left: they notice, and end."""
        end = time.monotonic() + PATIENCE_S / 4
        while left := self.sessions & set(_sessions()):
            if time.monotonic() > end:
                raise self._violation(f"processes of sessions {left} go on")
            time.sleep(0.1)

    def _violation(self, what, ended=None):
        said = f"\n{ended.said[-3000:]}" if ended else ""
        hurt = [(damage.fault, str(damage.path)) for damage in self.damages]
        return Violation(f"{self.name} {self.seed}: {what}; damaged: {hurt}{said}")


def _sessions():
    """Yields the session of every process."""
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name of a program, in brackets, may have blanks in it.
            yield int(path.read_text().rsplit(")", 1)[1].split()[3])


def _names_it(said, path, world):
    """Returns whether a message names a file, or a folder of it that is not all of the story's."""
    whole = {world.folder, world.out, world.cache, world.out.parent, *world.folder.parents}
    return path.name in said or any(
        str(folder) in said for folder in path.parents if folder not in whole
    )


def _difference(expected, found):
    """Returns the first place in which two values differ, in some words."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in expected.keys() | found.keys():
            if expected.get(key) != found.get(key):
                return f"{key}: {_difference(expected.get(key), found.get(key))}"
    if isinstance(expected, list) and isinstance(found, list):
        for number, (one, other) in enumerate(zip(expected, found, strict=False)):
            if one != other:
                return f"[{number}] {_difference(one, other)}"
        return f"{len(expected)} and {len(found)} entries"
    return f"{str(expected)[:200]} and {str(found)[:200]}"
