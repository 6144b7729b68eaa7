"""The parts of every command line: --config with overrides, --debug, signals, and exit codes.

The exit code is 0 when done, 1 for a failure, 2 for the user's mistake, and 128 + n after signal n.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import logging
import os
import pathlib
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from cramjax import stop, streams
from cramjax.errors import RunFailed, UserError

T = TypeVar("T")
if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    D = TypeVar("D", bound=DataclassInstance)


def make_parser(module: str, purpose: str, example: str) -> argparse.ArgumentParser:
    """Returns the parser of `python -m module`, or of the `cramjax COMMAND` that calls it.

    Its help shows one line of `purpose`, the flags, and `example` as it is written.
    """
    program = f"python -m {module}"
    if sys.argv[0].startswith("cramjax "):
        program = sys.argv[0]
    return argparse.ArgumentParser(
        prog=program,
        description=purpose,
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_jobs_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--jobs N` to the `parser` of a command that starts runs."""
    parser.add_argument(
        "--jobs",
        type=at_least(1),
        default=1,
        metavar="N",
        help="runs at a time, each on its share of the GPUs and cores (default: 1)",
    )


def add_config_flags(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds `--config RECIPE[:ARG]` to `parser`.

    `run_command` collects the overrides `--config.KEY=VALUE` in `args.overrides`.
    """
    parser.add_argument(
        "--config",
        required=required,
        metavar="RECIPE[:ARG]",
        help="recipe by its name or file, with its variant after a colon (every recipe has "
        ":smoke); --config.KEY=VALUE overrides a key",
    ).completer = _recipes  # pyright: ignore[reportAttributeAccessIssue]


def _recipes(**_: Any) -> list[str]:
    """Returns the names of the recipes, for a shell that completes the flag."""
    from cramjax.config.recipes import RECIPES

    return sorted(path.stem for path in RECIPES.glob("*.py"))


def at_least(least: int) -> Callable[[str], int]:
    """Returns an argparse `type` for whole numbers that are not below `least`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text}: must be a whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"{text}: must be at least {least}")
        return number

    return parse


def path(text: str) -> pathlib.Path:
    """Returns the path of a flag; an argparse `type`.

    A leading ~ is the user's home, which a shell does not see in --workdir=~/run.
    """
    return pathlib.Path(in_home(text))


def in_home(text: str) -> str:
    """Returns the same as text, for flags that take other words than a path as well."""
    return os.path.expanduser(text)


def from_flags(kind: type[D], args: argparse.Namespace, **values: Any) -> D:
    """Returns a dataclass whose fields are the flags of the same names, and `values`."""
    names = {field.name for field in dataclasses.fields(kind)} - values.keys()
    return kind(**{name: getattr(args, name) for name in names}, **values)


def comma_separated(kind: Callable[[str], T], things: str) -> Callable[[str], tuple[T, ...]]:
    """Returns an argparse `type` for values with commas between them, such as 0,0.3,0.6."""

    def parse(text: str) -> tuple[T, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            message = f"{text}: must be {things} with commas between them"
            raise argparse.ArgumentTypeError(message) from None

    return parse


def check_output(flag: str, path: pathlib.Path | None) -> None:
    """Makes the folder of the file that `flag` names, before the work that fills the file.

    Raises:
        UserError: the file cannot be written there.
    """
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"{flag} {path}: is a folder; give a file")
    # A file takes its place when it is whole, which would harm a device such as /dev/stdout.
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"{flag} {path}: is a link, a pipe or a device; give a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{flag} {path}: its folder cannot be made ({error.strerror}); give another file"
        ) from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{flag} {path}: its folder cannot be written; give another file")


def run_command(
    command: Callable[[argparse.Namespace], int | None],
    argv: list[str] | None,
    parser: argparse.ArgumentParser,
) -> int:
    """Parses `argv`, runs `command(args)` and returns the exit code.

    A user's mistake becomes one sentence on stderr. Without `argv` the process belongs to this
    command: signals (`stop.EXIT_CODES`) end it within two seconds, and a stopped command does not
    return. A command that saves first opens a `StopSignal` of its own.

    A terminal that is gone or a closed pipe is no error. A result that stdout could not take, as on
    a full disk, is one.
    """
    with streams.unbroken():
        try:
            code = _run(command, argv, parser)
        except SystemExit as end:
            # argparse ends with 0 after --help, which is a result as well.
            if end.code or not streams.lost_output():
                raise
            code = 0

        lost = streams.lost_output()
        if code == 0 and lost:
            print(f"error: stdout: the result cannot be written ({lost})", file=sys.stderr)
            code = 1
        if argv is None and _has_other_threads():
            # After a failed save Orbax's threads wait for files that never come, for minutes.
            stop.leave(code)
        return code


def _has_other_threads() -> bool:
    """Returns whether Python would wait for a thread before it ends."""
    others = set(threading.enumerate()) - {threading.main_thread()}
    return any(not thread.daemon for thread in others)


def _run(
    command: Callable[[argparse.Namespace], int | None],
    argv: list[str] | None,
    parser: argparse.ArgumentParser,
) -> int:
    """Does the same with streams that do not raise."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of a mistake")
    if "_ARGCOMPLETE" in os.environ:
        _complete(parser)
    args, rest = parser.parse_known_args(argv)
    args.overrides = _overrides(parser, rest)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)

    if argv is not None:
        return _exit_code(command, args)
    with stop.answered():
        code = _exit_code(command, args)
        if code:
            # Everything is saved by now; nobody waits for a compilation in the background.
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            stop.leave(code)
        return code


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answers a shell that completes a line: with flags, their values and keys of the recipe."""
    import argcomplete

    from cramjax.config import families, schema

    if "--config" in _flags(parser):
        keys: set[str] = set()
        for family in families.FAMILIES:
            keys.update(key for key, _ in schema.walk(schema.sections(family)))
        for key in sorted(keys):
            parser.add_argument(f"--config.{key}", help=argparse.SUPPRESS)
    argcomplete.autocomplete(parser, print_suppressed=True)


def _exit_code(
    command: Callable[[argparse.Namespace], int | None], args: argparse.Namespace
) -> int:
    try:
        return command(args) or 0
    except (UserError, RunFailed) as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except OSError as error:
        # A disk, a quota or a folder of the network may fail at any moment.
        if args.debug or error.errno is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        print(
            f"error: {place}{error.strerror}; when that is mended, run the same command again: it "
            "goes on from what is there (--debug shows where this happened)",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _overrides(parser: argparse.ArgumentParser, rest: list[str]) -> list[str]:
    """Returns `--config.a.b=1` and `--config.a.b 1` as "a.b=1"; other words are mistyped flags."""
    overrides = []
    words = iter(rest)
    for word in words:
        if not word.startswith("--config."):
            near = difflib.get_close_matches(word.split("=")[0], _flags(parser), 1)
            hint = f"did you mean {near[0]}?" if near else "see --help"
            parser.error(f"unknown argument {word}; {hint}")

        key = word.removeprefix("--config.")
        if "=" not in key:
            value = next(words, None)
            if value is None or value.startswith("--"):
                parser.error(f"{word}: a value is missing, as in {word}=VALUE")
            key = f"{key}={value}"
        overrides.append(key)
    return overrides


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    flags: list[str] = []
    for action in parser._actions:  # argparse has no public list
        flags += action.option_strings
    return flags
