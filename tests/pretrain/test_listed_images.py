"""Pretraining on lists and shards: the very run that it is on the folder of the same images."""

from pathlib import Path

import pytest
import torch

from evaluate.runtime.errors import UserError
from pretrain import checkpoint, train
from pretrain.data.images import ImageFolder
from pretrain.data.pairs import ListedImages, open_images
from pretrain.methods import mae
from tests.labelled import CLASSES, write_everywhere, write_image, write_shard
from tests.pretrain.runs import TINY

FORMS = {"folder": "train", "list": "train.csv", "shards": "train-*.tar"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_everywhere(tmp_path_factory.mktemp("listed"), train=4, val=1)


def test_the_images_come_in_the_folders_order_with_their_classes(root: Path, tmp_path: Path) -> None:
    folder, listed, shards = (open_images(root / name, tmp_path, mae.DEMO) for name in FORMS.values())
    assert isinstance(folder, ImageFolder) and isinstance(listed, ListedImages) and isinstance(shards, ListedImages)
    for other in (listed, shards):
        assert all(torch.equal(folder[index].image, other[index].image) for index in range(16))
    assert listed.classes == folder.classes == [name for name in CLASSES for _ in range(4)]
    assert listed.identity == shards.identity and listed.identity["number"] == 16


def test_a_run_ends_with_the_same_bits(root: Path, tmp_path: Path) -> None:
    weights = []
    for form, name in FORMS.items():
        assert train.main([*TINY, "--data", str(root / name), "--out", str(tmp_path / form)]) == 0
        weights.append(torch.load(tmp_path / form / checkpoint.NAME, weights_only=True)["model"])
    for other in weights[1:]:
        assert weights[0].keys() == other.keys()
        assert all(torch.equal(weights[0][name], other[name]) for name in other)


def test_a_list_needs_no_labels_and_a_folder_of_shards_is_no_folder_of_images(root: Path, tmp_path: Path) -> None:
    (root / "paths.csv").write_text("path\ntrain/bee/001.png\ntrain/ant/000.png\n")
    found = open_images(root / "paths.csv", tmp_path, mae.DEMO)
    assert found.names == ["train/ant/000.png", "train/bee/001.png"] and found.classes == ["train/ant", "train/bee"]
    content = write_image(tmp_path / "1.png").read_bytes()
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards/0.tar", {"1.png": content, "2.png": content, "2.cls": b"dog"})
    assert open_images(tmp_path / "shards", tmp_path, mae.DEMO).classes == ["", "dog"]


def test_what_holds_no_image_is_refused(root: Path, tmp_path: Path) -> None:
    (root / "none.csv").write_text("path\n")
    with pytest.raises(UserError, match="none.csv holds no image"):
        open_images(root / "none.csv", tmp_path, mae.DEMO)
    with pytest.raises(UserError, match="holds no webdataset shard"):
        open_images(root / "absent-*.tar", tmp_path, mae.DEMO)
