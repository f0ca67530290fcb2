"""The rows of a table: what each is called, and the folder that belongs to it and to no other encoder."""

import functools
import glob
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from evaluate.checkpoints import named
from evaluate.checkpoints.files import WEIGHT_FILES
from evaluate.encoder import certificate_path
from evaluate.runtime.errors import UserError
from evaluate.runtime.locks import exclusive
from results.atomic import atomic_write, sha256

ENCODER, SOURCE, LOCK = "encoder.safetensors", "source.json", ".lock"
TAKEN = ("records", "logs", "data", "manifests", "pretrain", "calibrate", "status")  # folders of OUT that are no row's
MAX_NAME = 100
ENDINGS = (".pth", ".pt", ".safetensors", ".ckpt", ".bin", ".pkl", ".tar")  # of checkpoints in a folder
NEVER_TELLING = ("checkpoint",)  # what every pretraining calls its file: the folder's name serves
SELDOM_TELLING = ("model", "pytorch_model", "encoder", "weights", "last", "latest", "best", "open_clip_pytorch_model")


def check_name(name: str) -> str:
    """The name of a row. Raises UserError for one that is no single part of a path, or that OUT uses otherwise."""
    if name in TAKEN:
        raise UserError(
            f"a row cannot be called {name!r}, because OUT/{name} is used for something else; give the checkpoint "
            f"another name: --ckpt NAME=FILE"
        )
    if (
        not name
        or name.startswith((".", "-"))
        or len(name.encode()) > MAX_NAME
        or not name.isprintable()
        or re.search(r"[/\\]", name)
    ):
        raise UserError(
            f"{name!r} cannot be the name of a row: a name must be printable, must have no slash, must not begin with "
            f". or - and must have at most {MAX_NAME} bytes; give another: --ckpt NAME=FILE"
        )
    return name


def named_checkpoints(arguments: Iterable[str]) -> dict[str, Path]:
    """Checkpoints by the name of their row, from ``FILE``, ``NAME=FILE``, a folder of checkpoints or a pattern; a path
    that exists as it stands is a file. FILE may be what ``evaluate.checkpoints.named`` reads.

    The files of a folder or of a pattern are in the order of the numbers in their names, as the epochs of a run.

    Default names are the shortest that tell the files apart: their stem, that of their folder where the stem says
    nothing or others have it too, and so on.

    Raises:
        UserError: an absent file, two rows of one name, or a name that cannot be one.
    """
    rows: dict[str, Path] = {}
    unnamed: list[Path] = []
    for text in itertools.chain.from_iterable(map(_files, arguments)):
        name, separator, file = text.partition("=")
        if os.path.exists(text) or not separator:
            named.check(text)
            unnamed.append(Path(text))
            continue
        path = Path(file)
        named.check(path)
        if check_name(name) in rows:
            raise UserError(f"two checkpoints are called {name!r}; give each its own name")
        rows[name] = path
    for name, path in zip(_default_names(unnamed), unnamed, strict=True):
        if check_name(name) in rows:
            raise UserError(f"two checkpoints are called {name!r} ({rows[name]}, {path}); name them: --ckpt NAME=FILE")
        rows[name] = path
    return {name: named.absolute(path) for name, path in rows.items()}


def _files(text: str) -> list[str]:
    """An argument, or the files that it stands for: those of a folder that is no checkpoint itself, or of a pattern.

    Raises UserError where there are none.
    """
    path = Path(text)
    if path.is_dir() and not any((path / name).is_file() for name in WEIGHT_FILES):
        files = [file for file in path.iterdir() if file.suffix in ENDINGS]
        names = {file.name for file in files}
        older = {name for name in names if re.sub(r"\.\d+(\.\w+)$", r"\1", name) in names - {name}}
        found = [str(file) for file in files if file.name not in older]  # checkpoint.1.pth: what checkpoint.pth was
        if not found:
            raise UserError(f"the folder {text} holds no checkpoint ({', '.join(ENDINGS)}); give the path of a file")
    elif any(sign in text for sign in "*?[") and not os.path.exists(text) and "=" not in text:
        found = glob.glob(text)
        if not found:
            raise UserError(f"no file matches {text}; give the path of a checkpoint")
    else:
        return [text]
    return sorted(found, key=lambda file: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file)])


