import json
import math

import jax
import pytest

from cramjax.budget.shapes import cost
from cramjax.config import shapes
from cramjax.models import network, t5
from cramjax.optim.build import make_optimizer
from tools import shapes as tool


def t5_of(shape, vocab_size):
    form = (
        {"ffn": "relu"}
        if shape.version == "1.0"
        else {"ffn": "geglu_tanh", "tie_embeddings": False}
    )
    return t5.T5Config(vocab_size=vocab_size, **shape.model(), **form)


@pytest.mark.parametrize("name", ["tiny-nl2", "small-el3-dl2", "tiny-dm96-nl1", "v1_1-small"])
def test_the_cost_is_that_of_the_real_network_and_optimizer(name):
    shape = shapes.parse(name)
    cfg = t5_of(shape, 1000)
    n_params, flops, adafactor_bytes = cost(
        shape, vocab_size=1000, seq_len=128, optimizer="adafactor"
    )
    assert n_params == network.count_params(cfg)
    # A forward and backward pass is at least 6 FLOPs for each parameter that a token meets.
    assert flops > 6 * 0.5 * (n_params - 2000 * shape.d_model)

    def state_bytes(name):
        numbers = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
        optimizer = make_optimizer(name, network.param_axes(cfg), **numbers)
        abstract = network.abstract_params(cfg)
        leaves = jax.tree.leaves((abstract, jax.eval_shape(optimizer.init, abstract)))
        return sum(4 * math.prod(leaf.shape) for leaf in leaves)

    # Step counters and placeholders of moments that are not factored make up the rest.
    assert adafactor_bytes == pytest.approx(state_bytes("adafactor"), rel=2e-3)
    assert cost(shape, vocab_size=1000, seq_len=128, optimizer="adamw")[2] == pytest.approx(
        state_bytes("adamw"), rel=1e-5
    )


def test_the_list_is_filtered_and_sorted(capsys, tmp_path):
    command = [
        "--filter",
        "params<100M",
        "--filter",
        "enc>=12",
        "--sort",
        "flops",
        "--json",
        str(tmp_path / "rows.json"),
    ]
    assert tool.main(command) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows and all(row["params"] < 100e6 and row["enc"] >= 12 for row in rows)
    assert [row["flops"] for row in rows] == sorted(row["flops"] for row in rows)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows) + 1 and "small-el16-dl4" in {line.split()[0] for line in lines}


def test_named_shapes_are_shown(capsys):
    assert tool.main(["small-nl24", "base-nl18-ff2000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "name",
        "small-nl24",
        "base-nl18-ff2000",
    ] and "192,673,280" in lines[1]


@pytest.mark.parametrize(
    "limit, best, stock",
    [
        (["--max_params", "738M"], "base-nl36", "large"),
        (["--max_flops", "0.9G", "--max_params", "1B"], "mini-nl36", "base"),
        (["--max_state_gb", "0.2"], "tiny-nl22", "mini"),
    ],
)
def test_a_shape_is_recommended_beside_the_stock_size_it_replaces(capsys, limit, best, stock):
    assert tool.main(["--recommend", *limit]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:3]] == [best, stock]
    assert f"configs/t5_efficient.py:{best}" in out and "2212.14034" in out


@pytest.mark.parametrize(
    "command, sentence",
    [
        (["--filter", "size<3"], "params<300e6"),
        (["--filter", "params<many"], "not a number"),
        (["--recommend"], "give a limit"),
        (["--recommend", "--max_params", "1M"], "no T5 is within"),
        (["smal"], "did you mean small"),
    ],
)
def test_a_mistake_is_a_sentence(capsys, command, sentence):
    assert tool.main(command) == 2
    error = capsys.readouterr().err
    assert sentence in error and len(error.splitlines()) == 1
