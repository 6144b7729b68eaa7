"""`python -m tools.predict`: predict the rows of a file with a finetuned model."""

import argparse
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from cramjax.config.cli import comma_separated, in_home, make_parser, path, run_command
from cramjax.console import announce
from cramjax.errors import UserError
from cramjax.files import replacing

EXAMPLE = """input, of any size:
  .txt                     a text a line
  .tsv, .csv               columns, named in the first line
  .jsonl, .parquet         rows with the same names; words to be tagged as a list or as a text
  The columns are those of the task that the model is finetuned for (sentence; question, context;
  …), text for a model of transformers, or those that --columns names.
  All but .parquet may be compressed (.gz).

output, a line a row in the order of the input:
  classes                  label, score (its probability, 0 to 1); of a T5 label alone
  a regression             score
  tags                     words, tags
  answers                  answer, score, no_answer (score of "no answer" less that of the text); of
                           a T5 answer alone
  embeddings               embedding, a list; with --out FILE.npy an array float32 [rows, width]
  a T5's text              text
  The label or score of a T5 that writes neither is empty.

examples:
  python -m tools.predict --checkpoint runs/glue/models/cola/point-0/seed-0 --input new.txt \\
      --out labels.tsv
  python -m tools.predict --checkpoint export/rte --input pairs.tsv --columns first,second \\
      --out labels.jsonl
  python -m tools.predict --checkpoint runs/search/models/search/point-0/seed-0 \\
      --input documents.jsonl --columns body --out vectors.npy"""


def _predict(args: argparse.Namespace) -> int:
    if args.out.suffix not in (".tsv", ".jsonl", ".npy"):
        raise UserError(f"--out {args.out}: must end in .tsv or .jsonl, or .npy for embeddings")
    source = pathlib.Path(args.input)
    if not source.is_file():
        raise UserError(f"--input {args.input}: no such file")
    from cramjax import start
    from cramjax.finetuning import prediction, prediction_files

    start.start()
    model = prediction.load_finetuned(args.checkpoint)
    n_texts = len(args.columns) if args.columns else None
    predictor = prediction.Predictor(model, n_texts)
    if args.threshold is not None and not predictor.has_odds:
        raise UserError(
            f'--threshold: this model of {predictor.task.name} gives no score of "no answer"; '
            "leave --threshold out"
        )

    width = predictor.width
    if args.out.suffix == ".npy" and width is None:
        raise UserError(
            f"--out {args.out}: this model of {predictor.task.name} gives no embeddings; take "
            ".tsv or .jsonl"
        )

    rows = prediction_files.rows(source, predictor.task, args.columns)
    predictions = predictor.predict(rows)
    with replacing(args.out) as temporary:
        if args.out.suffix == ".npy" and width is not None:
            vectors = (found["embedding"] for found in predictions)
            with temporary.open("wb") as file:
                n_rows = prediction_files.write_vectors(file, vectors, width)
        else:
            n_rows = _write_lines(temporary, args, predictions)
    announce(f"{args.out}: predictions of {predictor.task.name}, {n_rows:,} in all")
    return 0


def _write_lines(
    path: pathlib.Path, args: argparse.Namespace, predictions: Iterator[dict[str, Any]]
) -> int:
    """Write a line for each prediction to `path`, and return their number."""
    from cramjax.finetuning import prediction_files

    suffix = args.out.suffix
    n_rows = 0
    with path.open("w", encoding="utf-8") as file:
        for found in predictions:
            if args.threshold is not None and found["no_answer"] > args.threshold:
                found["answer"] = ""
            if not n_rows:
                file.write(prediction_files.header(found, suffix))
            file.write(prediction_files.line(found, suffix))
            n_rows += 1
    return n_rows


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit code."""
    parser = make_parser(
        "tools.predict", "Predict the rows of a file with a finetuned model.", EXAMPLE
    )
    parser.add_argument(
        "--checkpoint",
        type=in_home,
        required=True,
        metavar="DIR",
        help="a folder of tools.finetune --save, a compressed one, or a Hugging Face model with a "
        "head; not of WiC, WSC, COPA, MultiRC or ReCoRD, whose rows are more than texts",
    )

    parser.add_argument("--input", type=in_home, required=True, metavar="FILE", help="rows")
    parser.add_argument(
        "--out",
        type=path,
        required=True,
        metavar="FILE",
        help="predictions, .tsv or .jsonl; embeddings also .npy",
    )

    parser.add_argument(
        "--columns",
        type=comma_separated(str, "columns"),
        metavar="NAME[,NAME]",
        help="columns of the texts (default: the task's)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="T",
        help='leave a question unanswered where "no_answer" is over T (default: answer all)',
    )
    return run_command(_predict, argv, parser)


if __name__ == "__main__":
    sys.exit(main())
