"""The gate of label maps: what it accepts is scored in full when the labels are returned, all else it refuses."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluate.data import check, dense_sets
from evaluate.mm.datasets import SegmentationSet
from evaluate.mm.metrics import MeanIoU
from evaluate.mm.transforms import LoadLabels, LoadPicture
from evaluate.runtime.errors import UserError

SIZE = (40, 60)  # height, width


def segmented(root: Path, answer: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    """Metrics of a segmenter that knows the labels, through the gate, the data set and the metric."""
    dense_sets.of("ade20k", root / "ade20k").check()
    data = SegmentationSet(str(root / "ade20k"), "validation", [LoadPicture(), LoadLabels()])
    metric = MeanIoU()
    metric.dataset_meta = data.metainfo
    for sample in data:
        labels = torch.from_numpy(answer(sample["gt_seg_map"]).astype(np.int64))
        truth = torch.from_numpy(sample["gt_seg_map"].astype(np.int64))
        metric.process(None, [{"pred_sem_seg": {"data": labels[None]}, "gt_sem_seg": {"data": truth[None]}}])
    return metric.compute_metrics(metric.results)


def ade20k_world(root: Path) -> None:
    draw = np.random.default_rng(0)
    for split in dense_sets.SPLITS:
        for kind in ("images", "annotations"):
            (root / "ade20k" / kind / split).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", SIZE[::-1]).save(root / f"ade20k/images/{split}/{number}.jpg")
            labels = draw.integers(0, 151, SIZE).astype(np.uint8)
            Image.fromarray(labels).save(root / f"ade20k/annotations/{split}/{number}.png")
    (root / "world.json").write_text("{}")


def palette(labels: np.ndarray) -> Image.Image:
    image = Image.fromarray(labels).convert("P")
    image.putpalette(list(range(256)) * 3)
    return image


MAPS: dict[str, tuple[Callable[[np.ndarray], Image.Image], str | None]] = {
    "16 bits": (lambda labels: Image.fromarray(labels.astype(np.uint16)), None),
    "label 150": (lambda labels: Image.fromarray(np.full_like(labels, 150)), None),
    "colours": (lambda labels: Image.fromarray(np.stack([labels] * 3, 2)), "full ADE20K's _seg files"),
    "a palette": (palette, "a palette; save its indices"),
    "transparency": (lambda labels: Image.fromarray(np.stack([labels] * 2, 2), "LA"), "grey and transparency"),
    "one bit": (lambda labels: Image.fromarray(labels > 0), "1 bits a pixel"),
    "moved": (lambda labels: Image.fromarray(labels - np.uint8(1)), "moved already"),
    "label 151": (lambda labels: Image.fromarray(np.where(labels == 7, 151, labels).astype(np.uint8)), "label 151"),
    "16 bits, large": (lambda labels: Image.fromarray(labels.astype(np.uint16) * 256), "there are 150 classes"),
    "another size": (lambda labels: Image.fromarray(labels[1:]), "pixels, but its image"),
}


@pytest.mark.parametrize("split", dense_sets.SPLITS)
@pytest.mark.parametrize(("change", "says"), MAPS.values(), ids=MAPS)
def test_a_label_map_of_another_kind(
    change: Callable[[np.ndarray], Image.Image], says: str | None, split: str, tmp_path: Path
) -> None:
    ade20k_world(tmp_path)
    path = tmp_path / f"ade20k/annotations/{split}/1.png"
    change(np.array(Image.open(path))).save(path)
    (finding,) = check.check(tmp_path, ["ade20k"])
    if says is None:
        metrics = segmented(tmp_path, lambda labels: np.where(labels == 255, 0, labels))
        assert not {name: value for name, value in metrics.items() if name != "images" and abs(value - 100) > 1e-9}
        assert finding.status == "ok"
        return
    with pytest.raises(UserError) as raised:
        segmented(tmp_path, lambda labels: labels)
    assert says in str(raised.value) and str(path) in str(raised.value)
    assert finding.status == "wrong" and finding.detail == str(raised.value)


def test_a_cut_or_other_file_is_no_label_map(tmp_path: Path) -> None:
    ade20k_world(tmp_path)
    path = tmp_path / "ade20k/annotations/validation/1.png"
    whole = path.read_bytes()
    for content in (b"", whole[:20], whole[:200], b"\xff\xd8" + whole):
        path.write_bytes(content)
        with pytest.raises(UserError, match="1.png cannot be read"):
            dense_sets.of("ade20k", tmp_path / "ade20k").check()


def test_validation_maps_without_a_label_are_refused(tmp_path: Path) -> None:
    ade20k_world(tmp_path)
    for path in (tmp_path / "ade20k/annotations/validation").iterdir():
        Image.new("L", SIZE[::-1]).save(path)
    with pytest.raises(UserError, match="no labeled pixel"):
        dense_sets.of("ade20k", tmp_path / "ade20k").check()
