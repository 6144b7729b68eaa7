"""`cramjax COMMAND` and `python -m cramjax COMMAND`: every command of the project under one name.

Each command is the `main` of a module that also runs by itself (`python -m cramjax.main`,
`python -m tools.compress`). Only that module is imported.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys

from cramjax import __version__, stop, streams

COMMANDS = {
    "train": ("cramjax.main", "pretrain inside a budget"),
    "prepare": ("tools.prepare_data", "prepare the dataset of a recipe"),
    "finetune": ("tools.finetune", "finetune on GLUE, SuperGLUE, tags, answers and own tasks"),
    "predict": ("tools.predict", "predict the rows of a file with a finetuned model"),
    "probe": ("tools.probe", "probe a model with BLiMP's minimal pairs"),
    "export": ("tools.export_hf", "export a model for transformers, and push it"),
    "compress": ("tools.compress", "prune and quantise models"),
    "plan": ("tools.plan", "say what a run takes on a card that is not here"),
    "shapes": ("tools.shapes", "list shapes of T5 with their cost"),
    "bench": ("tools.bench", "measure speed"),
    "sweep": ("tools.sweep", "train every point of a grid"),
    "study": ("tools.study", "run a whole study"),
    "report": ("tools.report", "show runs on one page, also while they go on"),
    "doctor": ("cramjax.doctor", "say what is installed here and what is missing"),
}
"""Command → its module and a line about it."""

_COMPLETION = """The tab key completes commands, flags, recipes and keys after this, once a shell:
  bash, zsh   eval "$(register-python-argcomplete cramjax)"
  fish        register-python-argcomplete --shell fish cramjax | source"""


def main() -> int:
    """Run the command that the first word of the command line names; returns the exit code."""
    # A signal from here on ends the process without a traceback, until `run_command` takes over.
    stop.end_imports()
    if "_ARGCOMPLETE" in os.environ:
        return _complete()
    name, *words = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        return _run(name, words)

    with streams.unbroken():
        if name in ("-h", "--help", "help"):
            print(_help())
            return 0
        if name == "--version":
            print(f"cramjax {__version__}")
            return 0
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(COMMANDS)}"
        print(f"error: cramjax {name}: no such command; {hint}", file=sys.stderr)
        return 2


def _run(name: str, words: list[str]) -> int:
    """Run a command on the words behind its name, as if it were a program of its own."""
    # The parser takes the program's name from here.
    sys.argv = [f"cramjax {name}", *words]
    return importlib.import_module(_module(name)).main()


def _module(name: str) -> str:
    """Return the module of a command: a wheel has the tools inside the package."""
    module = COMMANDS[name][0]
    inside = f"cramjax.{module}"
    if module.startswith("tools.") and importlib.util.find_spec("cramjax.tools"):
        return inside
    return module


def _complete() -> int:
    """Answer the shell, which asks for completions of a line with its first words."""
    line = os.environ.get("COMP_LINE", "").split()
    if len(line) > 1 and line[1] in COMMANDS and not os.environ["COMP_LINE"].endswith(line[1]):
        # The parser of that command sees the line without the word `cramjax`.
        os.environ["_ARGCOMPLETE"] = "2"
        return _run(line[1], [])

    import argparse

    import argcomplete

    parser = argparse.ArgumentParser(prog="cramjax")
    parser.add_argument("command", choices=[*COMMANDS, "help"])
    argcomplete.autocomplete(parser)
    return 0


def _help() -> str:
    lines = ["usage: cramjax COMMAND [flags]", "", "commands (cramjax COMMAND --help says more):"]
    lines += [f"  {name:<10}{about}" for name, (_, about) in COMMANDS.items()]
    lines += ["", "  --version  the version of cramjax", "", _COMPLETION]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
