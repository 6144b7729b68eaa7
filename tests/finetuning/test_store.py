"""The folder of a finetuning takes runs of one setup only."""

import pytest

from cramjax.errors import UserError
from cramjax.finetuning.store import Store


def test_settings_that_are_gone_are_another_setup(tmp_path):
    Store(tmp_path, {"settings": {"lr": 1e-6}, "data": {"train": 3, "test": 2}})
    with pytest.raises(UserError, match="holds runs of another settings; take another folder"):
        Store(tmp_path, {"settings": {}, "data": {"train": 3, "test": 2}})


def test_an_older_folder_may_count_more_splits(tmp_path):
    Store(tmp_path, {"data": {"train": 3, "test": 2}})
    Store(tmp_path, {"data": {"train": 3}})
    with pytest.raises(UserError, match="another data"):
        Store(tmp_path, {"data": {"train": 4}})
