"""Small copies of a folder of images, for a pretraining whose views are small: decoding a large photograph takes longer
than training on 48 pixels of it.

    python -m evaluate.data.copies FOLDER COPIES --side 96
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

from evaluate.data.imagenet import images_of_classes, require_image_names
from evaluate.data.loader import read_image
from evaluate.runtime.cli import EXIT_USER, at_least_one, make_folder
from evaluate.runtime.errors import UserError
from evaluate.runtime.processes import end_with_parent
from evaluate.runtime.progress import track
from results.atomic import atomic_write
from results.ending import leave

QUALITY = 95  # of JPEG


def make(folder: Path, copies: Path, side: int) -> int:
    """Copies every image of class folders with its shorter side at ``side`` pixels; returns how many there are.

    An image that is as small already is linked. An interrupted making goes on where it stopped.
    """
    images = [(wnid, file) for wnid, files in images_of_classes(folder).items() for file in files]
    require_image_names([file for _, file in images])
    for wnid, file in track(images, "making small copies"):
        place = copies / wnid
        if (place / f"{file.name}.jpg").exists() or (place / file.name).exists():
            continue
        place.mkdir(parents=True, exist_ok=True)
        image = read_image(file)
        if min(image.size) <= side:
            (place / file.name).symlink_to(Path(str(file)).absolute())
            continue
        width, height = (max(side, round(length * side / min(image.size))) for length in image.size)
        with atomic_write(place / f"{file.name}.jpg") as written:
            image.resize((width, height), Image.Resampling.BICUBIC).save(written, format="JPEG", quality=QUALITY)
    return len(images)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluate.data.copies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="holds one folder of images a class")
    parser.add_argument("copies", type=Path, help="where the copies go")
    parser.add_argument("--side", type=at_least_one, default=96, help="shorter side in pixels (default: 96)")
    arguments = parser.parse_args(argv)
    end_with_parent()
    try:
        count = make(arguments.folder, make_folder(arguments.copies), arguments.side)
    except UserError as error:
        print(f"evaluate.data.copies: {error}", file=sys.stderr)
        return EXIT_USER
    print(f"{count} images, at most {arguments.side} px on their shorter side, in {arguments.copies}")
    return 0


if __name__ == "__main__":
    leave(main)
