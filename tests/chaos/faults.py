"""The faults: what a start suffers, and what happens to files between two starts.

`DURING` and `BETWEEN` list all of them.
"""

import dataclasses
import os
import pathlib
import signal

from cramjax import stop

ERRORS = ("EIO", "ENOSPC", "EROFS", "EDQUOT", "EACCES")
ALWAYS = 10**9
DAY_S = 86400.0


@dataclasses.dataclass
class Start:
    """One start of a command, and what it is to suffer.

    Attributes:
        folder: of the story; operations fail below it.
        seconds: what an undisturbed start takes.
        n_operations: how many files an undisturbed start opens for writing, renames or removes.
        signals: (seconds after the start, signal) in order of time.
        to_group: whether signals reach all processes of the command, as from a terminal.
        inside: arguments of `zygote.install`.
        output: "kept", "terminal", "pipe" or "full": where stdout and stderr go.
        closes_after_s: when the other end of a terminal or a pipe closes before its time.
        codes: the exit codes that are right.
    """

    folder: pathlib.Path
    seconds: float
    n_operations: int
    signals: list = dataclasses.field(default_factory=list)
    to_group: bool = False
    inside: dict | None = None
    output: str = "kept"
    closes_after_s: float | None = None
    codes: set = dataclasses.field(default_factory=lambda: {0})

    def moment(self, chooser):
        """Returns seconds after the start, at any part of it and a little later."""
        return chooser.uniform(0, 1.1 * self.seconds)

    def count_operations(self):
        self.inside = {
            "kind": "operation", "below": str(self.folder), "first": 1, "n": ALWAYS,
            "action": "COUNT", "reads": False,
        }  # fmt: skip

    def fail_operation(self, chooser, n, action, *, reads=False):
        # A start that goes on has fewer operations than a first one.
        n_operations = self.n_operations * (4 if reads else 1)
        first = 1 + int(n_operations * chooser.random() ** 2)
        self.inside = {
            "kind": "operation", "below": str(self.folder), "first": first, "n": n,
            "action": action, "reads": reads,
        }  # fmt: skip


def stop_signal(chooser, start):
    signum = chooser.choice(list(stop.EXIT_CODES))
    start.signals = [(start.moment(chooser), signum)]
    start.to_group = chooser.random() < 0.3
    start.codes |= {stop.EXIT_CODES[signum]}


def several_signals(chooser, start):
    first = start.moment(chooser)
    chosen = chooser.choices(list(stop.EXIT_CODES), k=chooser.randint(2, 4))
    start.signals = sorted((first + chooser.uniform(0, 1), signum) for signum in chosen)
    start.codes |= {stop.EXIT_CODES[signum] for signum in chosen}


def kill(chooser, start):
    start.signals = [(start.moment(chooser), signal.SIGKILL)]
    start.codes |= {-signal.SIGKILL}


def pause(chooser, start):
    first = start.moment(chooser)
    start.signals = [
        (first, signal.SIGSTOP),
        (first + chooser.uniform(0.1, 1.5), signal.SIGCONT),
    ]


def signal_at_an_operation(chooser, start):
    signum = chooser.choice(list(stop.EXIT_CODES))
    start.fail_operation(chooser, 1, signum.name)
    start.codes |= {stop.EXIT_CODES[signum]}


def kill_at_an_operation(chooser, start):
    start.fail_operation(chooser, 1, "SIGKILL")
    start.codes |= {-signal.SIGKILL}


def disk_error(chooser, start):
    start.fail_operation(chooser, chooser.choice((1, 2, 5, ALWAYS)), chooser.choice(ERRORS))
    start.codes |= {1, 2}


def read_error(chooser, start):
    start.fail_operation(chooser, chooser.choice((1, 3)), "EIO", reads=True)
    start.codes |= {1, 2}


def fsync_error(chooser, start):
    first = chooser.randint(1, 10)
    start.inside = {"kind": "fsync", "first": first, "n": chooser.choice((1, ALWAYS))}
    start.codes |= {1, 2}


def no_room(chooser, start):
    start.inside = {"kind": "room", "n_bytes": chooser.choice((0, 100, 2000, 20_000, 60_000))}
    start.codes |= {1, 2}


def moved_clock(chooser, start):
    by_s = chooser.choice((-1, 1)) * chooser.choice((5.0, DAY_S, 1000 * DAY_S))
    start.inside = {"kind": "clock", "first": chooser.randint(1, 40), "by_s": by_s}


def lost_terminal(chooser, start):
    start.output = "terminal"
    start.closes_after_s = start.moment(chooser)
    start.codes |= {stop.EXIT_CODES[signal.SIGHUP]}


def closed_pipe(chooser, start):
    start.output = "pipe"
    start.closes_after_s = start.moment(chooser)


def full_output(chooser, start):
    start.output = "full"
    # A table that stdout cannot take is a failure; the results of a run are in its folder.
    start.codes |= {1}


def cut(chooser, content):
    return content[: chooser.randrange(len(content))] if content else b""


def flip(chooser, content):
    if not content:
        return b"?"
    place = chooser.randrange(len(content))
    return (
        content[:place] + bytes([content[place] ^ 1 << chooser.randrange(8)]) + content[place + 1 :]
    )


def empty(_chooser, _content):
    return b""


def zeros(_chooser, content):
    """Returns the content that a file system may leave after a power failure."""
    return bytes(len(content))


def noise(chooser, content):
    return chooser.randbytes(len(content))


def foreign_json(_chooser, _content):
    return b"{}\n"


def gone(_chooser, _content):
    return None


SIGNALS = {
    "stop signal": stop_signal,
    "several signals": several_signals,
    "kill -9": kill,
    "SIGSTOP and SIGCONT": pause,
}
INSIDE = {
    "signal at a file operation": signal_at_an_operation,
    "kill -9 at a file operation": kill_at_an_operation,
    "disk error": disk_error,
    "read error": read_error,
    "fsync error": fsync_error,
    "no room": no_room,
    "clock moved": moved_clock,
}
OUTPUT = {
    "terminal lost": lost_terminal,
    "pipe closed": closed_pipe,
    "output full": full_output,
}
DURING = {"signals": SIGNALS, "inside": INSIDE, "output": OUTPUT}
"""Way into a process → name → function that gives a `Start` its fault; one of each at a time."""

BETWEEN = {
    "file cut": cut,
    "bit flipped": flip,
    "file emptied": empty,
    "file of zeros": zeros,
    "file of noise": noise,
    "file of {}": foreign_json,
    "file gone": gone,
}
"""Name → function from the content of a file to what it becomes; None takes the file away."""


def move_times(chooser, folder):
    """Move the times of all files below a folder into the past or the future."""
    by_s = chooser.choice((-1, 1)) * chooser.choice((3600, DAY_S, 5000 * DAY_S))
    for path in sorted(folder.rglob("*")):
        times = path.stat()
        os.utime(path, (times.st_atime + by_s, times.st_mtime + by_s))
