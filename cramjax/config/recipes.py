"""Helpers of recipe files: their start, variants after the colon, and the toy size of `:smoke`."""

from __future__ import annotations

import difflib
import functools
import pathlib
import runpy
from collections.abc import Callable, Mapping
from typing import Any, cast

from cramjax.config import pairs, schema, texts
from cramjax.config.families import model_keys
from cramjax.config.views import Config, EncoderModelConfig, ModelConfig
from cramjax.errors import UserError

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
RECIPES = _PACKAGE / "recipes"
"""The folder of the recipes: inside an installed package, or `configs` of a checkout."""
if not RECIPES.is_dir():
    RECIPES = _PACKAGE.parent / "configs"
Variant = Callable[[Config], None]


def start(name: str, family: str = "encoder") -> Config:
    """Returns all keys of a family of networks at their defaults, under the recipe's `name`."""
    config = schema.defaults(family)
    config.name = name
    return config


def like(name: str, other: str) -> Config:
    """Returns the configuration of the recipe `other`, under the recipe's own `name`."""
    config = runpy.run_path(str(RECIPES / f"{other}.py"))["get_config"]()
    config.name = name
    return config


def apply_variant(
    config: Config, arg: str | None, variants: dict[str, Variant] | None = None
) -> Config:
    """Changes `config` by the variants named in `arg` and returns it.

    Args:
        config: the recipe's configuration.
        arg: the text after the colon, one name or several with + between them; None leaves `config`
            alone.
        variants: functions that change a configuration, by name. Every recipe has "smoke", which
            stands alone, and a recipe that reads the Hub those of `texts`.

    Raises:
        UserError: a variant is unknown, and the message names the known ones; or it stands with
            another that it contradicts.
    """
    if arg is None:
        return config
    known = {"smoke": smoke} | (variants or {})
    for name, values in texts.variants(config).items():
        known[name] = functools.partial(_set_data, values)

    names = arg.split("+")
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            listed = ", ".join(f":{name}" for name in sorted(known))
            hint = f"did you mean :{near[0]}?" if near else f"there are {listed}"
            raise UserError(f"configs/{config.name}.py has no variant {name!r}; {hint}")
    if len(names) > 1 and "smoke" in names:
        raise UserError(f"configs/{config.name}.py:{arg}: smoke is a toy and stands alone")

    for name in names:
        known[name](config)
    config.name = f"{config.name}-{arg}"
    return config


def _set_data(values: Mapping[str, Any], config: Config) -> None:
    config.data.update(values)


def t5(config: Config, version: str) -> None:
    """Makes `config` a T5 with its objective and tokenizer; the recipe sets the shape.

    1.0 (arXiv 1910.10683, section 2.1) has ReLU and one matrix for both embeddings and logits.
    1.1 has a gated GELU and two matrices.

    Args:
        config: the configuration to change; its `model` becomes that of a T5 at its defaults.
        version: "1.0" or "1.1".
    """
    config.data.update(
        tokenizer="unigram",
        vocab_size=32100,
        extra_ids=100,
        lowercase=False,
        seq_len=512,
    )
    config.model = cast(ModelConfig, schema.default_values(model_keys("t5")))
    if version == "1.1":
        config.model.update(ffn="geglu_tanh", tie_embeddings=False)
    config.objective.update(name="span_corruption", noise_density=0.15, mean_span=3.0)


def smoke(config: Config) -> None:
    """Makes `config` a toy that runs the same code in under a minute on 2 CPU cores.

    It reads text that is already on the machine.
    """
    config.budget.update(hours=None, steps=40, tokens=None, flops=None)
    config.data.update(
        source="installed-docs", max_mb=2.0, vocab_size=1024, seq_len=64, tokenizer_sample_mb=1.0
    )
    if config.objective.name == pairs.OBJECTIVE:
        config.data.update(source=pairs.INSTALLED, heldout=None, target_len=None)
        config.eval.update(bleu_source=None, bleu_pairs=16, beams=2)
    config.batch_size = 32
    config.microbatch_size = 8

    config.model.update(n_layers=2, d_model=64, n_heads=2, d_ff=128)
    if config.model.family == "t5":
        config.model.update(n_decoder_layers=None, head_dim=32)
    elif config.model.family == "encoder":
        model = cast(EncoderModelConfig, config.model)
        if model.positions in ("learned", "scaled_sinusoidal"):
            model.max_positions = max(64, min(model.max_positions, 128))
        config.optimizer.lr = min(config.optimizer.lr, 1e-3)

    if config.schedule.ramp_start is not None:
        config.schedule.ramp_start = 16
    config.schedule.stop_loss = None  # nothing has learned enough after a few steps
    config.eval.update(batches=2, batch_size=32, every_fraction=0.25)
    config.log.update(every_steps=5)
