"""Reads a pickle without running anything in it: tensors are rebuilt, everything else becomes a placeholder."""

import argparse
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from evaluate.runtime.errors import UserError

# Objects of these packages are replaced by placeholders; a file that names anything else is refused.
PLACEHOLDER_PACKAGES = (
    "numpy",
    "_codecs",
    "collections",
    "typing",
    "pathlib",
    "omegaconf",
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "yacs",
    "mmengine",
    "mmcv",
    "fvcore",
    "classy_vision",
    "vissl",
)
DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Placeholder:
    """A placeholder for an object that was not restored; whatever the pickle does to it has no effect."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Rebuilds tensors from an archive's storages; names of any other callable or type become ``Placeholder``."""

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self.archive, self.root = archive, root
        self.storages: dict[str, torch.Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("argparse", "Namespace"): argparse.Namespace,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if module == "torch" and name in DTYPES:
            return name
        return known.get((module, name), Placeholder)

    def persistent_load(self, pid: Any) -> torch.Tensor:
        _, kind, key, _, count = pid
        if key not in self.storages:
            entry = self.archive.getinfo(f"{self.root}data/{key}")
            dtype = DTYPES[kind if isinstance(kind, str) else kind.__name__]
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < count * dtype.itemsize:
                raise pickle.UnpicklingError(f"storage {key} is not {count} values of {dtype}")
            data = bytearray(self.archive.read(entry))
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _rebuild(
    storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> torch.Tensor:
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _read_with_placeholders(path: Path, script: bool) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            member = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            with archive.open(member) as file:
                return _Unpickler(file, archive, member.removesuffix("data.pkl")).load()
    except Exception as error:  # as above: whatever a damaged archive makes the unpickler raise is a fault of the file
        remedy = "; save its state_dict() with torch.save instead" if script else ""
        raise UserError(f"{path} cannot be read without running code from it ({_first_line(error)}){remedy}") from error


def _flat(module: Any, prefix: str = "", depth: int = 0) -> dict[str, torch.Tensor]:
    """The state dict of a TorchScript module read as placeholders: its attributes are tensors and further modules."""
    state = getattr(module, "state", None)
    tensors: dict[str, torch.Tensor] = {}
    if isinstance(state, dict) and depth < 32:
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[prefix + str(name)] = value
            elif isinstance(value, Placeholder):
                tensors.update(_flat(value, f"{prefix}{name}.", depth + 1))
    return tensors


def _first_line(error: BaseException) -> str:
    lines: Iterator[str] = iter(str(error).splitlines())
    return f"{type(error).__name__}: {next(lines, '')[:160]}".rstrip(": ")
