"""Which data these are: an identity of every set that follows what lies on the disk, not where it lies.

A part of the data root (``imagenet/val``, an annotation file, an archive) has an identity made of the names and sizes
of its files, of the contents of its lists and annotations, and of the files' times of change. A file that changed alone
gives another identity. Where the times of all files are others than before, the data were copied or mounted elsewhere:
then the contents of a sample decide, so that weeks of work are not run again. ``python run_all.py --verify-data``
digests every file instead.

What is known of a part is kept in a manifest below OUT, one file an identity.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluate.data import layouts, listing, sources, val_labels
from evaluate.data.listing import THREADS
from evaluate.runtime.errors import UserError
from results.atomic import atomic_write

ABSENT = "absent"  # the identity of what is not there
FOUND = "identities.json"  # among the manifests: what one process has found out for others
SAMPLE = 64  # files whose contents decide where all times changed
TEXT_BYTES = 64 * 1024**2  # lists and annotations up to this size count by their contents
TEXTS = (".txt", ".json", ".csv", ".tsv", ".xml", ".mat")


@dataclass(frozen=True)
class Snapshot:
    """What lies at a part now."""

    names: tuple[str, ...]
    """Paths below the part, sorted."""
    sizes: np.ndarray
    """(n,) int64, bytes."""
    times: np.ndarray
    """(n,) int64, nanoseconds."""
    structure: str
    """Digest of names, sizes and of the contents of small texts."""
    root: Path
    """What the names go on from: a folder, or the part itself where it is a file."""


class DataIdentities:
    """The identities of the parts below one data root, each found out once.

    Args:
        store: the folder where the manifests are kept.
        verify: digest the contents of every file.
        known: what another process has found out, by part.
    """

    def __init__(self, data_root: Path, store: Path, verify: bool = False, known: Mapping[str, str] = {}) -> None:
        self.data_root, self.store, self.verify = data_root, store, verify
        self.known = dict(known)
        self.for_tasks = verify
        """Whether tasks take these instead of looking again: every byte was read, or a job did so for all rows."""

    def __getitem__(self, part: str) -> str:
        """The identity of a part, 16 hexadecimal digits; ABSENT where it is not there."""
        if part not in self.known:
            path = layouts.locate(self.data_root, part)
            self.known[part] = _identity(snapshot(path), part, self.store, self.verify) if path else ABSENT
        return self.known[part]

    def of_sources(self, paths: Mapping[str, Path]) -> dict[str, str]:
        """The identities of folders, lists and shards (``sources``), by the names that they are given here.

        Raises UserError for a list or a shard that cannot be read.
        """
        for name, path in paths.items():
            if name not in self.known:
                there = path.exists() or "*" in path.name
                now = snapshot(*sources.files_behind(path)) if there else None
                self.known[name] = _identity(now, name, self.store, self.verify) if now else ABSENT
        return {name: self.known[name] for name in paths}

    def keep(self) -> None:
        """Writes the identities that were found out, for the processes that ``take`` them."""
        self.store.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.store / FOUND) as written:
            written.write_text(json.dumps({**self._about(), "parts": self.present(self.known)}, indent=1))

    def take(self) -> None:
        """Believes what another process has kept of the same data root; it finds out the rest itself."""
        try:
            kept = json.loads((self.store / FOUND).read_text())
        except (OSError, ValueError):
            return
        if isinstance(kept, dict) and {**kept, "parts": {}} == {**self._about(), "parts": {}}:
            self.known |= kept["parts"]
            self.for_tasks = True

    def _about(self) -> dict[str, object]:
        return {"data_root": os.path.abspath(self.data_root), "verified": self.verify}

    @staticmethod
    def present(parts: Mapping[str, str]) -> dict[str, str]:
        """Those that are there: what is absent now may come before another process looks."""
        return {part: identity for part, identity in parts.items() if identity != ABSENT}

    def of_sets(self, names: tuple[str, ...]) -> dict[str, str]:
        """The identities of every part of some sets (keys of ``layouts.LAYOUTS``), by part."""
        there = layouts.without_absent_further(self.data_root, names)  # absent, they are no part of any measurement
        parts = dict.fromkeys(part for name in there for part in layouts.LAYOUTS[name])
        found = {part: self[part] for part in parts}
        labels = val_labels.source(self.data_root / "imagenet") if "imagenet/val" in parts else None
        if labels:
            part = str(labels.relative_to(self.data_root))
            found[part] = self[part]
        return found


def fingerprint(parts: Mapping[str, str]) -> str:
    """One digest of the identities of several parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def snapshot(path: Path, chosen: Sequence[str] = ()) -> Snapshot:
    """Names, sizes and times of all files of a part, or of those chosen below it, links followed.

    Raises UserError for a folder that cannot be read, and for a chosen file that is not there.
    """
    if chosen:
        with ThreadPoolExecutor(THREADS) as pool:
            facts = list(zip(chosen, pool.map(_require, [path / name for name in chosen]), strict=True))
    elif path.is_file():
        facts = [("", path.stat())]
    else:
        facts = sorted((name, about) for name, about in listing.walk(path, _facts) if about)
    names = tuple(name for name, _ in facts)
    sizes = np.array([about.st_size for _, about in facts], dtype=np.int64)
    times = np.array([about.st_mtime_ns for _, about in facts], dtype=np.int64)
    digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape"))
    digest.update(sizes.tobytes())
    for name, size in zip(names, sizes.tolist(), strict=True):
        if (name or path.name).lower().endswith(TEXTS) and size <= TEXT_BYTES and (len(names) < 1000 or chosen):
            digest.update((path / name if name else path).read_bytes())
    return Snapshot(names, sizes, times, digest.hexdigest(), path)


