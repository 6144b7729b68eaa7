"""`python -m tools.finetune`: finetune a checkpoint on tasks and print its scores."""

import argparse
import sys

from cramjax.config.cli import (
    at_least,
    comma_separated,
    from_flags,
    in_home,
    make_parser,
    path,
    run_command,
)
from cramjax.console import announce
from cramjax.files import alone_in

EXAMPLE = """protocols (results carry all settings):
  cramming   batch 16, 5 epochs, lr 4e-5, the same for every task, median of 5 seeds
             (the default for encoders)
  bert       batch 32, 3 epochs, the best of four learning rates
  24hbert    batch 32, 5 epochs, lr 5e-5 after 50 steps of warm-up, median of 5 seeds
  mosaic     settings by task; RTE, MRPC and STS-B start from the MNLI model
  t5         text to text, Adafactor 1e-3, batch 128, the best epoch (the default for T5s)

written to --out:
  results.json, results.md   median, mean, std, min, max and all seeds of every metric, in percent;
                             the settings
  predictions/<task>.tsv     of the seed with the median score
  submission.zip             with --submission: test sets in the form the server takes
  models/<task>/…            with --save

examples:
  python -m tools.finetune --checkpoint runs/bert_1day --task glue --data_dir glue --out runs/glue
  python -m tools.finetune --checkpoint runs/quickstart --task cola,rte --data_dir tfds \\
      --seeds 3 --set lr=1e-4 --set epochs=10
  python -m tools.finetune --checkpoint runs/bert_1day --task squad2 --data_dir squad --save
  python -m tools.finetune --checkpoint runs/bert_1day --task reviews.yaml --out runs/reviews

Run again with the same --out, it does only what is missing."""


def _finetune(args: argparse.Namespace) -> int:
    from cramjax.finetuning.protocols import choose_protocol
    from cramjax.finetuning.request import choose_tasks

    # Mistakes in tasks and settings are found before JAX starts.
    tasks = choose_tasks(args.tasks, args.data_dir)
    if args.protocol:
        choose_protocol(args.protocol, False, args.set, args.grid, tasks)
    from cramjax import inference, start
    from cramjax.finetuning import request, results, run
    from cramjax.tasks import catalogue

    start.start()
    model = inference.load(args.checkpoint, dequantize=True)
    protocol = choose_protocol(args.protocol, model.is_t5, args.set, args.grid, tasks)
    out = args.out or request.default_out(args.checkpoint, protocol, args.untrained)
    n_seeds = args.n_seeds or protocol.n_seeds
    wanted = from_flags(request.FinetuneRequest, args, protocol=protocol, out=out, n_seeds=n_seeds)

    with alone_in(out, "--out"):
        finetuning = run.Finetuning(wanted, model, announce)
        scores = finetuning.run()
    print(
        results.plain_table(
            results.table(catalogue.listed(finetuning.all_tasks), scores, compare=args.compare)
        )
    )
    print(f"{results.describe_seeds(scores)}, protocol {protocol.name}; {out / 'results.md'}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit code."""
    parser = make_parser(
        "tools.finetune",
        "Finetune a checkpoint on GLUE, SuperGLUE, tags, answers, sentence embeddings or tasks of "
        "your own, several seeds of each.",
        EXAMPLE,
    )
    _add_inputs(parser)
    _add_protocol(parser)
    _add_outputs(parser)
    return run_command(_finetune, argv, parser)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        type=in_home,
        required=True,
        metavar="WORKDIR|HF_DIR",
        help="a run's folder, or a Hugging Face model's",
    )

    parser.add_argument(
        "--task",
        dest="tasks",
        type=comma_separated(str, "tasks"),
        required=True,
        metavar="TASK[,TASK…]",
        help="names of tasks, glue or superglue; conll, squad, squad2, sts; or a task file (.yaml)",
    )

    parser.add_argument(
        "--data_dir",
        type=in_home,
        metavar="DIR|tfds",
        help="folder with CoLA/, RTE/, … as distributed (STS-B/ for sts), with the files of conll "
        "or squad, or tfds (default: for a task file, its folder)",
    )

    parser.add_argument(
        "--untrained",
        action="store_true",
        help="fresh parameters in place of the checkpoint's: the control",
    )


def _add_protocol(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--protocol", metavar="NAME", help="one of those below")

    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="[TASK.]KEY=VALUE",
        help="change a setting, for all tasks or one",
    )

    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=V1,V2,…",
        help="search a setting; the best point is reported",
    )

    parser.add_argument(
        "--seeds",
        dest="n_seeds",
        type=at_least(1),
        metavar="N",
        help="seeds 0 to N-1 (default: as many as the protocol has)",
    )

    parser.add_argument(
        "--together",
        type=at_least(1),
        metavar="N",
        help="seeds trained as one program (default: by device and task)",
    )

    parser.add_argument(
        "--hours", type=float, metavar="H", help="start no run after this many hours"
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=path, metavar="DIR", help="default: runs/finetune/CHECKPOINT-PROTOCOL"
    )

    parser.add_argument("--save", action="store_true", help="keep every finetuned model")
    parser.add_argument(
        "--submission",
        dest="submit",
        action="store_true",
        help="predict the test sets and zip them for the server",
    )

    parser.add_argument(
        "--compare", action="store_true", help="print published rows beside the results"
    )


if __name__ == "__main__":
    sys.exit(main())
