"""`python -m tools.bench`: measures how fast a configuration trains on this machine."""

import argparse
import json
import sys
from typing import Any

from cramjax.config.cli import (
    add_config_flags,
    at_least,
    check_output,
    in_home,
    make_parser,
    path,
    run_command,
)
from cramjax.errors import UserError
from cramjax.files import write_json

EXAMPLE = """printed, and written with --json:
  compile_s                              seconds
  step_s, step_s_p10, step_s_p90         seconds of a step: median and outer tenths
  dispatch_us, host_us                   of the host: until the call of a step returns (median; on
                                         a CPU it may include computing); a round of the training
                                         loop with a step that computes nothing
  tokens_per_s                           at step_s
  model_tflops, matmul_peak_tflops, mfu  analytic FLOPs of the model over step_s; products measured
                                         on the same device and dtype; their ratio
  xla_flops, analytic_flops              of a step, counted by the compiler and by hand
  temporary_bytes, peak_memory_bytes     of the compiled step; of the device, if it tells
  input_tokens_per_s                     of each loader alone, from page cache

with --peer, beside transformers' model of the same sizes in torch
(pip install -r requirements-test.txt):
  ours                                   the keys above, in float32 and in bfloat16
  ours_tokens_per_s                      before and after the peers ran
  peers                                  step_s and tokens_per_s, eager and compiled, in both
  ratio_to_peer                          ours (mean of both) over the peer's best mode

with --finetune TASK, instead of the keys above:
  ours                                   examples_per_s of a seed in float32 and bfloat16 by the
                                         cramming protocol, compiled; compile_s; texts of all
                                         lengths, and of like length, in a batch. Tags and
                                         answers have windows of texts as examples
  peers, ratio_to_peer, best_peer_mode   with --peer: transformers' Trainer in its modes; ours over
                                         its best (float32: no texts of like length,
                                         float32_any: all); which mode that was.
                                         --config.precision=float32 measures that one alone

examples:
  python -m tools.bench --config configs/bert_1day.py --config.batch_size=128 \\
      --config.schedule.batch_ramp=0 --steps 10
  python -m tools.bench --suite gpu --json gpu.json
  python -m tools.bench --config configs/t5_efficient.py:mini --config.data.seq_len=128 \\
      --config.batch_size=32 --peer
  python -m tools.bench --config configs/quickstart.py --finetune cola --data_dir glue \\
      --steps 300 --peer
  python -m tools.bench --config configs/quickstart.py --finetune squad --data_dir squad \\
      --steps 30 --peer"""


def _bench(args: argparse.Namespace) -> None:
    _check(args)
    if args.suite:
        _bench_suite(args)
        return
    result = _measure(args)
    print(json.dumps(result, indent=2))
    if args.json:
        write_json(args.json, result)


def _check(args: argparse.Namespace) -> None:
    if bool(args.finetune) != bool(args.data_dir):
        raise UserError("--finetune TASK and --data_dir DIR go together")
    if bool(args.config) == bool(args.suite):
        raise UserError("give --config FILE, or --suite NAME")
    if args.peer_modes and not (args.suite or (args.peer and args.finetune)):
        raise UserError(f"--peer_modes {args.peer_modes}: is for --finetune TASK with --peer")
    check_output("--json", args.json)


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    from cramjax.config.resolve import resolve

    config = resolve(args.config, args.overrides)
    print("compiling the train step…", file=sys.stderr)
    if args.finetune:
        from cramjax.bench import finetuning, finetuning_peer

        modes = finetuning_peer.MODES
        if args.peer_modes == "eager":
            modes = finetuning_peer.EAGER_MODES
        return finetuning.bench(
            config, args.finetune, args.data_dir, args.steps, peer=args.peer, modes=modes
        )
    if args.peer:
        from cramjax.bench.peers import compare

        return compare(config, args.steps)
    from cramjax.bench.pretraining import bench

    return bench(config, args.steps)


def _bench_suite(args: argparse.Namespace) -> None:
    from cramjax.bench import suites

    results = []
    for result in suites.run(args.suite, args.overrides, args.steps):
        results.append(result)
        # A suite takes hours: what is measured is kept if a later member fails.
        if args.json:
            write_json(args.json, results)
    print(suites.table(results))


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "tools.bench",
        "Measure a configuration's train step and input pipeline on this machine.",
        EXAMPLE,
    )
    add_config_flags(parser, required=False)
    parser.add_argument(
        "--suite",
        metavar="NAME",
        help="several configurations with their peers, as a table: gpu or cpu",
    )
    parser.add_argument(
        "--steps",
        type=at_least(1),
        default=20,
        metavar="N",
        help="steps to time, after compilation and warm-up (default: 20)",
    )
    parser.add_argument(
        "--peer",
        action="store_true",
        help="measure transformers' model of the same sizes as well",
    )

    parser.add_argument(
        "--finetune",
        metavar="TASK",
        help="measure finetuning on a task of classes, tags or answers, as cola, conll or squad",
    )
    parser.add_argument(
        "--data_dir",
        type=in_home,
        metavar="DIR|tfds",
        help="where the task is, as for tools.finetune",
    )
    parser.add_argument(
        "--peer_modes",
        choices=("eager", "all"),
        help="modes of the Trainer, with --finetune and --peer; eager leaves out torch.compile, "
        "which takes minutes (default: all)",
    )
    parser.add_argument(
        "--json",
        type=path,
        metavar="FILE",
        help="write the result there as well",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); returns the exit code."""
    return run_command(_bench, argv, _make_parser())


if __name__ == "__main__":
    sys.exit(main())
