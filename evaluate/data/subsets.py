"""Parts of the train images: those of a published list, and random draws of so many a class."""

import hashlib
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from evaluate.data import layouts
from evaluate.data.imagenet import FULL_CLASSES, NONE, Identities, ImageSet, train_set
from evaluate.data.published_counts import LISTS
from evaluate.runtime.errors import UserError
from evaluate.runtime.seeding import seed_of

ONE_PERCENT_CLASSES = {13: 811, 12: 189}  # so many images have so many classes of 1percent.txt
ONE_PERCENT_MD5 = "cdd642290a5eef5cd87e8546a3177b92"  # of the sorted names of 1percent.txt, one a line


def listed_set(name: str, data_root: Path, limit: int | None = None, identities: Identities = NONE) -> ImageSet:
    """The train images that ``imagenet/<name>.txt`` names, one ``<wnid>_<id>.JPEG`` a line; ``name`` is a key of LISTS.

    Raises: UserError: a listed file is absent from train, or twice in the list, or the list is not the published one of
        ImageNet-1k.
    """
    layouts.require(data_root, f"imagenet_{name}")
    listing, train = data_root / f"imagenet/{name}.txt", train_set(data_root, identities=identities)
    names = sorted(line.strip() for line in listing.read_text().splitlines() if line.strip())
    if len(set(names)) != len(names):
        raise UserError(f"{listing} names a file twice ({next(a for a, b in pairwise(names) if a == b)})")
    if len(train.classes) == FULL_CLASSES:
        check_published(name, names, listing)
    position = {file.name: index for index, file in enumerate(train.files)}
    absent = [file for file in names if file not in position]
    if absent:
        raise UserError(
            f"{listing} names {len(absent)} files that imagenet/train lacks, for example {absent[0]}; unpack train in "
            f"full"
        )
    return part(name, train, np.array([position[file] for file in names]), limit)


def check_published(name: str, names: list[str], listing: Path) -> None:
    """Raises UserError unless the sorted names are those of the published list."""
    if len(names) != LISTS[name]:
        raise UserError(
            f"{listing} has {len(names)} names, but the published list of ImageNet-1k has {LISTS[name]}; download it "
            f"again"
        )
    if name != "1percent":
        return
    text = "\n".join(names)
    digests = {hashlib.md5(form.encode(), usedforsecurity=False).hexdigest() for form in (text, text + "\n")}
    if (
        Counter(Counter(name.rpartition("_")[0] for name in names).values()) != ONE_PERCENT_CLASSES
        or ONE_PERCENT_MD5 not in digests
    ):
        raise UserError(
            f"{listing} has as many names as the published list, but other names (by the md5 of the sorted names); "
            f"download it again"
        )


def drawn_rows(train: ImageSet, shots: int | None, fraction: float | None, seed: int, draw: int) -> np.ndarray:
    """Sorted indices into ``train``: of each class ``shots`` images, or the ``fraction`` of its images (at least one),
    at random.

    A class's images depend on the seed, the draw and the class alone. Raises UserError for a class with fewer than
    ``shots`` images.
    """
    rows = []
    for label in train.present:
        own = np.flatnonzero(train.labels == label)
        count = shots if shots is not None else max(1, round((fraction or 0) * len(own)))
        if count > len(own):
            raise UserError(
                f"the class {train.classes[label]} has {len(own)} train images, fewer than shots={count}; choose fewer"
            )
        generator = np.random.default_rng(seed_of(seed, draw, train.classes[label]))
        rows.append(generator.choice(own, count, replace=False))
    return np.sort(np.concatenate(rows))


def part(name: str, whole: ImageSet, rows: np.ndarray, limit: int | None = None) -> ImageSet:
    """The images at ``rows`` of a set, as a set of its own."""
    asked = len(rows)
    if limit is not None and limit < asked:  # evenly spaced, so that every class keeps its share
        rows = rows[np.arange(limit) * asked // limit]
    fingerprint = hashlib.sha256(whole.fingerprint.encode() + rows.astype(np.int64).tobytes()).hexdigest()[:16]
    files = tuple(whole.files[row] for row in rows)
    several = None if whole.several is None else whole.several[rows]
    return replace(
        whole, name=name, files=files, labels=whole.labels[rows], fingerprint=fingerprint, asked=asked, several=several
    )
