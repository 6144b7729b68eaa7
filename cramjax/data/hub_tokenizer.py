"""A tokenizer that lies beside a dataset on the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
from typing import cast

import ml_collections

from cramjax.config.views import DataConfig
from cramjax.data.hub_source import patiently
from cramjax.errors import UserError
from cramjax.files import copy_file

_ADDRESS = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?:(?P<file>.+)")


def with_local_tokenizer(config: DataConfig) -> DataConfig:
    """Return `config` with a path for a `data.tokenizer` of the form hf:OWNER/NAME[@REVISION]:FILE.

    The file is kept in `data.cache_dir`, so that it stays the same and needs no network again.

    Args:
        config: The `data` part of the configuration.

    Raises:
        UserError: for an address of another form, an unknown file, or no network.
    """
    address = config.tokenizer
    if not address.startswith("hf:"):
        return config
    match = _ADDRESS.fullmatch(address)
    if not match:
        raise UserError(
            f"data.tokenizer={address}: must have the form hf:OWNER/NAME:FILE, as in "
            "hf:OWNER/NAME:tokenizer/tokenizer.json"
        )

    digest = hashlib.sha256(address.encode()).hexdigest()[:16]
    path = pathlib.Path(config.cache_dir) / "hub" / digest / pathlib.PurePath(match["file"]).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        copy_file(os.path.realpath(_download(match, address)), path)
    copy = ml_collections.ConfigDict(config.to_dict())
    copy.tokenizer = str(path)
    return cast(DataConfig, ml_collections.FrozenConfigDict(copy))


def _download(match: re.Match[str], address: str) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    return patiently(
        lambda: hf_hub_download(
            match["repo"], match["file"], repo_type="dataset", revision=match["revision"]
        ),
        address,
        first_contact=True,
    )
