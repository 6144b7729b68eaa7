"""A tiny task as files, and tiny models that read it: what finetuning is tested on."""

import random

import jax

from cramjax.data import tokenizers
from cramjax.inference import LoadedModel
from cramjax.models import network, t5
from cramjax.models.layers import FLOAT32
from tests import networks

WORDS = "the a old young red blue small big cat dog bird boat".split()


def sentence(label, chooser):
    """Words without "red" or with it: what the label says."""
    words = chooser.choices([word for word in WORDS if word != "red"], k=chooser.randint(2, 6))
    if label:
        words[chooser.randrange(len(words))] = "red"
    return " ".join(words)


def write_glue(folder, n_train=48, n_dev=24):
    """CoLA, RTE and STS-B as distributed, of which CoLA can be learned from a word."""
    chooser = random.Random(0)
    for task in ("CoLA", "RTE", "STS-B"):
        (folder / task).mkdir(parents=True)
    for name, n in (("train", n_train), ("dev", n_dev)):
        labels = [i % 2 for i in range(n)]
        cola = [f"x\t{label}\t\t{sentence(label, chooser)}" for label in labels]
        (folder / "CoLA" / f"{name}.tsv").write_text("\n".join(cola) + "\n")
        pairs = [(label, sentence(label, chooser), sentence(0, chooser)) for label in labels]
        rte = [
            f"{i}\t{a}\t{b}\t{('entailment', 'not_entailment')[label]}"
            for i, (label, a, b) in enumerate(pairs)
        ]
        (folder / "RTE" / f"{name}.tsv").write_text(
            "\n".join(["index\tsentence1\tsentence2\tlabel", *rte]) + "\n"
        )
        stsb = [f"{i}\t{a}\t{b}\t{5 * label:.3f}" for i, (label, a, b) in enumerate(pairs)]
        (folder / "STS-B" / f"{name}.tsv").write_text(
            "\n".join(["index\tsentence1\tsentence2\tscore", *stsb]) + "\n"
        )
    test = [f"{i}\t{sentence(i % 2, chooser)}" for i in range(10)]
    (folder / "CoLA" / "test.tsv").write_text("\n".join(["index\tsentence", *test]) + "\n")
    return folder


def model(kind="encoder"):
    """A tiny LoadedModel with random weights."""
    texts = [" ".join(WORDS)] * 30 + [
        "cola sentence: acceptable unacceptable rte sentence1: sentence2: entailment not_"
    ] * 30
    extra_ids = 4 if kind == "t5" else 0
    tokenizer, _ = tokenizers.train(
        "wordpiece", texts, vocab_size=120, lowercase=True, ascii_only=True, extra_ids=extra_ids
    )
    n = tokenizer.get_vocab_size()
    if kind == "t5":
        config = t5.T5Config(
            vocab_size=n,
            n_layers=1,
            n_decoder_layers=1,
            d_model=32,
            n_heads=2,
            head_dim=16,
            d_ff=48,
        )
        params = network.init_params(config, jax.random.key(1))
    else:
        config = networks.named(
            "modernbert-crammed",
            n_layers=2,
            d_model=32,
            n_heads=2,
            d_ff=48,
            vocab_size=n,
            init_std=0.1,
        )
        params = network.init_params(config, jax.random.key(1))
    special = tokenizers.special_ids(tokenizer)
    return LoadedModel(
        config=config, precision=FLOAT32, params=params, tokenizer=tokenizer, special=special
    )
