"""A pass over an image set that may be interrupted and shared: what is computed of each image, kept on disk in shards
with checksums.

The folder's name is a hash of all that can change a result: what is computed and by what (``cache_key``), the
preprocessing, the images and their order. A shard's limits depend on the size of the set alone, and so does every
batch: a resumed pass, and one by any number of processes, computes the very same. A shard that is absent or damaged is
made again, the others are not touched.

Processes that need the same pass at the same time share it, whether torchrun or two commands started them: whoever
holds a shard's lock computes it, the others take the next one that is missing, and wait for what is still being
computed.
"""

import contextlib
import fcntl
import hashlib
import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors

from evaluate.data.imagenet import ImageSet
from evaluate.data.loader import UNREADABLE, Images, Sample, batches, read_image
from evaluate.data.transforms import Transform
from evaluate.runtime import distributed
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError
from evaluate.runtime.progress import track
from results.atomic import atomic_write

FORMAT = 3  # raise it when what is stored changes its meaning
BATCH = 64
BATCHES_A_SHARD = (
    16  # at most; a small set has sixteen shards or one batch a shard, so that several processes share it evenly
)
UNREADABLE_ROWS = "unreadable"  # the tensor of a shard that lists the images that could not be read
POLL_SECONDS = 0.2  # between two looks at shards that another process is computing

