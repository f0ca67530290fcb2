"""PASCAL VOC 2012's segmentation in its own layout: pairs of picture and label map.

The training set is VOC's train (1,464 pictures), and where ``SegmentationClassAug`` lies beside ``SegmentationClass``
(SBD's outlines as label maps, which VOC's publisher does not have) also the pictures of that folder: 10,582 in all,
as the pictures of val are left out of it.
"""

from pathlib import Path

from evaluate.data import listing, voc
from evaluate.runtime.errors import UserError

CLASSES = ("background", *voc.CLASSES)
LISTS = {"training": "train", "validation": "val"}  # by split
MAPS, FURTHER_MAPS = "SegmentationClass", "SegmentationClassAug"


def paired_files(root: Path, split: str) -> tuple[dict[str, Path], dict[str, Path]]:
    """The pictures and the label maps of one split by name.

    Args:
        root: the folder ``VOC2012``.

    Raises:
        UserError: a list or a folder that cannot be read, or a listed picture without its file or label map.
    """
    names = _listed(root, split)
    maps = {name: root / MAPS / f"{name}.png" for name in names}
    if split == "training" and (root / FURTHER_MAPS).exists():
        kept = {*names, *_listed(root, "validation")}
        stems = (Path(entry.name).stem for entry in listing.entries(root / FURTHER_MAPS) if entry.name.endswith(".png"))
        maps |= {name: root / FURTHER_MAPS / f"{name}.png" for name in stems if name not in kept}
    for folder, end, needed in (("JPEGImages", ".jpg", maps), (MAPS, ".png", names)):
        there = {entry.name for entry in listing.entries(root / folder)}
        missing = sorted(name for name in needed if f"{name}{end}" not in there)
        if missing:
            raise UserError(
                f"{root / folder} lacks {len(missing)} of the {split} pictures, for example {missing[0]}{end}; unpack "
                f"VOC2012 again"
            )
    return {name: root / "JPEGImages" / f"{name}.jpg" for name in maps}, maps


def _listed(root: Path, split: str) -> list[str]:
    path = root / "ImageSets" / "Segmentation" / f"{LISTS[split]}.txt"
    try:
        names = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); unpack VOC2012 again") from error
    if not names or len(set(names)) < len(names) or any("/" in name for name in names):
        raise UserError(f"{path} names no picture, or one twice or with a folder; unpack VOC2012 again")
    return names
