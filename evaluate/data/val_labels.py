"""The classes of ``imagenet/val`` where it comes as published, without class folders: from any of the files that are
passed around.
"""

import csv
import io
import tarfile
from pathlib import Path

from evaluate.runtime.errors import UserError

DEVKIT = "ILSVRC2012_devkit_t12/data"
# below imagenet/, in the order in which they are looked for
SOURCES = (
    "LOC_val_solution.csv",  # Kaggle's
    "val_map.txt",  # "<file> <wnid>" a line
    "val.txt",  # Caffe's: "<file> <index of the class among the sorted wnids>" a line
    "imagenet_2012_validation_synset_labels.txt",  # TensorFlow's: the wnid of the n-th image in line n
    f"{DEVKIT}/ILSVRC2012_validation_ground_truth.txt",  # beside meta.mat
    "ILSVRC2012_devkit_t12.tar.gz",
)


def source(imagenet: Path) -> Path | None:
    """The first of SOURCES that there is."""
    return next((imagenet / name for name in SOURCES if (imagenet / name).is_file()), None)


def read(imagenet: Path, classes: tuple[str, ...]) -> dict[str, str]:
    """The wnid of each val image by its name without suffix.

    Raises:
        UserError: there is no source, or it does not read as one.
    """
    path = source(imagenet)
    if path is None:
        raise UserError(
            f"{imagenet / 'val'} has no class folders, and no file gives the classes of its images; put one of "
            f"{', '.join(SOURCES)} into {imagenet}"
        )
    try:
        if path.suffix == ".csv":
            rows = csv.DictReader(io.StringIO(path.read_text()))
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
        if path.name in ("val_map.txt", "val.txt"):
            pairs = [line.split() for line in path.read_text().splitlines() if line.strip()]
            return {Path(name).stem: classes[int(label)] if label.isdecimal() else label for name, label in pairs}
        wnids = path.read_text().split() if path.name == SOURCES[3] else _devkit(path)
    except (OSError, ValueError, KeyError, IndexError, tarfile.TarError) as error:
        raise UserError(
            f"{path} does not say the classes of imagenet/val ({type(error).__name__}: {error}); fetch it again"
        ) from error
    return {f"ILSVRC2012_val_{number:08d}": wnid for number, wnid in enumerate(wnids, 1)}


def _devkit(path: Path) -> list[str]:
    """Wnids in the order of the images: the devkit numbers the classes its own way, and meta.mat says which number is
    which.
    """
    from scipy.io import loadmat  # slow to import

    files: dict[str, bytes] = {}
    if path.suffix == ".gz":
        with tarfile.open(path) as archive:
            for name in ("ILSVRC2012_validation_ground_truth.txt", "meta.mat"):
                member = archive.extractfile(f"{DEVKIT}/{name}")
                files[name] = member.read() if member else b""
    else:
        files = {name: path.with_name(name).read_bytes() for name in (path.name, "meta.mat")}
    synsets = loadmat(io.BytesIO(files["meta.mat"]), squeeze_me=True)["synsets"]
    wnid_of = {
        int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets if int(synset["num_children"]) == 0
    }
    return [wnid_of[int(line)] for line in files["ILSVRC2012_validation_ground_truth.txt"].split()]
