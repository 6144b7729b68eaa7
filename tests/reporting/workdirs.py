"""Makes workdirs as runs leave them, in milliseconds, with hostile names if wanted."""

import json

SECONDS = ("compile_s", "eval_s", "save_s", "growth_s", "data_wait_s")
HOSTILE = "</script><img src=x onerror=alert(1)><b>&amp;\u2028'\""


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def metrics(n_lines=20, loss=9.0, *, evaluations=4):
    """Lines of a run of `n_lines`, with evaluations between them."""
    lines = []
    for number in range(1, n_lines + 1):
        common = {"step": number, "elapsed_s": 2.0 * number, "tokens": 1000 * number}
        line = {"progress": number / n_lines, "loss": loss - number / n_lines, "lr": 1e-3}
        line |= {"grad_norm": 1.0, "batch_size": 8, "tokens_per_s": 800.0, "mfu": 0.2, "skipped": 0}
        lines.append(common | line | {"flops": 1e6 * number})
        if number % max(1, n_lines // evaluations) == 0:
            found = {"eval_loss": loss - number / n_lines, "eval_accuracy": 0.1}
            lines.append(common | found | {"flops": 1e6 * number, "unigram_loss": 7.0})
    return lines


def summary(lines):
    last = lines[-1]
    return {
        "steps": last["step"],
        "tokens": last["tokens"],
        "flops": last["flops"],
        "params": 123456,
        "elapsed_s": last["elapsed_s"],
        "progress": 1.0,
        "train_loss": 8.0625,
        "eval_loss": last["eval_loss"],
        "eval_accuracy": last["eval_accuracy"],
        "unigram_loss": 7.0,
        "tokens_per_s": 500.0,
        "mfu": 0.125,
        "compile_s": 4.0,
        "eval_s": 2.0,
        "save_s": 1.0,
        "growth_s": 0.0,
        "data_wait_fraction": 0.05,
        "goodput": 0.75,
        "stop_reason": "steps",
    }


def run(folder, *, name="run", lines=None, is_finished=True, config=None, samples=()):
    """Returns the workdir of a run."""
    workdir = folder / name
    lines = metrics() if lines is None else lines
    write_lines(workdir / "metrics.jsonl", lines)
    write(workdir / "config.json", {"seed": 0, "optimizer": {"lr": 1e-3}} | (config or {}))
    environment = {"command": f"python -m cramjax.main --workdir {name}", "git": "abc"}
    write(workdir / "environment.json", environment | {"devices": ["cpu"], "cpus": 2})
    write_lines(workdir / "history.jsonl", [{"step": 0, "command": "python", "changes": {}}])
    if samples:
        write_lines(workdir / "samples.jsonl", samples)
    if is_finished:
        write(workdir / "summary.json", summary(lines))
    return workdir


def sweep(folder, name="sweep"):
    """Returns the folder of a sweep of four points, one of them failed."""
    out = folder / name
    out.mkdir(parents=True)
    rows = ["point,status,lr,seed,params,steps,flops,elapsed_s,eval_loss,workdir,error"]
    for number, lr in enumerate(("0.001", "0.01", "0.1")):
        rows.append(f"lr-{lr},finished,{lr},0,1000,10,{number + 1}e6,{9 - number},{5 + number},w,")
    rows.append('"<b>bad</b>",failed,1,0,,,,,,w,"<script>alert(1)</script>"')
    (out / "sweep.csv").write_text("\n".join(rows) + "\n")
    return out


def entry(name, losses, *, wins, variant=None, against="control"):
    """An entry of a track.json."""
    judged = {"name": name, "variant": variant or name, "against": against, "losses": losses}
    judged |= {"difference": -0.5, "p": 0.001, "tokens": 2e6, "seconds": 180.0, "flops": 1e12}
    return judged | {"wins": wins}


def track(folder, name="track", entries=None):
    """Returns the folder of a track: a control, a winner, and one with a run without a number."""
    if entries is None:
        first = entry("control", [4.0, 4.25], wins=True, against=None)
        winner = entry(HOSTILE, [3.5, 3.75], wins=True)
        loser = entry("average", [3.5, None], wins=False, against=HOSTILE)
        entries = [first | {"difference": None, "p": None}, winner, loser]
    content = {"seeds": 2, "level": 0.01, "entries": entries}
    write(folder / name / "track.json", content)
    return folder / name


def finetuning(folder, name="glue", model=HOSTILE):
    """Returns the folder of a finetuning on two tasks with three seeds."""
    spread = {"median": 60.0, "mean": 60.0, "std": 1.0, "seeds": [59.0, 60.0, 61.0]}
    entry = {"seeds": [0, 1, 2], "n_eval": 10}
    results = {
        "rte": {"accuracy": spread} | entry,
        "cola": {"matthews": spread} | entry,
        "average": 60.0,
        "average_missing": ["mnli accuracy"],
        "suite": "glue",
        "protocol": {"name": "cramming", "source": "paper"},
        "model": model,
        "command": f"finetune {model}",
    }
    write(folder / name / "results.json", results)
    return folder / name


def compression(folder, name="small"):
    """Returns the folder of a compression of one model in four sizes."""
    entries = []
    for bits, size in ((32, 4000), (8, 1000), (4, 500), (2, 600)):
        value = 90.0 - 32 / bits if bits != 2 else 10.0
        entries.append(
            {
                "model": HOSTILE,
                "prune": 0.3,
                "bits": bits,
                "bytes": size,
                "nonzero": 700,
                "value": value,
                "values": [value],
                "metric": "accuracy",
                "latency": {"batch_1": {"p50_ms": 1.5}},
            }
        )
    write(folder / name / "pareto.json", [*entries, {"model": 3}])
    return folder / name


def plan(folder, name="plan.json"):
    """Returns the file of a plan for two cards, one of which is too small."""
    memory = dict.fromkeys(("parameters", "optimizer", "activations", "temporaries"), 2**30)
    entries = []
    for device, limit in (("rtx3060", 12), ("<i>t4</i>", 3)):
        entry = {"device": device, "fits": limit > 4, "microbatch_size": 8, "memory": memory}
        entry["memory"] = memory | {"needed": 2**32, "limit": limit * 2**30}
        times = {"expected_step_s": 0.5, "expected_s_by_kind": {"matmul": 0.4, "other": 0.1}}
        entries.append(entry | times | {"step_s": {"compute": 0.3}, "tokens": 1e9, "hours": 24.0})
    write(folder / name, {"recipe": "bert", "plans": entries})
    return folder / name


def dataset(folder, name="data"):
    """Returns the folder of a dataset with one shard of three documents."""
    import numpy as np

    vocab = {"[UNK]": 0, "the": 1, "##ing": 2, "книга": 3, "7": 4}
    out = folder / name
    write(out / "tokenizer" / "tokenizer.json", {"model": {"vocab": vocab}})
    np.save(out / "unigram.npy", np.array([1, 50, 20, 25, 4], np.int64))
    np.save(out / "train-0.docs.npy", np.array([0, 10, 30], np.uint64))
    shard = {"split": "train", "tokens": 100, "boundaries": "train-0.docs.npy"}
    manifest = {"documents": 3, "tokens": 100, "source": HOSTILE, "shards": [shard]}
    manifest |= {"dropped": {"duplicate": 7, "<u>short</u>": 2}, "unknown_token_share": 0.01}
    write(out / "manifest.json", manifest | {"filters": {"min_chars": 3}})
    return out
