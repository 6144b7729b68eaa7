"""`python -m tools.export_hf`: exports a model for stock `transformers`, and pushes it if asked."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING

from cramjax.config.cli import in_home, make_parser, path, run_command

if TYPE_CHECKING:
    from cramjax.publishing.export import Options

EXAMPLE = """written to --out:
  config.json, model.safetensors   of a stock class: Bert, MegatronBert, RobertaPreLayerNorm or
                                   ModernBert (ForMaskedLM, or ForSequenceClassification for a
                                   finetuned encoder), T5ForConditionalGeneration
  tokenizer.json, …                for AutoTokenizer
  README.md, loss.png              the model card

The documentation lists the recipes that have such a class. Every export is checked against the
list of tensors of that class, and read back.

examples:
  python -m tools.export_hf --checkpoint runs/bert_1day_modern --out export/bert --verify
  python -m tools.export_hf --checkpoint runs/glue/models/rte/point-0/seed-0 --out export/rte
  HF_TOKEN=hf_… python -m tools.export_hf --checkpoint runs/t5_1day --out export/t5 \\
      --push_to_hub me/t5 --revision 'step-{step}'
  python -m tools.export_hf --checkpoint runs/bert_24h_academic --out export/bert24h --revisions

If the network fails, the export stays in --out and the same command goes on."""


def _run(args: argparse.Namespace) -> int:
    from cramjax import start
    from cramjax.publishing import push
    from cramjax.publishing.export import Options
    from cramjax.publishing.facts import find_results
    from cramjax.publishing.revisions import revisions

    _check(args)
    results = args.results
    # What lies in runs/finetune is of the last checkpoint.
    if results is None and args.step is None:
        results = find_results(args.checkpoint)
    if args.push_to_hub:
        push.check(args.push_to_hub)
    options = Options(
        dtype=args.dtype,
        max_shard_size=args.max_shard_size,
        verify=args.verify,
        license=args.license,
        language=args.language,
        results=results,
        name=args.push_to_hub,
        step=args.step,
    )
    if not args.revisions:
        start.start()
        _export(args, args.out, options, args.revision)
        return 0

    # All are known before the first is exported.
    listed = revisions(args.checkpoint)
    start.start()
    for one in listed:
        # The results are those of the last checkpoint.
        of_step = dataclasses.replace(options, step=one.step)
        if one.step is not None:
            of_step = dataclasses.replace(of_step, results=None)
        _export(args, args.out / one.name, of_step, one.branch)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise UserError for flags that do not go with --revisions."""
    from cramjax.errors import UserError

    for flag in ("step", "revision"):
        if args.revisions and getattr(args, flag) is not None:
            raise UserError(f"--{flag}: --revisions names the checkpoints itself; give one of them")


def _export(
    args: argparse.Namespace, out: pathlib.Path, options: Options, revision: str | None
) -> None:
    """Export one checkpoint to the folder `out`, and push it to a branch if that is asked."""
    from cramjax.publishing import push
    from cramjax.publishing.export import export

    exported = export(args.checkpoint, out, options, _tell)
    print(f"{out}: {exported.architecture}")
    if not args.push_to_hub:
        return
    url = push.push(
        out,
        args.push_to_hub,
        private=args.private,
        revision=revision and revision.replace("{step}", str(exported.step)),
        message=f"{exported.architecture} at step {exported.step}",
        tell=_tell,
    )
    print(url)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "tools.export_hf",
        "Write a model as stock transformers loads it, and push it to the Hugging Face Hub.",
        EXAMPLE,
    )
    _add_model_flags(parser)
    _add_card_flags(parser)
    _add_hub_flags(parser)
    return parser


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        type=in_home,
        required=True,
        metavar="WORKDIR",
        help="folder of a run, or of a model that tools.finetune saved",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=path,
        metavar="DIR",
        help="folder to write; an earlier export is replaced",
    )

    parser.add_argument(
        "--step", type=int, metavar="N", help="checkpoint of this step (default: the newest)"
    )
    parser.add_argument(
        "--revisions",
        action="store_true",
        help="export the last checkpoint to DIR/main and each one of checkpoint.at_hours to "
        "DIR/<hours>h; with --push_to_hub each of these to a branch of that name",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the weights (default: float32)",
    )
    parser.add_argument(
        "--max_shard_size",
        default="5GB",
        metavar="SIZE",
        help="larger weights become several files (default: 5GB)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare logits with transformers' (needs torch and transformers)",
    )


def _add_card_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results",
        type=path,
        metavar="FILE",
        help="results.json of tools.finetune, for the model card "
        "(default: the one in runs/finetune, if any; none with --step)",
    )
    parser.add_argument(
        "--license",
        default="unknown",
        metavar="ID",
        help="the Hub's name of the model's license, for example apache-2.0 (default: unknown)",
    )
    parser.add_argument(
        "--language", default="en", metavar="CODE", help="language of the text (default: en)"
    )


def _add_hub_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--push_to_hub",
        metavar="USER/NAME",
        help="push to this model on the Hub; HF_TOKEN has to be set",
    )
    parser.add_argument(
        "--private", action="store_true", help="make a new model on the Hub private"
    )
    parser.add_argument(
        "--revision",
        metavar="R",
        help="branch to push to, created if it does not exist; "
        "{step} stands for the step of the checkpoint",
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); returns the exit code."""
    return run_command(_run, argv, _parser())


if __name__ == "__main__":
    sys.exit(main())
