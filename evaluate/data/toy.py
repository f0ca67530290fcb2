"""A small world made from a seed, in the exact layouts of the real sets, so that everything can be seen to work without
a download.

    python -m evaluate.data.toy FOLDER

The classes are ten textures, each picture in two random colors under strong noise. The colors dominate the pixels and
say nothing of the class, so that raw pixels and random features are of little use; two views of one image, whose colors
are jittered, share the texture alone. ``unlabelled/`` has many pictures for pretraining and ``imagenet/train`` few
labeled ones, since that is what pretraining is for. The world was made so that a good encoder can be seen in minutes;
it says nothing of photographs. ``captions.tsv`` says of each unlabelled picture what is on it: texture and colors.
"""

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from evaluate.data import toy_dense
from evaluate.data.layouts import CORRUPTIONS, OWN_GENERATOR, SEVERITIES, imagenet_c
from evaluate.data.textures import TEXTURES, colored, colors, name_of, texture
from results.ending import leave

WNIDS = tuple(f"n{index:08d}" for index in range(1, len(TEXTURES) + 1))
CAPTIONS = "captions.tsv"
UNLABELLED_KEY = 5  # of the random numbers of the unlabelled pictures
VERSION = 5  # raise it when a change of this file changes an image

NOISE = 40.0  # standard deviation, of 255


@dataclass(frozen=True)
class World:
    """Everything the world is made of; the same values give the same files."""

    seed: int = 0
    size: int = 32  # pixels a side of the classification images
    unlabelled_per_class: int = 400  # for pretraining; their folders are read by its monitor alone
    train_per_class: int = 50
    val_per_class: int = 100
    list_per_class: int = 10  # images a class in the 1 % list: 1 % would be none
    shifted_per_class: int = 50  # of the look-alikes of IN-A, IN-R and IN-Sketch
    corrupted_per_class: int = 2  # of each of the 75 folders of the IN-C look-alike
    version: int = VERSION


def paint(class_index: int, size: int, generator: np.random.Generator) -> np.ndarray:
    """A (size, size, 3) uint8 picture of one texture in two random colors, under noise."""
    image = colored(texture(TEXTURES[class_index], size, generator), generator) + generator.normal(
        0, NOISE, (size, size, 3)
    )
    return image.clip(0, 255).astype(np.uint8)


def caption(class_index: int, size: int, generator: np.random.Generator) -> str:
    """What ``paint`` shows with the same generator, in words."""
    texture(TEXTURES[class_index], size, generator)  # which draws before the colors do
    ground, figure = map(name_of, colors(generator))
    return f"{figure} {TEXTURES[class_index]} on {ground}"


def make(folder: Path, world: World | None = None) -> Path:
    """Makes the world below ``folder`` unless the same world lies there already; returns the data root.

    The folder's name holds the parameters' hash, so that two worlds never mix; an interrupted making leaves nothing.
    """
    world = world or World()
    parameters = json.dumps({**asdict(world), "dense_version": toy_dense.VERSION}, indent=1)
    root = folder / f"toy-{toy_dense.short_hash(parameters)}"
    if not (root / "world.json").is_file():
        _make_all(folder, root, world, parameters)
    if not (root / CAPTIONS).is_file():  # a world of an earlier time has none
        _write_captions(root, world)
    return root


def _make_all(folder: Path, root: Path, world: World, parameters: str) -> None:
    temporary = folder / f".{root.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    _make_imagenet(temporary, world)
    toy_dense.make(temporary, world.seed)
    contact_sheet(temporary, temporary / "contact_sheet.png")
    (temporary / "world.json").write_text(parameters)
    shutil.rmtree(root, ignore_errors=True)
    temporary.rename(root)


def _write_captions(root: Path, world: World) -> None:
    lines = ["filepath\ttitle"]
    for index, wnid in enumerate(WNIDS):
        for i in range(world.unlabelled_per_class):
            text = caption(index, world.size, np.random.default_rng([world.seed, UNLABELLED_KEY, index, i]))
            lines.append(f"unlabelled/{wnid}/{wnid}_{i}.JPEG\t{text}")
    temporary = root / f".{CAPTIONS}.{os.getpid()}"
    temporary.write_text("\n".join(lines) + "\n")
    temporary.replace(root / CAPTIONS)


