"""Folders of strangers: links lead out of none, and nothing asks for memory that is not there."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cramjax.checkpoints import packed, pretrained
from cramjax.errors import UserError
from cramjax.hub import directory
from tests.faults.test_damaged_models import check, make_hub, make_packed, make_workdir


@pytest.fixture
def hub(tmp_path):
    make_hub(tmp_path / "hub")
    return tmp_path / "hub"


def test_an_index_names_files_of_its_folder_only(hub):
    shutil.move(hub / "a.safetensors", hub.parent / "outside.safetensors")
    index = hub / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("a.safetensors", "../outside.safetensors"))
    with pytest.raises(UserError, match="'../outside.safetensors', which is outside"):
        directory.read_model(hub)


def test_links_stay_in_the_folder_or_in_the_blobs_of_the_cache(hub, tmp_path):
    """A snapshot in the cache of huggingface_hub is made of links into ../../blobs."""
    repo = tmp_path / "models--me--there"
    (repo / "blobs").mkdir(parents=True)
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(hub.iterdir())):
        shutil.copyfile(path, repo / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert directory.read_model(snapshot).config.n_layers == 2

    shutil.copytree(hub, tmp_path / "linked")
    (tmp_path / "linked" / "config.json").unlink()
    (tmp_path / "linked" / "config.json").symlink_to(hub / "config.json")
    with pytest.raises(UserError, match=r"linked/config\.json: is a link out of its folder"):
        directory.read_model(tmp_path / "linked")


def test_a_link_to_the_folder_itself_is_followed(hub, tmp_path):
    (tmp_path / "here").symlink_to(hub)
    assert pretrained.read(tmp_path / "here").config.n_layers == 2


@pytest.mark.parametrize(
    "key, size",
    [("hidden_size", 10**9), ("num_hidden_layers", 10**9), ("intermediate_size", 10**30)],
)
def test_a_huge_config_takes_no_memory(hub, key, size):
    content = json.loads((hub / "config.json").read_text())
    (hub / "config.json").write_text(json.dumps(content | {key: size}))
    assert check("hub", hub)


def test_a_huge_claim_in_packed_json_takes_no_memory(tmp_path):
    make_packed(tmp_path / "packed")
    index = tmp_path / "packed" / packed.INDEX
    content = json.loads(index.read_text())
    entry = content["tensors"]["encoder/embeddings/tokens"]
    assert entry["sparse"]
    entry["shape"] = [100_000, 100_000]
    index.write_text(json.dumps(content))
    message = check("packed", tmp_path / "packed")
    assert "does not fit packed.json at 'encoder/embeddings/tokens'" in message


def test_a_huge_group_of_scales_takes_no_memory():
    scale = np.ones((1, 1, 2), np.float16)
    assert packed.spread(scale, 3, 10**10).shape == (1, 3, 2)


def test_a_run_is_not_read_with_another_tokenizer(tmp_path):
    make_workdir(tmp_path / "run")
    file = tmp_path / "run" / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(UserError, match=r"tokenizer\.json: is not the tokenizer that the run was"):
        pretrained.read(tmp_path / "run")


def test_a_tensor_of_another_type_is_named(tmp_path):
    make_packed(tmp_path / "packed")
    file = tmp_path / "packed" / packed.FILE
    tensors = load_file(file)
    name = min(tensors)
    save_file(tensors | {name: tensors[name].astype(np.int64)}, file)
    assert "compress the model again" in check("packed", tmp_path / "packed")
