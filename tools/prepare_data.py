"""`python -m tools.prepare_data`: prepares the dataset of a recipe and prints what is in it."""

import argparse
import pathlib
import sys
from typing import Any

from cramjax.config.cli import add_config_flags, make_parser, run_command
from cramjax.console import announce

EXAMPLE = """example:
  python -m tools.prepare_data --config configs/quickstart.py
  python -m tools.prepare_data --config configs/bert_1day.py \\
      --config.data.source='text:corpus/*.jsonl.zst'

data.* keys, their units and defaults: DATA in cramjax/config/schema.py. After a kill, the same
command goes on where it stopped; when it is finished, it prints the table again at once."""


def _prepare(args: argparse.Namespace) -> None:
    from cramjax.config.resolve import resolve

    config = resolve(args.config, args.overrides)
    from cramjax.data import prepare

    # The tokenizer is that of the first model. Reading a model takes JAX, preparing data does not.
    if config.init_from:
        from cramjax import start
        from cramjax.checkpoints import pretrained

        start.start()
        config = pretrained.with_tokenizer(config)
    directory = prepare.prepare(config.data, announce=announce, n_workers=args.workers)
    table = describe(directory, prepare.read_manifest(directory))
    # A name that is not UTF-8 cannot be printed as it is.
    print(table.encode("utf-8", "backslashreplace").decode("utf-8"))


def describe(directory: pathlib.Path, manifest: dict[str, Any]) -> str:
    """Returns a short table of what is in the prepared dataset in `directory`."""
    from cramjax.data import lost_text

    lines = [
        ("dataset", directory),
        ("source", manifest["source"]),
        ("documents", f"{manifest['documents']:,}"),
        ("training tokens", f"{manifest['train_tokens']:,}"),
        ("held-out tokens", f"{manifest['heldout_tokens']:,}"),
        ("vocabulary", f"{manifest['vocab_size']:,}"),
        ("shards", f"{len(manifest['shards']):,}"),
    ]
    lines += lost_text.rows(manifest)
    return "\n".join(f"{name:<26}{value}" for name, value in lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); returns the exit code."""
    parser = make_parser(
        "tools.prepare_data",
        "Prepare the dataset of a recipe: read, clean, train the tokenizer, filter, encode, pack.",
        EXAMPLE,
    )
    add_config_flags(parser)
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that read and clean (default: one a core, 8 at most)",
    )
    return run_command(_prepare, argv, parser)


if __name__ == "__main__":
    sys.exit(main())
