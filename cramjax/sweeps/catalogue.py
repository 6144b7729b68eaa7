"""The catalogue of studies, by name."""

from cramjax.sweeps import compression_report, growth_report, translation_report
from cramjax.sweeps.studies import CompressionPart, Study, SweepPart
from cramjax.sweeps.track import Track

_ARMS = "variant=control,stack,depth,width,length,compound"
_SEEDS = "seed=0,1,2"
_FLOPS = ("budget.hours=None", "budget.flops=1e13")
_SCORED = ("eval.bleu_every_fraction=0.2",)
_COMPRESS = (
    *("--prune", "0,0.3,0.6,0.9", "--bits", "32,8,4,3,2", "--seeds", "3"),
    *("--set", "pooling=mean", "--set", "lr=3e-3", "--set", "epochs=3"),
)

STUDIES = {
    "growth": Study(
        recipe="growth_small",
        sweeps={
            "hours": SweepPart(title="Equal wall-clock", grids=(_SEEDS, f"{_ARMS},late,small")),
            "sooner": SweepPart(
                title="Three quarters of the time, with schedules that decay in full",
                grids=(_SEEDS, "variant=stack,compound,late", "budget.hours=0.025"),
            ),
            "flops": SweepPart(title="Equal FLOPs", overrides=_FLOPS, grids=(_SEEDS, _ARMS)),
        },
        report=growth_report.report,
    ),
    "train_large": Study(
        recipe="train_large_small",
        sweeps={
            "sizes": SweepPart(
                title="Equal wall-clock", grids=("variant=L2-H32,L2-H64,L2-H128,L4-H192",)
            )
        },
        compressions={
            "sst2": CompressionPart(
                title="SST-2",
                sweep="sizes",
                task="sst2",
                flags=(*_COMPRESS, "--set", "max_train=6000"),
            ),
            "mrpc": CompressionPart(title="MRPC", sweep="sizes", task="mrpc", flags=_COMPRESS),
        },
        report=compression_report.report,
    ),
    "mt": Study(
        recipe="mt_small",
        files=(
            "data.source=pairs:{data_dir}/train.de.gz,{data_dir}/train.en.gz",
            "data.heldout=pairs:{data_dir}/val.de.gz,{data_dir}/val.en.gz",
            "eval.bleu_source=pairs:{data_dir}/test_2016_flickr.de.gz,"
            "{data_dir}/test_2016_flickr.en.gz",
        ),
        sweeps={
            "sizes": SweepPart(
                title="Equal wall-clock",
                overrides=_SCORED,
                grids=("variant=L1-H64,L1-H128,L2-H128", "seed=0,1,2"),
            ),
            # It has learned little by then and writes long answers: minutes for each scoring.
            "wide": SweepPart(
                title="Twice the width, the same time",
                overrides=_SCORED,
                grids=("variant=L2-H256", "seed=0,1,2"),
            ),
        },
        compressions={
            "bleu": CompressionPart(
                title="BLEU",
                sweep="sizes",
                task=None,
                flags=("--prune", "0,0.2", "--bits", "8,4,3"),
            )
        },
        report=translation_report.report,
        pictures={"bleu.png": translation_report.draw},
    ),
}

TRACKS = {
    "track": Track(
        recipe="best_small",
        entries=(
            # A rate is raised twice, and again after what may want another one. What has been tried
            # on the standing best is passed over.
            *("lr_up", "lr_up", "muon", "rotary", "init", "lr_up", "lr_down", "cooccurrence"),
            *("lr_up", "lr_down", "average", "cooldown", "hard_masks", "causal", "embeddings"),
            *("momentum", "cautious", "masks", "short", "ramp", "documents", "scalars", "decay"),
            "rotary",
        ),
    ),
    "track_t5": Track(
        recipe="best_small_t5",
        entries=(
            *("lr_up", "lr_up", "lr_down", "muon", "lr_up", "lr_down", "cooccurrence", "cooldown"),
            *("average", "momentum", "cautious", "embeddings", "scalars"),
        ),
    ),
}
