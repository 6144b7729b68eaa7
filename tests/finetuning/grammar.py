"""Tiny tasks as files, and tiny models that read them, for tests of finetuning."""

import random

import jax

from cramjax.data import tokenizers
from cramjax.finetuning import learning, run
from cramjax.finetuning.classification import Classification
from cramjax.finetuning.protocols import Settings
from cramjax.finetuning.request import FinetuneRequest
from cramjax.glue.tasks import find_tasks
from cramjax.inference import LoadedModel
from cramjax.models import network, t5
from cramjax.models.layers import FLOAT32
from tests import networks

WORDS = "the a old young red blue small big cat dog bird boat".split()


def sentence(label, chooser):
    """Returns words with "red" among them if the label is 1."""
    words = chooser.choices([word for word in WORDS if word != "red"], k=chooser.randint(2, 6))
    if label:
        words[chooser.randrange(len(words))] = "red"
    return " ".join(words)


def write_glue(folder, n_train=48, n_dev=24):
    """Write CoLA, RTE and STS-B as distributed; CoLA can be learned from one word."""
    chooser = random.Random(0)
    for task in ("CoLA", "RTE", "STS-B"):
        (folder / task).mkdir(parents=True)

    for name, n in (("train", n_train), ("dev", n_dev)):
        labels = [i % 2 for i in range(n)]
        cola = [f"x\t{label}\t\t{sentence(label, chooser)}" for label in labels]
        write_lines(folder / "CoLA" / f"{name}.tsv", cola)

        rte = ["index\tsentence1\tsentence2\tlabel"]
        stsb = ["index\tsentence1\tsentence2\tscore"]
        for i, label in enumerate(labels):
            pair = f"{i}\t{sentence(label, chooser)}\t{sentence(0, chooser)}"
            rte.append(f"{pair}\t{('entailment', 'not_entailment')[label]}")
            stsb.append(f"{pair}\t{5 * label:.3f}")
        write_lines(folder / "RTE" / f"{name}.tsv", rte)
        write_lines(folder / "STS-B" / f"{name}.tsv", stsb)

    test = [f"{i}\t{sentence(i % 2, chooser)}" for i in range(10)]
    write_lines(folder / "CoLA" / "test.tsv", ["index\tsentence", *test])
    return folder


def write_lines(path, lines):
    path.write_text("\n".join(lines) + "\n")


def model(kind="encoder"):
    """Returns a tiny LoadedModel with random weights."""
    words_of_tasks = (
        "cola sentence: acceptable unacceptable rte sentence1: sentence2: entailment not_"
    )
    texts = [" ".join(WORDS)] * 30 + [words_of_tasks] * 30
    extra_ids = 4 if kind == "t5" else 0
    tokenizer, _ = tokenizers.train(
        "wordpiece", texts, vocab_size=120, lowercase=True, ascii_only=True, extra_ids=extra_ids
    )

    sizes = {"vocab_size": tokenizer.get_vocab_size(), "d_model": 32, "n_heads": 2, "d_ff": 48}
    if kind == "t5":
        config = t5.T5Config(n_layers=1, n_decoder_layers=1, head_dim=16, **sizes)
        params = network.init_params(config, jax.random.key(1))
    else:
        config = networks.named("modernbert-crammed", n_layers=2, init_std=0.1, **sizes)
        params = network.init_params(config, jax.random.key(1))
    return LoadedModel(
        config=config,
        precision=FLOAT32,
        params=params,
        tokenizer=tokenizer,
        special=tokenizers.special_ids(tokenizer),
    )


def classifying(config, precision=FLOAT32, **settings):
    """Returns the objective of an encoder for CoLA, with a pooler and `Settings`."""
    (task,) = find_tasks(["cola"])
    chosen = Settings(**{"lr": 1.0, "head": "pooler"} | settings)
    return Classification(learning.network_with_head(config, task, chosen), precision)


def finetune(model, data, out, *tasks, protocol, **options):
    """Returns what a finetuning of one seed found, and the lines that it printed."""
    said = []
    request = FinetuneRequest(
        checkpoint="a/model",
        tasks=tasks,
        data_dir=str(data),
        out=out,
        protocol=protocol,
        **{"n_seeds": 1} | options,
    )
    return run.Finetuning(request, model, said.append).run(), said
