"""A T5 of any shape: those of Scale Efficiently by name, `small-nl16` (DeepNarrow) by default.

Scale Efficiently (arXiv 2109.10686): small with 16 + 16 layers, 134 million parameters, is as good
as T5-base with 223 million at 63% of its FLOPs (its table 4). Depth is the first dimension to
scale, up to 32 to 36 layers. Pretraining is that of its released configurations: C4 without a token
between documents, 512 tokens, batch 128, 524,288 steps at most, Adafactor, no dropout, z-loss 1e-4,
and a learning rate of 0.01 for 10,000 steps that then falls with the root of the step. The
tokenizer is our own. A day that ends before 10,000 steps has a constant rate.

The colon takes every released name (`base-nl36`, `small-el16-dl4`, `tiny-ff2000`) and any other of
sizes and knobs, also T5 v1.1's (`v1_1-base`). `python -m tools.shapes` lists them and recommends
one under a limit.

`:fineweb_edu` and `:climbmix` read better web text (cramjax/config/texts.py), also behind a shape.

Cost: one GPU for 24 hours, and the C4 text that it reads: downloads of 6 GB for an RTX 3060, 31 GB
for an RTX 4090, 77 GB for an H100. Ours is not measured on a GPU yet.
docs/studies/scale_efficiently.md has the case against depth at a fixed time.

    python -m cramjax.main --config configs/t5_efficient.py
    python -m cramjax.main --config configs/t5_efficient.py:small-nl24 --config.budget.hours=12
    python -m cramjax.main --config configs/t5_efficient.py:small-nl24+fineweb_edu
    python -m cramjax.main --config configs/t5_efficient.py:smoke
"""

from cramjax.config import recipes, shapes, texts

DEFAULT = "small-nl16"


def get_config(arg=None):
    """The recipe for the shape after the colon."""
    config = recipes.start("t5_efficient")
    config.budget.update(hours=24.0, steps=524_288)

    names = (arg or "").split("+")
    is_default = names[0] in ("", "smoke", *texts.WEB)
    shape = shapes.parse(DEFAULT) if is_default else shapes.parse(names[0])
    recipes.t5(config, shape.version)
    config.model.update(shape.model())
    config.data.update(
        source=texts.C4,
        max_mb="budget",
        dedup_exact=False,
        seq_len=512,
        document_end=False,
    )
    config.objective.z_loss = 1e-4
    config.batch_size = 128
    config.eval.batch_size = 32  # every target has its logits, 32,128 of them
    config.optimizer.update(name="adafactor", lr=1e-2, weight_decay=0.0, clip_norm=None)
    # No fall at the end, as in the released configurations. In miniature schedule.cooldown=0.1
    # gains nothing (docs/studies/t5_plateau.md).
    config.schedule.update(name="inverse_sqrt", plateau=10_000)
    if is_default:
        return recipes.apply_variant(config, arg)
    arg = "+".join([shape.name, *names[1:]])
    return recipes.apply_variant(config, arg, {shape.name: _stay})


def _stay(config):
    """The shape is there already."""
