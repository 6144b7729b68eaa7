"""`python -m tools.prepare_data`: prepares the dataset of a recipe and prints what is in it."""

import argparse
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from cramjax.config.cli import add_config_flags, at_least, make_parser, run_command
from cramjax.console import announce
from cramjax.errors import UserError

if TYPE_CHECKING:
    from cramjax.config.views import Config

EXAMPLE = """example:
  python -m tools.prepare_data --config configs/quickstart.py
  python -m tools.prepare_data --config configs/bert_1day.py \\
      --config.data.source='text:corpus/*.jsonl.zst'
  python -m tools.prepare_data --config configs/bert_1day.py --device rtx4090 --n_devices 2

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
    config = _with_amount(config, args)
    directory = prepare.prepare(config.data, announce=announce, n_workers=args.workers)
    table = describe(directory, prepare.read_manifest(directory))
    # A name that is not UTF-8 cannot be printed as it is.
    print(table.encode("utf-8", "backslashreplace").decode("utf-8"))


def _with_amount(config: "Config", args: argparse.Namespace) -> "Config":
    """Returns `config` with as much text as a run will ask for on the device that is named."""
    if config.data.max_mb != "budget":
        return config
    # Counting a network's work takes JAX as well.
    from cramjax.planning import text

    if args.device:
        return text.settled(config, args.device, args.n_devices, announce)
    if args.n_devices:
        raise UserError(f"--n_devices {args.n_devices}: of which card? Name it with --device")
    config = text.settled_here(config, announce)
    announce("  that is for the devices of this machine; for others, name their card: --device")
    return config


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
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="card of the run, if data.max_mb is budget: h100, rtx3060, v5e-8, … as in tools.plan "
        "(default: the devices of this machine)",
    )
    parser.add_argument(
        "--n_devices", type=at_least(1), metavar="N", help="number of these cards (default: 1)"
    )
    return run_command(_prepare, argv, parser)


if __name__ == "__main__":
    sys.exit(main())