def _require(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise UserError(f"{path} is listed, but cannot be read ({error.strerror}); correct the list") from error


def _facts(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except OSError:
        return None  # a link that leads nowhere; the readers name it where it counts


def _identity(now: Snapshot, part: str, store: Path, verify: bool) -> str:
    if verify:
        content = _digest(now, range(len(now.names)))
        return hashlib.sha256(f"verified {now.structure} {content}".encode()).hexdigest()[:16]
    slug = part.replace("/", "-")
    sample = None
    for manifest in sorted(store.glob(f"{slug}-*.npz")):
        try:
            with np.load(manifest, allow_pickle=False) as kept:
                structure, identity, contents, times = (
                    str(kept["structure"]),
                    str(kept["identity"]),
                    str(kept["sample"]),
                    kept["times"],
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            continue  # half a manifest is none
        if structure != now.structure or times.shape[-1] != len(now.times):
            continue
        if any(np.array_equal(row, now.times) for row in np.atleast_2d(times)):
            return identity
        if len(now.times) and not any((row == now.times).any() for row in np.atleast_2d(times)):
            sample = sample or _digest(now, _sampled(len(now.names)))
            if sample == contents:  # a copy, or another mount
                _write(manifest, structure, identity, contents, np.concatenate([np.atleast_2d(times), now.times[None]]))
                return identity
    sample = sample or _digest(now, _sampled(len(now.names)))
    identity = hashlib.sha256(
        f"{now.structure} {hashlib.sha256(now.times.tobytes()).hexdigest()}".encode()
    ).hexdigest()[:16]
    store.mkdir(parents=True, exist_ok=True)
    _write(store / f"{slug}-{identity}.npz", now.structure, identity, sample, now.times[None])
    return identity


def _sampled(count: int) -> list[int]:
    """Evenly spaced indices."""
    return sorted({index * count // SAMPLE for index in range(SAMPLE)} if count > SAMPLE else set(range(count)))


def _digest(now: Snapshot, indices: list[int] | range) -> str:
    """Of the contents of some files, in order."""

    def content(index: int) -> bytes:
        with (now.root / now.names[index]).open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()

    with ThreadPoolExecutor(THREADS) as pool:
        return hashlib.sha256(b"".join(pool.map(content, indices))).hexdigest()


def _write(path: Path, structure: str, identity: str, sample: str, times: np.ndarray) -> None:
    with atomic_write(path) as written:
        np.savez_compressed(written, structure=structure, identity=identity, sample=sample, times=times)
