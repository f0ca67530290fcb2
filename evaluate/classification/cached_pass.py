"""A pass over an image set that may be interrupted: what is computed of each image, kept on disk in shards beside their checksums.

The folder's name is a hash of all that can change a result: what is computed and by what (``identity``), the preprocessing, the images
and their order. A shard's limits depend on the size of the set alone, and so does every batch: a resumed pass, and one by any number of
processes, computes the very same. A shard that is absent or damaged is made again, the others are not touched; each image is read from
disk once.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors

from evaluate.data.imagenet import ImageSet
from evaluate.data.loader import UNREADABLE, Draw, Images, batches, read_image
from evaluate.data.transforms import Transform
from evaluate.runtime import distributed
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError
from evaluate.runtime.progress import track
from results.atomic import whole

FORMAT = 2  # raise it when what is stored changes its meaning
BATCH = 64
BATCHES_A_SHARD = 16  # at most; a small set has sixteen shards or one batch a shard, so that several processes share it evenly
BAD = "unreadable"  # the tensor of a shard that lists the images that could not be read

Compute = Callable[[torch.Tensor], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Stored:
    """What a finished pass left on disk."""

    folder: Path
    count: int  # images of the set
    shards: int

    @cached_property
    def bad(self) -> np.ndarray:
        """Sorted indices of the images that could not be read: their rows hold nothing, and ``read`` leaves them out."""
        return np.concatenate([np.empty(0, np.int64), *(_tensor(self.folder, shard, BAD).numpy() for shard in range(self.shards))])

    @property
    def rows(self) -> np.ndarray:
        """Indices of the images that ``read`` gives, in order."""
        return np.delete(np.arange(self.count), self.bad)

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor | None:
        """(m, …) of the m readable images in the order of the set, as ``dtype``; None where nothing of that name was computed."""
        parts: Iterator[torch.Tensor | None] = (_tensor(self.folder, shard, name) for shard in range(self.shards))
        whole, begin = None, 0
        for part in parts:
            if part is None:
                return None
            if whole is None:
                whole = torch.empty((self.count, *part.shape[1:]), dtype=dtype or part.dtype)
            whole[begin : begin + len(part)] = part  # in place: one copy in memory, not two
            begin += len(part)
        return whole if whole is None or not len(self.bad) else whole[torch.from_numpy(self.rows)]


def run(
    parent: Path,
    images: ImageSet,
    transform: Transform,
    compute: Compute,
    identity: dict[str, Any],
    env: Env,
    allowed_bad: int = 0,
    batch: int = BATCH,
) -> Stored:
    """Computes what is missing of a pass below ``parent``; all processes share it, and it returns on each when all is there.

    Args:
        transform: a dataclass; its fields are part of what names the folder.
        compute: from pixels uint8 (B, 3, H, W) to tensors (B, …).
        allowed_bad: so many images of the set may be unreadable.

    Raises:
        UserError: on every process, naming an unreadable image too many, or a disk that is too full.
    """
    about = {"format": FORMAT, "batch": batch, "set": images.name, "images": images.fingerprint, "preprocessing": asdict(transform), **identity}  # type: ignore[call-overload]
    text = json.dumps(about, indent=1, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = parent / f"{images.name}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "identity.json", text.encode())
    size = shard_size(len(images), batch)
    shards = -(-len(images) // size)
    rank, world = distributed.world()
    missing = sorted(sum(distributed.gather([s for s in range(rank, shards, world) if not _is_whole(folder, s, images)]), []))
    mine = missing[rank::world]
    limits = [(shard * size, min(len(images), (shard + 1) * size)) for shard in mine]
    draws = [draw for begin, end in limits for draw in _batches(begin, end, batch)]
    loader = track(batches(Images(images, transform, keep_unreadable=True), draws, env.workers), f"{images.name}", len(draws))
    budget = allowed_bad
    for turn in range(-(-len(missing) // world)):
        fault = None
        if turn < len(mine):
            try:
                tensors = _shard(loader, images, list(_batches(*limits[turn], batch)), compute, budget)
                budget -= len(tensors[BAD])
                _write_shard(folder, mine[turn], tensors, len(mine) - turn)
            except UserError as error:
                fault = str(error)
        faults = [text for text in distributed.gather(fault) if text]  # all stop together: none waits for one that has ended
        if faults:
            raise UserError(faults[0])
    stored = Stored(folder, len(images), shards)
    if len(stored.bad) > allowed_bad:
        raise _too_many(images, stored.bad, allowed_bad)
    return stored


def shard_size(count: int, batch: int) -> int:
    """Images a shard of a set of ``count``."""
    return batch * min(BATCHES_A_SHARD, max(1, count // (batch * 16)))


def _batches(begin: int, end: int, batch: int) -> Iterator[list[Draw]]:
    for first in range(begin, end, batch):
        yield [(0, index) for index in range(first, min(end, first + batch))]


def _shard(loader: Iterator[Any], images: ImageSet, draws: list[list[Draw]], compute: Compute, budget: int) -> dict[str, torch.Tensor]:
    parts: list[dict[str, torch.Tensor]] = []
    bad: list[int] = []
    for draw in draws:
        pixels, labels = next(loader)
        bad += [index for (_, index), label in zip(draw, labels.tolist(), strict=True) if label == UNREADABLE]
        if len(bad) > budget:
            raise _too_many(images, np.array(bad), budget)
        with torch.inference_mode():
            parts.append({name: value.cpu() for name, value in compute(pixels).items()})
    return {BAD: torch.tensor(bad, dtype=torch.int64)} | {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _too_many(images: ImageSet, bad: np.ndarray, allowed: int) -> UserError:
    """What is wrong with the first unreadable image, in the reader's own words."""
    try:
        read_image(images.files[bad[0]])
    except UserError as error:
        more = f" ({len(bad)} unreadable images of {images.name}, {allowed} allowed)" if allowed else ""
        return UserError(f"{error}{more}")
    return UserError(f"{images.files[bad[0]]} could not be read and now can; run the task again")


def _is_whole(folder: Path, shard: int, images: ImageSet) -> bool:
    """Whether a shard is there, its checksum right, and its unreadable images unreadable still."""
    path = folder / f"{shard:05d}.safetensors"
    checksum = path.with_suffix(".sha256")
    if not (path.is_file() and checksum.is_file()):
        return False
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != checksum.read_text():
            return False
    return not any(_is_readable(images, index) for index in _tensor(folder, shard, BAD).tolist())


def _is_readable(images: ImageSet, index: int) -> bool:
    try:
        read_image(images.files[index])
    except UserError:
        return False
    return True


def _tensor(folder: Path, shard: int, name: str) -> torch.Tensor | None:
    """One tensor of a shard, without reading the others; None where there is none of that name."""
    path = folder / f"{shard:05d}.safetensors"
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor(name) if name in file.keys() else None  # noqa: SIM118  (not a dict)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} was damaged after it was written ({error}); run the task again") from error


def _write_shard(folder: Path, shard: int, tensors: dict[str, torch.Tensor], left: int) -> None:
    """The shard, then its checksum; raises UserError where the ``left`` shards will not fit on the disk."""
    content = save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()})
    free = shutil.disk_usage(folder).free
    if free < left * len(content):
        raise UserError(f"{folder} needs {left * len(content) / 1e9:.1f} GB more, and the disk has {free / 1e9:.1f}; make room, or choose --out")
    _write(folder / f"{shard:05d}.safetensors", content)
    _write(folder / f"{shard:05d}.sha256", hashlib.sha256(content).hexdigest().encode())


def _write(path: Path, content: bytes) -> None:
    with whole(path) as written:
        written.write_bytes(content)
