"""Reading ImageNet's layouts: what is right is read in order, what is wrong is named."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluate.data import archives, imagenet, layouts, loader, subsets
from evaluate.data.identity import DataIdentities
from evaluate.data.transforms import (
    CenterCrop,
    FinetuneAugmentation,
    SingleDrawCropFlip,
    normalize,
    posterize,
    scale_and_shift,
)
from evaluate.runtime.errors import Skip, UserError
from tests.worlds import WNIDS, in_order, write_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_folder(tmp_path / "imagenet/train", 5, seed=1)
    write_folder(tmp_path / "imagenet/val", 2, seed=2)
    return tmp_path


def read(images: imagenet.ImageSet, workers: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    parts = list(
        loader.batches(loader.Images(images, CenterCrop(32, None, "bicubic")), in_order(len(images), 3), workers)
    )
    return torch.cat([pixels for pixels, _ in parts]), torch.cat([labels for _, labels in parts])


def test_val_in_order_of_wnid(root: Path) -> None:
    images = imagenet.val_set(root)
    pixels, labels = read(images)
    assert images.classes == WNIDS and labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    first = np.asarray(loader.read_image(root / "imagenet/val" / WNIDS[0] / f"{WNIDS[0]}_0.png"))
    assert torch.equal(pixels[0], torch.from_numpy(first.copy()).permute(2, 0, 1))
    value = normalize(pixels[:1], (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "cpu")[0, 1, 0, 0]
    assert float(value) == pytest.approx((first[0, 0, 1] / 255 - 0.5) / 0.3, abs=1e-6)


def test_one_pass_gives_the_pixels_that_a_cpu_makes_by_parts() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).expand(2, 3, 1, 256).contiguous()
    shift, scale = torch.tensor([[0.4, 0.5, 0.6], [0.2, 0.3, 0.4]]).view(2, 3, 1, 1)
    found = scale_and_shift(pixels, 1 / (255 * scale), -shift / scale)
    expected = normalize(pixels, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "cpu")
    assert torch.equal(expected, (pixels.float() / 255 - shift) / scale)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-7)


def test_limit_keeps_every_class_and_says_what_was_asked(root: Path) -> None:
    images = imagenet.train_set(root, limit=8)
    assert len(images) == 8 and images.asked == 20 and np.bincount(images.labels).tolist() == [2, 2, 2, 2]
    assert images.fingerprint != imagenet.train_set(root).fingerprint


def test_class_too_many_or_too_few_is_named(root: Path) -> None:
    write_folder(root / "imagenet/val/extra", 1, WNIDS[:1])
    with pytest.raises(UserError, match=r"1 too many \(extra\)"):
        imagenet.val_set(root)
    (root / "imagenet/val/extra").rename(root / "elsewhere")
    (root / "imagenet/val" / WNIDS[2]).rename(root / "elsewhere2")
    with pytest.raises(UserError, match=f"1 missing.*{WNIDS[2]}"):
        imagenet.val_set(root)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_unreadable_image_is_named_not_dropped(root: Path, damage: str, workers: int) -> None:
    path = root / "imagenet/val" / WNIDS[1] / f"{WNIDS[1]}_1.png"
    path.write_bytes({"truncated": path.read_bytes()[:900], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(UserError, match=path.name) as caught:
        read(imagenet.val_set(root), workers)
    assert "\n" not in str(caught.value)


def test_stray_file_and_empty_class(root: Path) -> None:
    (root / "imagenet/train" / WNIDS[0] / ".DS_Store").touch()
    assert len(imagenet.train_set(root)) == 20
    (root / "imagenet/train" / WNIDS[0] / "notes.txt").touch()
    with pytest.raises(UserError, match="notes.txt"):
        imagenet.train_set(root)
    (root / "imagenet/train" / WNIDS[0] / "notes.txt").unlink()
    (root / "imagenet/train" / "n99999999").mkdir()
    with pytest.raises(UserError, match="n99999999 is empty"):
        imagenet.train_set(root)


def test_one_percent_list(root: Path) -> None:
    with pytest.raises(Skip, match="1percent.txt"):
        subsets.listed_set("1percent", root)
    names = [f"{WNIDS[2]}_3.png", f"{WNIDS[0]}_1.png"]
    listing = root / "imagenet/1percent.txt"
    listing.write_text("\n".join(names))
    images = subsets.listed_set("1percent", root)
    assert images.labels.tolist() == [0, 2] and [file.name for file in images.files] == sorted(names)
    listing.write_text("\n".join([*names, f"{WNIDS[1]}_77.png"]))
    with pytest.raises(UserError, match=f"{WNIDS[1]}_77.png"):
        subsets.listed_set("1percent", root)
    listing.write_text("\n".join([*names, names[0]]))
    with pytest.raises(UserError, match="twice"):
        subsets.listed_set("1percent", root)


def test_robustness_folders_count_by_wnid(root: Path) -> None:
    write_folder(root / "imagenet-r", 1, WNIDS[2:4])
    images = imagenet.robustness_set("imagenet_r", root, "imagenet-r")
    assert images.labels.tolist() == [2, 3]  # not 0 and 1, the folders' own order
    write_folder(root / "imagenet-r/n99999999", 1, WNIDS[:1])
    with pytest.raises(UserError, match="n99999999"):
        imagenet.robustness_set("imagenet_r", root, "imagenet-r")


def test_full_imagenet_demands_the_official_200(tmp_path: Path) -> None:
    official = json.loads(imagenet.OFFICIAL_CLASSES.read_text())
    assert [len(official[name]) for name in ("imagenet", "imagenet_a", "imagenet_r")] == [1000, 200, 200]
    assert len(set(official["imagenet_a"]) & set(official["imagenet_r"])) == 86
    for wnid in official["imagenet"]:
        (tmp_path / "imagenet/train" / wnid).mkdir(parents=True)
    for wnid in official["imagenet_a"]:
        (tmp_path / "imagenet-a" / wnid).mkdir(parents=True)
        (tmp_path / "imagenet-a" / wnid / "0.png").touch()
    images = imagenet.robustness_set("imagenet_a", tmp_path, "imagenet-a")
    assert images.present.tolist()[:6] == [6, 11, 13, 15, 17, 22] and images.present[-1] == 988
    with pytest.raises(UserError, match="200 classes of imagenet_r: 114 missing"):
        imagenet.robustness_set("imagenet_r", tmp_path, "imagenet-a")


def test_views_depend_on_seed_epoch_and_index_alone(root: Path) -> None:
    image = loader.read_image(imagenet.train_set(root).files[0])
    augmentation = FinetuneAugmentation(16, "bicubic", "rand-m9-mstd0.5-inc1", (0.5, 0.5, 0.5), 0)
    for transform in (SingleDrawCropFlip(16, "bicubic", 0), augmentation):
        views = [np.asarray(transform(image, epoch, index)).copy() for epoch, index in ((0, 0), (1, 0), (0, 1), (0, 0))]
        assert views[0].shape == (16, 16, 3)
        assert np.array_equal(views[0], views[3])
        assert not np.array_equal(views[0], views[1]) and not np.array_equal(views[0], views[2])


def test_strongest_augmentation_runs(root: Path) -> None:
    """Magnitude 10 posterises to 0 bits, which Pillow refuses."""
    image = loader.read_image(imagenet.train_set(root).files[0])
    transform = FinetuneAugmentation(32, "bicubic", "rand-m10-n5-inc1", (0.5, 0.5, 0.5), 0)
    assert len({transform(image, 0, index).tobytes() for index in range(60)}) > 50
    assert np.asarray(posterize(image, 0)).max() == 0
    assert np.array_equal(np.asarray(posterize(image, 3)), np.asarray(image) & 0b11100000)
    assert posterize(image, 8) is image


def flatten_val(root: Path) -> dict[str, str]:
    """Renames val's images as published and moves them out of their class folders; the wnid of each by its name without
    suffix.
    """
    val, wnid_of = root / "imagenet/val", {}
    for number, path in enumerate(
        sorted(val.glob("*/*"), key=lambda path: path.stem[::-1]), 1
    ):  # classes mixed, as they come
        wnid_of[f"ILSVRC2012_val_{number:08d}"] = path.parent.name
        path.rename(val / f"ILSVRC2012_val_{number:08d}.JPEG")
    for wnid in WNIDS:
        (val / wnid).rmdir()
    return wnid_of


def write_devkit(folder: Path, wnids: list[str]) -> None:
    """The two files that matter, numbered in an order of their own, with an inner node of the hierarchy among the
    synsets.
    """
    from scipy.io import savemat

    folder.mkdir(parents=True)
    numbers = {wnid: number for number, wnid in enumerate(reversed(WNIDS), 1)}
    rows = [(number, wnid, 0) for wnid, number in numbers.items()] + [(len(numbers) + 1, "n99999999", 4)]
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
    savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=kinds)[:, None]})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{numbers[wnid]}\n" for wnid in wnids))


@pytest.mark.parametrize(
    "source", ["LOC_val_solution.csv", "val_map.txt", "val.txt", "synset labels", "devkit", "devkit.tar.gz"]
)
def test_val_without_class_folders(root: Path, source: str) -> None:
    expected = {
        file.read_bytes(): label
        for file, label in zip(imagenet.val_set(root).files, imagenet.val_set(root).labels, strict=True)
    }
    wnid_of, folder = flatten_val(root), root / "imagenet"
    with pytest.raises(UserError, match="no file gives the classes of its images; put one of LOC_val_solution.csv"):
        imagenet.val_set(root)
    match source:
        case "LOC_val_solution.csv":
            lines = [f"{name},{wnid} 1 2 3 4 {wnid} 5 6 7 8" for name, wnid in reversed(wnid_of.items())]
            (folder / source).write_text("\n".join(["ImageId,PredictionString", *lines]))
        case "val_map.txt":
            (folder / source).write_text("".join(f"{name}.JPEG {wnid}\n" for name, wnid in wnid_of.items()))
        case "val.txt":
            (folder / source).write_text(
                "".join(f"{name}.JPEG {WNIDS.index(wnid)}\n" for name, wnid in wnid_of.items())
            )
        case "synset labels":
            (folder / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(wnid_of.values()))
        case "devkit" | "devkit.tar.gz":
            write_devkit(folder / "ILSVRC2012_devkit_t12/data", list(wnid_of.values()))
            if source == "devkit.tar.gz":
                with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
                    tar.add(folder / "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12")
                shutil.rmtree(folder / "ILSVRC2012_devkit_t12")
    images = imagenet.val_set(root)
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {file.read_bytes(): label for file, label in zip(images.files, images.labels, strict=True)} == expected


def test_a_map_that_does_not_fit_val_is_refused(root: Path) -> None:
    wnid_of = flatten_val(root)
    path = root / "imagenet/val_map.txt"
    path.write_text("".join(f"{name}.JPEG {wnid}\n" for name, wnid in list(wnid_of.items())[:-1]))
    with pytest.raises(
        UserError, match="class of .*ILSVRC2012_val_00000008.JPEG is not known: .*val_map.txt does not list it"
    ):
        imagenet.val_set(root)
    before = DataIdentities(root, root / "manifests").of_sets(("imagenet",))
    path.write_text("".join(f"{name}.JPEG {WNIDS[0]}\n" for name in wnid_of))
    assert DataIdentities(root, root / "manifests").of_sets(("imagenet",)) != before, "another map gives other labels"
    with pytest.raises(UserError, match="differ from those of imagenet/train: 3 missing"):
        imagenet.val_set(root)
    path.write_text("one\n")
    with pytest.raises(UserError, match="does not say the classes of imagenet/val"):
        imagenet.val_set(root)


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_an_archive_is_the_set_of_its_folder(root: Path, suffix: str) -> None:
    write_folder(root / "imagenet-sketch", 2)
    expected = imagenet.robustness_set("imagenet_sketch", root, "imagenet-sketch")
    pixels = read(expected)[0]
    shutil.make_archive(str(root / "imagenet-sketch"), suffix, root, "imagenet-sketch")
    shutil.rmtree(root / "imagenet-sketch")
    layouts.require(root, "imagenet_sketch")
    found = imagenet.robustness_set("imagenet_sketch", root, "imagenet-sketch")
    assert found.labels.tolist() == expected.labels.tolist()
    for workers in (0, 1):
        assert torch.equal(read(found, workers)[0], pixels)
    archive = root / f"imagenet-sketch.{suffix}"
    content = bytearray(archive.read_bytes())
    member = found.files[3]
    content[member.offset + 40 : member.offset + member.size] = bytes(member.size - 40)
    archive.write_bytes(content)
    archives._content.cache_clear()
    with pytest.raises(UserError, match=f"{archive.name}:imagenet-sketch/{WNIDS[1]}/{WNIDS[1]}_1.png"):
        read(found)
    archive.write_bytes(content[: len(content) // 2])
    archives.folders.cache_clear()
    archives._content.cache_clear()
    with pytest.raises(UserError, match="damaged or cut short"):
        imagenet.robustness_set("imagenet_sketch", root, "imagenet-sketch")


def test_a_crop_larger_than_the_image_is_not_padded(root: Path) -> None:
    with pytest.raises(UserError, match="resized to 24 px"):
        CenterCrop(32, 24, "bicubic")
    with pytest.raises(UserError, match=f"{WNIDS[0]}_0.png: an image of 32 x 32 px cannot be cropped to 48 px"):
        list(loader.batches(loader.Images(imagenet.val_set(root), CenterCrop(48, None, "bicubic")), in_order(8, 4)))
