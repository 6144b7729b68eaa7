"""`python -m tools.bench`: how fast a configuration trains on this machine."""

import argparse
import json
import pathlib
import sys

from cramjax.config.cli import add_config_flags, at_least, check_output, make_parser, run_command

EXAMPLE = """printed, and written with --json:
  compile_s, step_s (median), step_s_p10, step_s_p90   seconds
  dispatch_us, host_us                                 of the host: until the call of a step returns (median; of a CPU it
                                                       may hold computing), and a round of the training loop with a step
                                                       that computes nothing
  tokens_per_s                                         at step_s
  model_tflops, matmul_peak_tflops, mfu                analytic FLOPs of the model over step_s; products
                                                       measured on the same device and dtype; their ratio
  xla_flops, analytic_flops                            of a step, counted by the compiler and by hand
  temporary_bytes, peak_memory_bytes                   of the compiled step; of the device, where it says
  input_tokens_per_s                                   of each loader alone, from page cache

with --peer, beside transformers' model of the same sizes in torch (pip install -r requirements-test.txt):
  ours                                                 the above, in float32 and in bfloat16
  ours_tokens_per_s                                    before and after the peers ran
  peers                                                step_s and tokens_per_s, eager and compiled, in both
  ratio_to_peer                                        ours (mean of both) over the peer's best mode

with --finetune TASK, in place of the above:
  ours                                                 examples_per_s of a seed in float32 and bfloat16 by the cramming
                                                       protocol, compiled; compile_s
  peers, ratio_to_peer                                 with --peer: transformers' Trainer in its modes; ours over its best;
                                                       float32: over random batches alone, float32_any: over all

examples:
  python -m tools.bench --config configs/bert_1day.py --config.batch_size=128 --steps 10 --json bench.json
  python -m tools.bench --suite gpu --json gpu.json
  python -m tools.bench --config configs/t5_efficient.py:mini --config.data.seq_len=128 --config.batch_size=32 --peer
  python -m tools.bench --config configs/quickstart.py --finetune cola --data_dir glue --steps 300 --peer"""


def _bench(args: argparse.Namespace) -> None:
    from cramjax.config.resolve import resolve
    from cramjax.errors import UserError

    if bool(args.finetune) != bool(args.data_dir):
        raise UserError("--finetune TASK and --data_dir DIR go together")
    if bool(args.config) == bool(args.suite):
        raise UserError("give --config FILE, or --suite NAME")
    check_output("--json", args.json)
    if args.suite:
        _bench_suite(args)
        return
    if args.peer_modes and not (args.peer and args.finetune):
        raise UserError(f"--peer_modes {args.peer_modes}: is for --finetune TASK with --peer")
    config = resolve(args.config, args.overrides)
    print("compiling the train step…", file=sys.stderr)
    if args.finetune:
        from cramjax.bench import finetuning, finetuning_peer

        modes = finetuning_peer.EAGER_MODES if args.peer_modes == "eager" else finetuning_peer.MODES
        result = finetuning.bench(
            config, args.finetune, args.data_dir, args.steps, peer=args.peer, modes=modes
        )
    elif args.peer:
        from cramjax.bench.peers import compare

        result = compare(config, args.steps)
    else:
        from cramjax.bench.pretraining import bench

        result = bench(config, args.steps)
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


def _bench_suite(args: argparse.Namespace) -> None:
    from cramjax.bench import suites

    results = []
    for result in suites.run(args.suite, args.overrides, args.steps):
        results.append(result)
        if args.json:
            args.json.write_text(json.dumps(results, indent=2) + "\n")
    print(suites.table(results))


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); returns the exit code."""
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
    steps_help = "steps timed, when everything is compiled and warm (default: 20)"
    parser.add_argument("--steps", type=at_least(1), default=20, metavar="N", help=steps_help)
    parser.add_argument(
        "--peer", action="store_true", help="measure transformers' model of the same sizes as well"
    )
    parser.add_argument(
        "--finetune", metavar="TASK", help="measure finetuning on a task of GLUE, as cola"
    )
    parser.add_argument(
        "--data_dir", metavar="DIR|tfds", help="where the task is, as for tools.finetune"
    )
    modes_help = "of the Trainer, with --finetune and --peer: eager leaves out torch.compile, which takes minutes"
    parser.add_argument(
        "--peer_modes", choices=("eager", "all"), help=f"{modes_help} (default: all)"
    )
    parser.add_argument(
        "--json", type=pathlib.Path, metavar="FILE", help="write the result there as well"
    )
    return run_command(_bench, argv, parser)


if __name__ == "__main__":
    sys.exit(main())