Compute = Callable[[torch.Tensor], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class CachedPass:
    """What a finished pass left on disk."""

    folder: Path
    count: int
    """Images of the set."""
    shards: int

    @cached_property
    def unreadable(self) -> np.ndarray:
        """Sorted indices of the images that could not be read; ``read`` leaves their empty rows out."""
        return np.concatenate(
            [np.empty(0, np.int64), *(_unreadable(self.folder, shard) for shard in range(self.shards))]
        )

    @property
    def rows(self) -> np.ndarray:
        """Indices of the images that ``read`` gives, in order."""
        return np.delete(np.arange(self.count), self.unreadable)

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor | None:
        """(m, …) of the m readable images in the order of the set, as ``dtype``; None where nothing of that name was
        computed.
        """
        values, begin = None, 0
        for shard in range(self.shards):
            part = _tensor(self.folder, shard, name)
            if part is None:
                return None
            if values is None:
                values = torch.empty((self.count, *part.shape[1:]), dtype=dtype or part.dtype)
            values[begin : begin + len(part)] = part  # in place: one copy in memory, not two
            begin += len(part)
        return values if values is None or not len(self.unreadable) else values[torch.from_numpy(self.rows)]

    def require(self, name: str) -> torch.Tensor:
        """``read`` of what was computed."""
        values = self.read(name)
        if values is None:
            raise ValueError(f"{self.folder} holds no {name}")
        return values


def compute(
    parent: Path,
    images: ImageSet,
    transform: Transform,
    measure: Compute,
    cache_key: dict[str, Any],
    env: Env,
    max_unreadable: int = 0,
    batch: int = BATCH,
) -> CachedPass:
    """Computes what is missing of a pass below ``parent``; all processes share it, and it returns on each when all is
    there.

    Args:
        transform: a dataclass; its fields are part of what names the folder.
        measure: from pixels uint8 (B, 3, H, W) to tensors (B, …).
        max_unreadable: so many images of the set may be unreadable.

    Raises:
        UserError: on every process, naming an unreadable image too many, or a disk that is too full.
    """
    preprocessing = asdict(transform)  # type: ignore[call-overload]  # every transform of a cached pass is a dataclass
    about = {
        "format": FORMAT,
        "batch": batch,
        "set": images.name,
        "images": images.fingerprint,
        "preprocessing": preprocessing,
        **cache_key,
    }
    text = json.dumps(about, indent=1, sort_keys=True)
    folder = parent / f"{images.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "identity.json", text.encode())
    size = shard_size(len(images), batch)
    stored = CachedPass(folder, len(images), -(-len(images) // size))
    rank, world_size = distributed.rank(), distributed.world_size()
    checked = distributed.gather_objects(
        [s for s in range(rank, stored.shards, world_size) if not _is_intact(folder, s, images)]
    )
    work = _Pass(folder, images, transform, measure, env, batch, size, sorted(sum(checked, [])), max_unreadable)
    while True:
        fault = None
        try:
            computed = work.next_shard()
        except UserError as error:
            fault, computed = str(error), False
        faults = [
            text for text in distributed.gather_objects(fault) if text
        ]  # all stop together: none waits for one that has ended
        if faults:
            raise UserError(faults[0])
        if any(distributed.gather_objects(computed)):
            continue
        if not any(distributed.gather_objects(work.remaining())):
            break
        time.sleep(POLL_SECONDS)  # what is left is being computed by another command
    if len(stored.unreadable) > max_unreadable:
        raise _too_many(images, stored.unreadable, max_unreadable)
    return stored


def how(env: Env) -> dict[str, Any]:
    """What a key says of how it was computed, so that no pass has parts that round differently: whether compiled."""
    return {"compiled": True} if env.compile else {}


@dataclass
class _Pass:
    """One process's part in computing the missing shards of a pass."""

    folder: Path
    images: ImageSet
    transform: Transform
    measure: Compute
    env: Env
    batch: int
    size: int
    missing: list[int]
    max_unreadable: int

    def __post_init__(self) -> None:
        self.taken: deque[tuple[int, IO[bytes]]] = (
            deque()
        )  # locked by this process, in the order in which the loader reads them
        self.loader: Iterator[Any] | None = None

    def remaining(self) -> list[int]:
        """The shards that are not there yet."""
        self.missing = [shard for shard in self.missing if not _is_there(self.folder, shard)]
        return self.missing

    def next_shard(self) -> bool:
        """Computes the next missing shard that no other process holds; False where there is none."""
        if self.loader is None:
            count = sum(len(self._batches(shard)) for shard in self.remaining())
            dataset = Images(self.images, self.transform, keep_unreadable=True)
            workers = min(self.env.workers, count)  # one that has nothing to load costs its start
            self.loader = iter(track(batches(dataset, self._samples(), workers), self.images.name, count))
        first = next(self.loader, None)
        if first is None:
            self.loader = None
            return False
        shard, lock = self.taken.popleft()
        try:
            tensors = self._compute(shard, first)
            self.max_unreadable -= len(tensors[UNREADABLE_ROWS])
            _write_shard(self.folder, shard, tensors, len(self.missing))
        finally:
            _unlock(lock)
        return True

    def _samples(self) -> Iterator[list[Sample]]:
        """The batches of every shard that can be locked, as the loader asks for them."""
        begin = (
            distributed.rank() * len(self.missing) // distributed.world_size()
        )  # each process begins at another place
        for shard in [*self.missing[begin:], *self.missing[:begin]]:
            lock = None if _is_there(self.folder, shard) else _lock(self.folder, shard)
            if lock is None:
                continue
            if _is_there(self.folder, shard):  # made between the look and the lock
                _unlock(lock)
                continue
            self.taken.append((shard, lock))
            yield from self._batches(shard)

    def _batches(self, shard: int) -> list[list[Sample]]:
        begin, end = shard * self.size, min(len(self.images), (shard + 1) * self.size)
        return [
            [(0, index) for index in range(first, min(end, first + self.batch))]
            for first in range(begin, end, self.batch)
        ]

    def _compute(self, shard: int, first: Any) -> dict[str, torch.Tensor]:
        parts: list[dict[str, torch.Tensor]] = []
        unreadable: list[int] = []
        for number, samples in enumerate(self._batches(shard)):
            pixels, labels = first if number == 0 else next(self.loader)  # type: ignore[arg-type]  # made by now
            unreadable += [
                index for (_, index), label in zip(samples, labels.tolist(), strict=True) if label == UNREADABLE
            ]
            if len(unreadable) > self.max_unreadable:
                raise _too_many(self.images, np.array(unreadable), self.max_unreadable)
            with torch.inference_mode():
                parts.append({name: value.cpu() for name, value in self.measure(pixels).items()})
        rows = {UNREADABLE_ROWS: torch.tensor(unreadable, dtype=torch.int64)}
        return rows | {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def shard_size(count: int, batch: int) -> int:
    """Images a shard of a set of ``count``."""
    return batch * min(BATCHES_A_SHARD, max(1, count // (batch * 16)))


def _lock(folder: Path, shard: int) -> IO[bytes] | None:
    """An open file that holds the shard's lock until its process ends, or None where another process holds it."""
    file = (folder / f"{shard:05d}.lock").open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:
        # a file system without locks: then two processes may compute the same shard twice, and write the same bytes
        pass
    return file


def _unlock(file: IO[bytes]) -> None:
    Path(file.name).unlink(missing_ok=True)
    file.close()


def _too_many(images: ImageSet, unreadable: np.ndarray, allowed: int) -> UserError:
    """What is wrong with the first unreadable image, in the reader's own words."""
    try:
        read_image(images.files[unreadable[0]])
    except UserError as error:
        more = f" ({len(unreadable)} unreadable images of {images.name}, {allowed} allowed)" if allowed else ""
        return UserError(f"{error}{more}")
    return UserError(f"{images.files[unreadable[0]]} could not be read before but can be read now; run the task again")


def _is_there(folder: Path, shard: int) -> bool:
    """Whether a shard has been written: its checksum is written last."""
    return (folder / f"{shard:05d}.sha256").is_file()


def _is_intact(folder: Path, shard: int, images: ImageSet) -> bool:
    """Whether a shard is there, its checksum right, and its unreadable images unreadable still; one that is not is
    removed.
    """
    path = folder / f"{shard:05d}.safetensors"
    checksum = path.with_suffix(".sha256")
    with contextlib.suppress(OSError):
        with path.open("rb") as file:
            intact = hashlib.file_digest(file, "sha256").hexdigest() == checksum.read_text()
        if intact and not any(_is_readable(images, index) for index in _unreadable(folder, shard).tolist()):
            return True
    checksum.unlink(missing_ok=True)
    return False


def _is_readable(images: ImageSet, index: int) -> bool:
    try:
        read_image(images.files[index])
    except UserError:
        return False
    return True


def _unreadable(folder: Path, shard: int) -> np.ndarray:
    rows = _tensor(folder, shard, UNREADABLE_ROWS)
    return np.empty(0, np.int64) if rows is None else rows.numpy()


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
        raise UserError(
            f"{folder} needs {left * len(content) / 1e9:.1f} GB more, and the disk has {free / 1e9:.1f}; make room, "
            f"or choose --out"
        )
    _write(folder / f"{shard:05d}.safetensors", content)
    _write(folder / f"{shard:05d}.sha256", hashlib.sha256(content).hexdigest().encode())


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as written:
        written.write_bytes(content)
