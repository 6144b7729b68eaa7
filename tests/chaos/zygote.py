"""A process that has imported JAX, but started no device, and forks a command for each order.

Orders and answers are lines of JSON on stdin and stdout. A command has a process id, a session, an
exit code and an end of the interpreter as one started by `python -m`; only its imports were made
before. Nothing here has a thread, so a fork copies all there is.

An order may bring faults that strike inside the process: see `install`.
"""

import errno
import faulthandler
import json
import os
import resource
import runpy
import signal
import sys
import time

from cramjax import stop

IMPORTS = (
    "cramjax.compress.run", "cramjax.data.prepare", "cramjax.finetuning.run",
    "cramjax.publishing.export", "cramjax.sweeps.sweep", "cramjax.training.run",
)  # fmt: skip
# After so many seconds a command says where it hangs.
HANGS_S = 50
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link"}


def serve():
    """Answer orders; returns the order of a command in its process, or None at the end."""
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                return order
        print(json.dumps(answer), flush=True)
    return None


def become(order):
    """Run the command of an order in this process, up to the end of the interpreter."""
    os.setsid()
    for number, (path, flags) in enumerate(order["streams"]):
        opened = os.open(path, flags, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)

    module, *arguments = order["command"]
    sys.argv = [module, *arguments]
    sys.orig_argv = [sys.executable, "-m", module, *arguments]
    faulthandler.dump_traceback_later(HANGS_S)
    # A command does this when it imports cramjax.
    stop.end_imports()
    if order["fault"]:
        install(**order["fault"])
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def install(kind, struck, **how):
    """Install a fault; when it strikes, a byte goes to the file `struck`."""
    number = os.open(struck, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def strike():
        os.write(number, b".")

    {"operation": fail_operation, "fsync": fail_fsync, "room": limit_files, "clock": move_clock}[
        kind
    ](strike, **how)


def fail_operation(strike, below, first, n, action, reads):
    """Fail `n` operations on files below a folder, from number `first` on.

    An operation opens, renames, makes or removes. Python reports each to its audit hooks.
    `action` is an error's name, that of a signal which the process gets at that moment, or COUNT.
    """
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event == "open":
            path, _, flags = arguments
            if not reads and not (flags or 0) & WRITES:
                return
        elif event in CHANGES:
            path = arguments[0]
        else:
            return
        if not isinstance(path, str | bytes | os.PathLike):
            return
        if not os.fsdecode(path).startswith(below):
            return

        count += 1
        if not first <= count < first + n:
            return
        strike()
        if action.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[action])
        elif action != "COUNT":
            code = getattr(errno, action)
            raise OSError(code, os.strerror(code), os.fsdecode(path))

    sys.addaudithook(hook)


def fail_fsync(strike, first, n):
    """Fail `n` calls of os.fsync with EIO, from number `first` on."""
    fsync, count = os.fsync, 0

    def failing(file):
        nonlocal count
        count += 1
        if first <= count < first + n:
            strike()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(file)

    os.fsync = failing


def limit_files(strike, n_bytes):
    """Let no file grow beyond a size, in C++ as well: EFBIG, as on a disk without room."""
    strike()
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))


def move_clock(strike, first, by_s):
    """Move the clock of the day from the reading number `first` on; others are monotonic."""
    seconds, count = time.time, 0

    def moved():
        nonlocal count
        count += 1
        if count == first:
            strike()
        return seconds() + (by_s if count >= first else 0)

    time.time = moved
    time.time_ns = lambda: int(moved() * 1e9)


if __name__ == "__main__":
    for name in IMPORTS:
        __import__(name)
    if command := serve():
        become(command)
