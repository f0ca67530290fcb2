"""Images inside a tar or zip archive, read in place: nothing is unpacked.

An archive is indexed once a process (11,000 members a second measured: a minute and a half for the largest of
ImageNet-C), then each image is one read at its place. A tar that is compressed as a whole has no places; it is unpacked
into memory, for which IN-A and IN-R are small enough.
"""

import functools
import gzip
import io
import mmap
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from PIL import Image

from evaluate.data import archives, listing
from evaluate.runtime.errors import UserError

SUFFIXES = (".tar", ".zip")
ZIP_HEADER = 30  # bytes of a zip's local header before the name; the lengths of name and extra field are its last four


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside an archive: ``size`` bytes at ``offset``."""

    archive: Path
    path: str
    offset: int
    size: int
    deflated: bool = False

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.path).stem

    def __str__(self) -> str:
        return f"{self.archive}:{self.path}"

    def read(self) -> bytes:
        """The file's content; raises OSError where it is not whole."""
        content = _content(self.archive)[self.offset : self.offset + self.size]
        if len(content) < self.size:
            raise OSError(f"{self.archive} ends before {self.path} does")
        try:
            return zlib.decompress(content, -zlib.MAX_WBITS) if self.deflated else bytes(content)
        except zlib.error as error:
            raise OSError(f"its compressed data are damaged: {error}") from error


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """An image without a file of its own, whose pixels are in memory: (H, W, 3) uint8."""

    path: str
    pixels: np.ndarray

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.path).stem

    @property
    def size(self) -> int:
        """Bytes of the pixels."""
        return self.pixels.nbytes

    def __str__(self) -> str:
        return self.path

    def read(self) -> bytes:
        """The image as a file would hold it, without loss."""
        written = io.BytesIO()
        Image.fromarray(self.pixels).save(written, "BMP")
        return written.getvalue()


@functools.lru_cache(maxsize=1)  # sets are read one after the other, and the largest index takes half a gigabyte
def folders(archive: Path) -> dict[PurePosixPath, list[Member]]:
    """The files inside an archive by their folder, sorted by name, without those that ``listing`` leaves out.

    Raises UserError for one that is damaged.
    """
    found: dict[str, list[Member]] = {}
    try:
        for member in _zip_members(archive) if archive.suffix == ".zip" else _tar_members(archive):
            if not any(map(listing.is_left_behind, PurePosixPath(member.path).parts)):
                found.setdefault(member.path.rpartition("/")[0], []).append(member)
    except (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(f"the archive {archive} is damaged or cut short ({error}); fetch it again") from error
    return {PurePosixPath(name): sorted(files, key=lambda member: member.path) for name, files in found.items()}


@functools.lru_cache(maxsize=8)
def _content(archive: Path) -> mmap.mmap | bytes:
    with archive.open("rb") as file:
        if _is_compressed(file):
            return gzip.open(file).read()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _is_compressed(file: IO[bytes]) -> bool:
    start = file.read(2)
    file.seek(0)
    return start == b"\x1f\x8b"


def _tar_members(archive: Path) -> Iterator[Member]:
    with archive.open("rb") as file:
        source = io.BytesIO(_content(archive)) if _is_compressed(file) else file
        with tarfile.open(fileobj=source, mode="r:") as tar:
            end = source.seek(0, io.SEEK_END)
            while (info := tar.next()) is not None:
                if info.isreg():
                    if info.offset_data + info.size > end:
                        raise tarfile.TarError(f"it ends inside {info.name}")
                    yield Member(archive, info.name, info.offset_data, info.size)
                tar.members = []  # type: ignore[attr-defined]  # else it keeps a kilobyte for each of 750,000 images


def _zip_members(archive: Path) -> Iterator[Member]:
    content = _content(archive)
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if info.is_dir():
                continue
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise zipfile.BadZipFile(f"{info.filename} is neither stored nor deflated; unpack the archive")
            header = content[info.header_offset : info.header_offset + ZIP_HEADER]
            lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            offset = info.header_offset + ZIP_HEADER + lengths
            yield Member(archive, info.filename, offset, info.compress_size, info.compress_type == zipfile.ZIP_DEFLATED)


File = Path | archives.Member | archives.Held
