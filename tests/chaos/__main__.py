"""Tells stories: `python -m tests.chaos --seeds 0:100`. See docs/internals/chaos.md."""

import argparse
import collections
import pathlib
import random
import shutil
import sys
import tempfile
import time

from tests import conftest  # noqa: F401  (it sets what JAX reads when it is imported)
from tests.chaos import story
from tests.chaos.commands import COMMANDS


def command_of(seed):
    """Returns the name of the command that the story of a seed disturbs."""
    weights = [command.weight for command in COMMANDS.values()]
    return random.Random(seed).choices(list(COMMANDS), weights)[0]


def tell_all(stories, folder):
    """Tell stories one after the other and print a line of each.

    Args:
        stories: (command, seed) of each.
        folder: an empty folder for them; that of a failed story stays.

    Returns:
        How often each fault has struck, and the messages of the stories that failed.
    """
    struck, failed = collections.Counter(), []
    zygote = story.Zygote(folder.parent / "programs")

    try:
        stage = story.open_stage(folder, zygote)
        for name, seed in stories:
            stage.learn(name)
            # A story that fails does not end the others.
            told = story.Story(stage, name, seed)
            began = time.monotonic()
            try:
                told.tell()
                shutil.rmtree(told.world.folder)
                end = "survived"
            except story.Violation as violation:
                failed.append(str(violation))
                end = f"FAILED: {violation}"

            seconds = time.monotonic() - began
            faults = ", ".join(told.struck) or "nothing"
            print(
                f"{name} {seed}: {faults}; {told.n_starts} starts, {seconds:.0f} s: {end}",
                flush=True,
            )
            struck.update(told.struck)
    finally:
        zygote.close()
    return struck, failed


def _seeds(text):
    first, last = text.split(":")
    return range(int(first), int(last))


def main():
    """Tell the stories that the flags name; returns 1 if one of them fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seeds", type=_seeds, default=range(100), help="FIRST:LAST, without LAST")
    parser.add_argument("--command", choices=COMMANDS, help="for all seeds (default: drawn)")
    parser.add_argument("--folder", type=pathlib.Path, help="of failed stories")
    args = parser.parse_args()

    parent = args.folder or pathlib.Path(tempfile.mkdtemp(prefix="chaos-"))
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"seeds-{args.seeds.start}-", dir=parent))
    stories = [(args.command or command_of(seed), seed) for seed in args.seeds]
    struck, failed = tell_all(stories, folder)

    for fault, n in sorted(struck.items()):
        print(f"{n:5} {fault}")
    print(f"{sum(struck.values())} faults in {len(stories)} stories, {len(failed)} stories failed")
    if failed:
        print(folder)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
