"""What lies in an output folder and no row of the table needs: caches and states, listed with their sizes and removed
when told to.
"""

import shutil
from pathlib import Path

from evaluate.runtime.cli import output_folder
from results.atomic import is_left_over

KINDS = {  # pattern below OUT: what it is, and what it would cost to lack it
    "*/features": "features of the frozen tasks; another task on the same encoder computes them again",
    "*/*/predictions": "predictions image by image; a task that runs again computes them again",
    "*/*/training_state.pt": "states of trainings that have not ended; such a task begins anew",
    "*/*/dense_training_state": "states of dense trainings that have not ended; such a task begins anew",
    "*/*/work": "scratch files of dense tasks",
    "*/.*.part": "what killed processes left half-written",
    "*/*/.*.part": "what killed processes left half-written",
}


def main(out: Path, remove: bool) -> int:
    """Prints a line for each kind of thing that could go, or removes it; the exit status."""
    output_folder(out)
    total = 0
    for pattern, meaning in KINDS.items():
        paths = [
            path
            for path in out.glob(pattern)
            if not path.is_symlink() and (path.suffix != ".part" or is_left_over(path))
        ]
        size = sum(map(_size, paths))
        total += size
        if paths:
            print(f"{size / 1e6:10.1f} MB  {out.name}/{pattern} ({len(paths)}): {meaning}")
        for path in paths if remove else []:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(
        f"{total / 1e6:10.1f} MB  {'removed' if remove else 'in all; --yes removes it'}. Records, tables, encoders "
        f"and classifiers stay."
    )
    return 0


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    return sum(file.stat().st_size for file in files)
