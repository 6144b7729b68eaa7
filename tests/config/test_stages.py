"""Stages of growth as arithmetic on the configuration."""

import pytest

from cramjax.config import stages
from cramjax.config.resolve import get_config
from cramjax.errors import UserError

BASE = ("model.n_layers=12", "model.d_ff=3072", "data.seq_len=128", "data.order=shuffled")


def config(listed, *more, recipe="bert_original"):
    return get_config(
        recipe, *BASE, "batch_size=64", "microbatch_size=16", *more, f"growth.stages={listed!r}"
    )


def test_shares_and_numbers():
    grown = config(
        [{"until": 0.25, "depth": 0.25, "width": 0.5, "length": 64}, {"until": 0.5, "depth": 6}]
    )
    listed = stages.of(grown)
    assert [(stage.until, stage.n_layers, stage.d_ff, stage.seq_len) for stage in listed] == [
        (0.25, 3, 1536, 64),
        (0.5, 6, 3072, 128),
        (1.0, 12, 3072, 128),
    ]
    assert all(stage.n_decoder_layers is None for stage in listed)
    # As config.json has it, which a resumed run reads.
    assert stages.frozen(grown.growth.stages) == grown.growth.stages


def test_heads_keep_their_dimensions():
    (first, last) = stages.of(config([{"until": 0.25, "hidden": 0.5}]))
    assert (first.n_heads, first.d_model, last.n_heads, last.d_model) == (6, 384, 12, 768)


def test_without_growth_there_is_one_stage():
    (stage,) = stages.of(get_config("bert_original"))
    assert stage.until == 1.0 and stage.n_layers == 12


def test_a_decoder_grows_with_its_encoder():
    overrides = ("model.n_layers=8", "model.n_decoder_layers=4", "data.seq_len=128")
    grown = get_config("t5_1day", *overrides, "growth.stages=[{'until': 0.5, 'depth': 0.5}]")
    assert [(stage.n_layers, stage.n_decoder_layers) for stage in stages.of(grown)] == [
        (4, 2),
        (8, 4),
    ]


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([{"depth": 0.5}], "growth.stages[0]: needs until"),
        (
            [{"until": 0.5, "dept": 0.5}],
            "growth.stages[0]: unknown key dept; there are until, depth",
        ),
        ([{"until": 1.5}], "growth.stages[0].until=1.5: must be a share"),
        (
            [{"until": 0.5, "depth": 0}],
            "growth.stages[0].depth=0: must be a share between 0 and 1 (0.5), or a number",
        ),
        (
            [{"until": 0.5}, {"until": 0.4}],
            "growth.stages[0].until=0.5: must be below that of the next stage, 0.4",
        ),
        (
            [{"until": 1.0, "depth": 0.5}],
            "growth.stages[0].until=1: must be below that of the next stage, 1",
        ),
        (
            [{"until": 0.5, "depth": 13}],
            "growth.stages[0].depth: 13 cannot shrink to the 12 of the next stage",
        ),
        (
            [{"until": 0.5, "width": 1000}],
            "growth.stages[0].width: the next stage's 3072 is no multiple of 1000",
        ),
        ([{"until": 0.5, "length": 4}], "growth.stages[0].length: 4 tokens are too few"),
        (
            [7],
            "growth.stages[0]=7: must be a dict of until, depth, width, rank, length, pool, "
            "hidden, batch, lr",
        ),
        ([{"until": 0.5, "lr": 0}], "growth.stages[0].lr=0: must be a factor of the learning rate"),
        (
            [{"until": 0.5, "batch": 24}],
            "growth.stages[0].batch: 24 is no multiple of microbatch_size=16",
        ),
        (
            [{"until": 0.5, "pool": 0.5}],
            "growth.stages[0].pool=0.5: must be the number of embeddings in a mean (2)",
        ),
        (
            [{"until": 0.3, "pool": 2}, {"until": 0.5, "pool": 4}],
            "growth.stages[0].pool: 2 cannot rise to the 4",
        ),
        (
            [{"until": 0.3}, {"until": 0.5, "rank": 64}],
            "growth.stages[0].rank: 0 cannot become 64; factors become whole",
        ),
    ],
)
def test_mistakes_are_named(listed, message):
    with pytest.raises(UserError) as caught:
        config(listed)
    assert message in str(caught.value)


def test_a_stage_may_have_a_batch_and_a_learning_rate_of_its_own():
    grown = config(
        [{"until": 0.2, "batch": 0.5, "lr": 2.0}, {"until": 0.4, "batch": 128}], "optimizer.lr=0.01"
    )
    numbers = [(stage.batch_size, stage.lr) for stage in stages.of(grown)]
    assert numbers == [(32, 0.02), (128, 0.01), (64, 0.01)]


def test_factors_and_means():
    grown = config([{"until": 0.25, "rank": 0.25, "pool": 2}, {"until": 0.5, "rank": 0.25}])
    assert [(stage.ffn_rank, stage.pool) for stage in stages.of(grown)] == [
        (192, 2),
        (192, 1),
        (0, 1),
    ]
    assert stages.of(grown)[0].describe() == (
        "12 layers, width 768, feed-forward 3072 of rank 192, 128 tokens in means of 2, batch 64"
    )


MEANS = {"until": 0.5, "pool": 2}
FEW_MASKS = {"until": 0.5, "length": 32, "mask_rate": 0.01}


@pytest.mark.parametrize(
    ("recipe", "listed", "overrides", "message"),
    [
        ("t5_1day", MEANS, [], "growth.stages[0]: objective.pool=2: must be 1 where model.family"),
        (
            "bert_original",
            MEANS,
            ["model.document_attention=True"],
            "growth.stages[0]: objective.pool=2: means of embeddings go over the ends of documents",
        ),
        (
            "bert_original",
            {"until": 0.5, "length": 0.5},
            ["data.order=sentence_length"],
            "growth.stages[0].length: data.order=sentence_length has one length alone",
        ),
        (
            "bert_1day_modern",
            {"until": 0.5, "depth": 1},
            ["data.order=shuffled"],
            "growth.stages[0]: model.first_norm=False: needs model.norm_position=pre and at least",
        ),
        (
            "bert_original",
            {"until": 0.5, "causal": True},
            ["objective.name=script"],
            "growth.stages[0]: objective.causal=True: objective.name=script masks tokens",
        ),
        (
            "bert_original",
            FEW_MASKS,
            [],
            "growth.stages[0]: objective.mask_rate=0.01: predicts nothing at seq_len 32",
        ),
        (
            "t5_1day",
            {"until": 0.5, "mask_rate": 0.3},
            [],
            "growth.stages[0].mask_rate: needs model.family=encoder",
        ),
        (
            "t5_pairs:smoke",
            {"until": 0.5, "length": 0.125},
            ["data.seq_len=64", "data.target_len=16"],
            "growth.stages[0].length: 2 target tokens are too few; take 8 or more",
        ),
    ],
)
def test_what_other_keys_forbid(recipe, listed, overrides, message):
    with pytest.raises(UserError) as caught:
        get_config(recipe, *overrides, f"growth.stages={[listed]!r}")
    assert message in str(caught.value)


def test_a_mistake_of_the_whole_is_said_once():
    with pytest.raises(UserError) as caught:
        config([{"until": 0.5, "depth": 0.5}], "objective.pool=2", "model.document_attention=True")
    assert str(caught.value).count("means of embeddings go over the ends of documents") == 1
