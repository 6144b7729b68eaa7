"""What recipe files share: where they start, how a variant after the colon is read, and the toy size of `:smoke`."""

from __future__ import annotations

import difflib
import pathlib
import runpy
from collections.abc import Callable

import ml_collections

from cramjax.config import schema
from cramjax.errors import UserError

RECIPES = pathlib.Path(__file__).resolve().parents[2] / "configs"
Variant = Callable[[ml_collections.ConfigDict], None]


def start(name: str) -> ml_collections.ConfigDict:
    """All keys at their defaults, under the recipe's `name`."""
    config = schema.defaults()
    config.name = name
    return config


def like(name: str, other: str) -> ml_collections.ConfigDict:
    """The configuration of the recipe `other`, under the recipe's own `name`."""
    config = runpy.run_path(str(RECIPES / f"{other}.py"))["get_config"]()
    config.name = name
    return config


def apply_variant(
    config: ml_collections.ConfigDict, arg: str | None, variants: dict[str, Variant] | None = None
) -> ml_collections.ConfigDict:
    """Change `config` by the variant named `arg` (None: leave it) and return it; every recipe has "smoke".

    Raises:
        UserError: for an unknown variant, naming the ones there are.
    """
    known = {"smoke": smoke} | (variants or {})
    if arg is None:
        return config
    if arg not in known:
        near = difflib.get_close_matches(arg, known, 1)
        hint = (
            f"did you mean :{near[0]}?"
            if near
            else "there are " + ", ".join(f":{name}" for name in sorted(known))
        )
        raise UserError(f"configs/{config.name}.py has no variant {arg!r}; {hint}")
    known[arg](config)
    config.name = f"{config.name}-{arg}"
    return config


def t5(config: ml_collections.ConfigDict, version: str) -> None:
    """Make `config` a T5 of form `version`, "1.0" or "1.1", with its objective and tokenizer; the shape is the recipe's.

    1.0 (arXiv 1910.10683, section 2.1) has ReLU and one matrix for both embeddings and logits; 1.1 has a gated GELU and two.
    """
    config.data.update(
        tokenizer="unigram",
        vocab_size=32100,
        extra_ids=100,
        lowercase=False,
        ascii_only=False,
        seq_len=512,
    )
    config.model.update(
        family="t5",
        n_decoder_layers=None,
        head_dim=64,
        ffn="relu" if version == "1.0" else "geglu_tanh",
        tie_embeddings=version == "1.0",
        norm="rmsnorm",
        norm_bias=False,
        norm_eps=1e-6,
        embedding_norm=False,
        positions="relative",
        vocab_multiple=128,
    )
    config.objective.update(name="span_corruption", noise_density=0.15, mean_span=3.0)


def smoke(config: ml_collections.ConfigDict) -> None:
    """The same code at toy size: under a minute on 2 CPU cores, on text that is already on the machine."""
    config.budget.update(hours=None, steps=40, tokens=None, flops=None)
    config.data.update(
        source="installed-docs", max_mb=2.0, vocab_size=1024, seq_len=64, tokenizer_sample_mb=1.0
    )
    if config.data.compressibility is not None:
        config.data.compressibility = 0.5  # 1,024 entries take twice the tokens of 32,768
    config.batch_size, config.microbatch_size = 32, 8
    config.model.update(n_layers=2, d_model=64, n_heads=2, d_ff=128)
    if config.model.family == "t5":
        config.model.update(n_decoder_layers=None, head_dim=32)
    if config.model.positions in ("learned", "scaled_sinusoidal"):
        config.model.max_positions = max(64, min(config.model.max_positions, 128))
    if config.model.family == "encoder":
        config.optimizer.lr = min(config.optimizer.lr, 1e-3)
    config.schedule.stop_loss = None  # nothing has learned enough after a few steps
    config.eval.update(batches=2, batch_size=32, every_fraction=0.25)
    config.log.update(every_steps=5)
