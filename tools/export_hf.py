"""`python -m tools.export_hf`: a trained or finetuned model as a folder that stock `transformers` loads, and on the Hub if asked."""

import argparse
import pathlib
import sys

from cramjax.config.cli import make_parser, run_command

EXAMPLE = """written to --out:
  config.json, model.safetensors   of a stock class: Bert, MegatronBert, RobertaPreLayerNorm or ModernBert (ForMaskedLM, or
                                   ForSequenceClassification of a finetuned encoder), T5ForConditionalGeneration
  tokenizer.json, …                for AutoTokenizer
  README.md, loss.png              the model card

Which recipes have such a class: README.md. Every export is checked against the class's own list of tensors and read back.

examples:
  python -m tools.export_hf --checkpoint runs/bert_1day_modern --out export/bert --verify
  python -m tools.export_hf --checkpoint runs/glue/models/rte/point-0/seed-0 --out export/rte
  HF_TOKEN=hf_… python -m tools.export_hf --checkpoint runs/t5_1day --out export/t5 --push_to_hub me/t5 --revision 'step-{step}'

Where the network fails, the export stays in --out and the same command goes on."""


def _results(checkpoint: str) -> pathlib.Path | None:
    """What `tools.finetune` wrote of `checkpoint` where it is not told where; None if that is not there, or there are several protocols."""
    name = pathlib.Path(checkpoint).resolve().name
    found = [
        path
        for path in pathlib.Path("runs/finetune").glob(f"{name}-*/results.json")
        if path.parent.name.count("-") == name.count("-") + 1
    ]
    return found[0] if len(found) == 1 else None


def _export(args: argparse.Namespace) -> int:
    from cramjax import start
    from cramjax.publishing.export import Options, export

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if args.push_to_hub:
        from cramjax.publishing import push

        push.check(args.push_to_hub)
    options = Options(
        dtype=args.dtype,
        max_shard_size=args.max_shard_size,
        verify=args.verify,
        license=args.license,
        language=args.language,
        results=args.results or _results(args.checkpoint),
        name=args.push_to_hub,
        step=args.step,
    )
    start.start()
    found = export(args.checkpoint, args.out, options, tell)
    print(f"{args.out}: {found['architecture']}")
    if args.push_to_hub:
        revision = args.revision and args.revision.replace("{step}", str(found["step"]))
        message = f"{found['architecture']} at step {found['step']}"
        url = push.push(
            args.out,
            args.push_to_hub,
            private=args.private,
            revision=revision,
            message=message,
            tell=tell,
        )
        print(url)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); returns the exit code."""
    parser = make_parser(
        "tools.export_hf",
        "Write a model as stock transformers loads it, and push it to the Hugging Face Hub.",
        EXAMPLE,
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="WORKDIR",
        help="folder of a run, or of a model that tools.finetune saved",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=pathlib.Path,
        metavar="DIR",
        help="folder to write; an earlier export is replaced",
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="checkpoint of this step (default: the newest)"
    )
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument(
        "--dtype", choices=dtypes, default="float32", help="of the weights (default: float32)"
    )
    parser.add_argument(
        "--max_shard_size",
        default="5GB",
        metavar="SIZE",
        help="larger weights are several files (default: 5GB)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare logits with transformers' (needs torch and transformers)",
    )
    parser.add_argument(
        "--results",
        type=pathlib.Path,
        metavar="FILE",
        help="results.json of tools.finetune, for the model card (default: that in runs/finetune, if any)",
    )
    parser.add_argument(
        "--license",
        default="unknown",
        metavar="ID",
        help="of the model, by the Hub's names, as apache-2.0 (default: unknown)",
    )
    parser.add_argument(
        "--language", default="en", metavar="CODE", help="of the text (default: en)"
    )
    parser.add_argument(
        "--push_to_hub",
        metavar="USER/NAME",
        help="push to this model on the Hub; HF_TOKEN has to be set",
    )
    parser.add_argument(
        "--private", action="store_true", help="a model made by this push is private"
    )
    parser.add_argument(
        "--revision",
        metavar="R",
        help="branch to push to, made if it is not there; {step} is the step of the checkpoint",
    )
    return run_command(_export, argv, parser)


if __name__ == "__main__":
    sys.exit(main())
