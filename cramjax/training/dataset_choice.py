"""The choice of a run's dataset: a run that goes on keeps the one it was made with.

So installed packages, a corpus that was moved or touched, a longer budget or a lost cache never
change what a run learns from in silence, and never make it unable to go on.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

from cramjax.checkpoints import pretrained
from cramjax.config.resolve import changed
from cramjax.config.views import Config, DataConfig
from cramjax.console import Announce
from cramjax.data import plan, prepare, tokenizers
from cramjax.data.dataset import TokenDataset
from cramjax.errors import UserError
from cramjax.training.history import Earlier

ALLOW = "--config.data.allow_change=True"


def with_tokenizer(config: Config, earlier: Earlier | None) -> Config:
    """Returns `config` with the tokenizer of the model it starts from, if it starts from one.

    That model is not read again when a run goes on: it may have moved.
    """
    if earlier is None:
        return pretrained.with_tokenizer(config)
    if not config.init_from:
        return config
    before = earlier.config.data
    return changed(
        config,
        {
            "data.tokenizer": before.tokenizer,
            "data.extra_ids": before.extra_ids,
            "data.vocab_size": before.vocab_size,
        },
    )


def open_dataset(
    config: Config, earlier: Earlier | None, workdir: pathlib.Path, announce: Announce
) -> TokenDataset:
    """Returns the dataset that a run trains on; prepares it if it is missing.

    Args:
        config: the configuration.
        earlier: the checkpoint that the run goes on from, or None.
        workdir: the folder of the run; a dataset that is prepared for a run that goes on gets the
            tokenizer there.
        announce: prints a line.

    Raises:
        UserError: if the dataset cannot be opened or prepared.
    """
    if earlier is None:
        return prepare.open_data(config.data, announce)
    if config.data.allow_change and _differing(config, earlier, plan.all_settings):
        return _prepare_for(config, workdir, announce)
    own = _own(config, earlier)
    if own is not None:
        announce(prepare.describe(own))
        return own.mixed(config.data)
    return _prepare_again(config, earlier, workdir, announce)


def refuse_another(config: Config, earlier: Earlier, workdir: pathlib.Path) -> None:
    """Check that the configuration names the text that the run was trained on.

    Raises:
        UserError: if it names another text, without `data.allow_change`.
    """
    names = _differing(config, earlier, plan.text_settings)
    if not names or config.data.allow_change:
        return
    if names == ["source"] and _is_the_same_elsewhere(config, earlier):
        return
    before, now = earlier.config.data, config.data
    listed = [f"data.{name} {getattr(before, name)} → {getattr(now, name)}" for name in names]
    raise UserError(
        f"{workdir}: was trained on another dataset ({', '.join(listed)}); leave these keys as "
        f"they were, or give another --workdir; to go on with other text on purpose, add {ALLOW}"
    )


def _differing(
    config: Config, earlier: Earlier, settings: Callable[[DataConfig], dict[str, Any]]
) -> list[str]:
    """Returns the keys of `data`, of those in `settings`, that name another dataset."""
    before, now = settings(earlier.config.data), settings(config.data)
    # config.json has lists for tuples.
    return [name for name in before if json.dumps(before[name]) != json.dumps(now[name])]


def _is_the_same_elsewhere(config: Config, earlier: Earlier) -> bool:
    """Returns whether the source is what the run was made with, under another name.

    It may be a prepared dataset with the content of the run's, or the same files in another place.
    """
    folder = _prepared_folder(config)
    if folder is not None:
        return _matches(TokenDataset.open(folder), earlier)
    try:
        return prepare.planned_fingerprint(config.data) == earlier.fingerprint
    except UserError:
        return False


def _prepared_folder(config: Config) -> pathlib.Path | None:
    source = config.data.source
    if isinstance(source, str) and source.startswith("prepared:"):
        return pathlib.Path(source.removeprefix("prepared:"))
    return None


def _matches(dataset: TokenDataset, earlier: Earlier) -> bool:
    """Returns whether a dataset has the content of the run's, as far as that is known."""
    manifest = dataset.manifest
    if earlier.fingerprint is not None and manifest.get("fingerprint") != earlier.fingerprint:
        return False
    return manifest.get("tokenizer_sha256") == earlier.sidecar["tokenizer_sha256"]


def _own(config: Config, earlier: Earlier) -> TokenDataset | None:
    """Returns the run's dataset where it was, or where `prepared:` names it now; None if gone."""
    folder = _prepared_folder(config)
    if folder is None:
        folder = earlier.dataset
    if folder is None or not (folder / "manifest.json").exists():
        return None
    dataset = TokenDataset.open(folder)
    if _matches(dataset, earlier):
        return dataset
    if _prepared_folder(config) is None:
        return None
    raise UserError(
        f"{folder}: holds another dataset than the one that this run was trained on; name the "
        f"folder where that is now, or go on with this one by {ALLOW}"
    )


def _prepare_again(
    config: Config, earlier: Earlier, workdir: pathlib.Path, announce: Announce
) -> TokenDataset:
    """Returns the run's dataset, prepared once more because its folder is gone."""
    announce(f"the dataset that this run was made with is gone ({earlier.dataset})")
    try:
        is_unchanged = prepare.planned_fingerprint(config.data) == earlier.fingerprint
    except UserError:
        is_unchanged = False
    if is_unchanged:
        return prepare.open_data(config.data, announce)
    dataset = _prepare_for(config, workdir, announce)
    if not _matches(dataset, earlier):
        announce(
            "  its source has changed since: the run goes on with the same tokenizer on the text "
            "that is there now, and losses before and after do not compare"
        )
    return dataset


def _prepare_for(config: Config, workdir: pathlib.Path, announce: Announce) -> TokenDataset:
    """Returns the dataset that the configuration names, in the tokens of the run."""
    data = config.data
    tokenizer = workdir / "tokenizer" / "tokenizer.json"
    is_trained_here = (
        data.tokenizer in tokenizers.KINDS or not pathlib.Path(data.tokenizer).exists()
    )
    if _prepared_folder(config) is None and is_trained_here and tokenizer.exists():
        data = changed(config, {"data.tokenizer": str(tokenizer)}).data
    return prepare.open_data(data, announce)