def _make_imagenet(root: Path, world: World) -> None:
    def generator(*key: int) -> np.random.Generator:
        return np.random.default_rng([world.seed, *key])

    def paintings(index: int, *, key: int, count: int) -> Iterator[np.ndarray]:
        return (paint(index, world.size, generator(key, index, i)) for i in range(count))

    val: dict[str, list[np.ndarray]] = {}
    for index, wnid in enumerate(WNIDS):
        for folder, key, count in (
            ("unlabelled", UNLABELLED_KEY, world.unlabelled_per_class),
            ("imagenet/train", 0, world.train_per_class),
        ):
            names = [f"{wnid}_{i}" for i in range(count)]
            _save(root / folder / wnid, names, paintings(index, key=key, count=count))
        with (root / "imagenet/1percent.txt").open("a") as file:
            file.writelines(f"{name}.JPEG\n" for name in names[: world.list_per_class])
        val[wnid] = list(paintings(index, key=1, count=world.val_per_class))
        _save(
            root / "imagenet/val" / wnid,
            [f"ILSVRC2012_val_{index}_{i:05d}" for i in range(world.val_per_class)],
            val[wnid],
        )
        shifts = {
            "imagenet-a": (_adversarial, index % 2 == 0),
            "imagenet-r": (_rendition, index >= 4),
            "imagenet-sketch": (_sketch, True),
        }
        for number, (name, (render, present)) in enumerate(shifts.items(), 2):
            if present:  # IN-A and IN-R hold only some of the classes
                pictures = (
                    render(index, world.size, generator(number, index, i)) for i in range(world.shifted_per_class)
                )
                _save(root / name / wnid, [f"{wnid}_{i}" for i in range(world.shifted_per_class)], pictures)
    _make_corrupted(root, world, {wnid: pictures[: world.corrupted_per_class] for wnid, pictures in val.items()})


def _make_corrupted(root: Path, world: World, pictures: dict[str, list[np.ndarray]]) -> None:
    from imagecorruptions import corrupt, corruptions  # seconds of imports that only making the world needs

    shuffle = (
        corruptions._shuffle_pixels_njit_glass_blur
    )  # compiling this loop takes longer than running it on pictures this small
    corruptions._shuffle_pixels_njit_glass_blur = getattr(shuffle, "py_func", shuffle)
    np.random.seed(world.seed)  # the package draws from numpy's global generator
    for corruption in CORRUPTIONS:
        for severity in SEVERITIES:
            for wnid, originals in pictures.items():
                names = [f"{wnid}_{i}" for i in range(len(originals))]
                options = {"seed": world.seed} if corruption in OWN_GENERATOR else {}
                corrupted = (corrupt(image, severity, corruption, **options) for image in originals)
                _save(root / imagenet_c(corruption, severity) / wnid, names, corrupted)


def _adversarial(class_index: int, size: int, generator: np.random.Generator) -> np.ndarray:
    """Low contrast, half hidden by a patch of another class."""
    image = 128 + (paint(class_index, size, generator).astype(float) - 128) * 0.6
    other = paint(int(generator.integers(len(TEXTURES))), size // 2, generator)
    top, left = generator.integers(0, size - size // 2, 2)
    image[top : top + size // 2, left : left + size // 2] = other
    return image.clip(0, 255).astype(np.uint8)


def _rendition(class_index: int, size: int, generator: np.random.Generator) -> np.ndarray:
    """The pattern in two saturated flat colours."""
    pattern = texture(TEXTURES[class_index], size, generator)[..., None] > 0.5
    first, second = generator.uniform(0, 255, (2, 3))
    return np.where(pattern, first, second).astype(np.uint8)


def _sketch(class_index: int, size: int, generator: np.random.Generator) -> np.ndarray:
    """Black ink where the pattern is light, on white."""
    ink = texture(TEXTURES[class_index], size, generator) > 0.6
    return np.repeat(np.where(ink, 40, 245)[..., None], 3, axis=2).astype(np.uint8)


def _save(folder: Path, names: list[str], pictures: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in zip(names, pictures, strict=True):  # type: ignore[call-overload]
        Image.fromarray(picture).save(folder / f"{name}.JPEG", quality=95)


def contact_sheet(root: Path, out: Path, cell: int = 96) -> None:
    """One PNG: a row a set, some of its pictures side by side, so that a person sees what the world looks like."""
    rows = [
        sorted((root / "imagenet/val").glob("*/*_00000.JPEG")),
        *(sorted((root / name).glob("*/*_0.JPEG")) for name in ("imagenet-a", "imagenet-r", "imagenet-sketch")),
        [root / "imagenet-c" / corruption / "3" / WNIDS[0] / f"{WNIDS[0]}_0.JPEG" for corruption in CORRUPTIONS[:10]],
        sorted((root / "coco/train2017").iterdir())[:10],
        *(sorted((root / f"ade20k/{kind}/training").iterdir())[:10] for kind in ("images", "annotations")),
    ]
    sheet = Image.new("RGB", (10 * cell, len(rows) * cell), "white")
    for row, paths in enumerate(rows):
        for column, path in enumerate(paths[:10]):
            picture: Image.Image = Image.open(path)
            if picture.mode != "RGB":  # label maps hold small numbers: spread them over the greys
                picture = picture.point([min(255, value * 30) for value in range(256)]).convert("RGB")
            sheet.paste(picture.resize((cell - 4, cell - 4), Image.Resampling.NEAREST), (column * cell, row * cell))
    sheet.save(out)


def main(argv: list[str] | None = None) -> int:
    """Makes the world and says where it lies."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluate.data.toy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="where the world is made")
    parser.add_argument("--out", type=Path, dest="folder_by_name", help="the same, by name")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    folder = arguments.folder or arguments.folder_by_name
    if folder is None:
        parser.error("give the folder where the world is to be made")
    print(make(folder, World(seed=arguments.seed)))
    return 0


if __name__ == "__main__":
    leave(main)