def _default_names(paths: Sequence[Path]) -> list[str]:
    """The shortest names that tell the paths apart; the same path given twice keeps one name twice."""
    for generic in (NEVER_TELLING, (*NEVER_TELLING, *SELDOM_TELLING)):
        parts = [_telling_parts(path, generic) for path in paths]
        for count in range(1, max(map(len, parts), default=0) + 1):
            names = ["-".join(part[-count:]) for part in parts]
            if len(set(names)) == len({os.path.abspath(path) for path in paths}):
                return names
            if generic == NEVER_TELLING:
                break
    return ["-".join(_telling_parts(path, NEVER_TELLING)[-1:]) for path in paths]


def _telling_parts(path: Path, generic: Sequence[str]) -> list[str]:
    """The parts of a path that can name a row, the telling last: a generic stem gives way to its folder's name."""
    if given := named.parse(path):
        return [given.row]
    absolute = Path(os.path.abspath(path))
    stem = absolute.name if absolute.is_dir() else absolute.name.removesuffix(absolute.suffix)
    stem = stem.removesuffix(".encoder")
    above = list(absolute.parent.parts[1:])
    matched = re.fullmatch(rf"({'|'.join(generic)})[-_.]?(\d*)", stem)
    if matched and above:
        return [*above[:-1], "-".join(part for part in (above[-1], matched[2]) if part)]
    return [*above, stem]


def source_id(checkpoint: Path, options: Mapping[str, object]) -> str:
    """What an encoder is made from, and how: 16 hexadecimal digits of the source's contents and of the options."""
    made_from = [*named.digests(checkpoint), dict(options)]
    if given := named.parse(checkpoint):
        made_from.append(given.label)
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


def claim_folder(out: Path, name: str, source: str) -> Path:
    """The folder of a row below OUT: ``OUT/NAME`` for the first source of that name, another for each other one."""
    for folder in (out / name, out / f"{name}-{source[:8]}"):
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / LOCK, f"the row {folder.name}"):
            bound = _read(folder / SOURCE).get("id")
            if bound is None:
                with atomic_write(folder / SOURCE) as written:
                    written.write_text(json.dumps({"id": source}))
                return folder
        if bound == source:
            return folder
    raise UserError(f"{out / f'{name}-{source[:8]}'} belongs to another checkpoint; choose another --out")


def folder_of_encoder(out: Path, checkpoint: Path) -> Path | None:
    """The folder of the row whose own encoder file this is, or None for any other file."""
    folder = Path(os.path.abspath(checkpoint)).parent
    own = folder.parent == Path(os.path.abspath(out)) and checkpoint.name == ENCODER and (folder / SOURCE).is_file()
    return folder if own else None


def seal_encoder(folder: Path) -> None:
    """Keeps the digest of a row's encoder file, so that a later run sees whether it is still that file."""
    known = {**_read(folder / SOURCE), "encoder_sha256": sha256(folder / ENCODER)}
    with atomic_write(folder / SOURCE) as written:
        written.write_text(json.dumps(known))


def fingerprint_of(folder: Path) -> str | None:
    """The fingerprint of a row's encoder where it and its certificate are whole; None where it must be made (again)."""
    encoder, certificate = folder / ENCODER, _read(certificate_path(folder / ENCODER))
    fingerprint, passed = certificate.get("fingerprint"), certificate.get("passed")
    if not (encoder.is_file() and passed is True and isinstance(fingerprint, str) and fingerprint):
        return None
    return fingerprint if _read(folder / SOURCE).get("encoder_sha256") == _digest(encoder) else None


def _digest(path: Path) -> str:
    """SHA-256 of a file, which is read again only when it has become another: each task of a row asks for it."""
    about = path.stat()
    return _digest_of(path, about.st_ino, about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=10_000)
def _digest_of(path: Path, *_: int) -> str:
    return sha256(path)


def _read(path: Path) -> dict[str, object]:
    """A JSON object; {} for what is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
