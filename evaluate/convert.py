"""Converts a checkpoint of any known format into the canonical encoder file, and checks it numerically.

    python -m evaluate.convert FILE [--out encoder.safetensors] [--branch target] [--format mae] [--prefix encoder.]
    python -m evaluate.convert FILE --assume num_heads=12 --normalize imagenet     facts that no file gives
    python -m evaluate.convert FILE --inspect [--json]                             what it is, and whether it converts
    python -m evaluate.convert ENCODER_OR_CKPT --to mae|timm|hf|torchvision [--out FILE]     writes it back out

Exit status 0: written and certified; 2: one sentence says what is wrong, and nothing was written.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from evaluate import encoder
from evaluate.checkpoints import command_line, export, named, writing
from evaluate.checkpoints.certificate import Certificate
from evaluate.checkpoints.conversion import convert, default_out, ensure, inspect, inspection
from evaluate.runtime.errors import UserError
from evaluate.runtime.locks import exclusive
from evaluate.runtime.processes import end_with_parent
from results.ending import leave

__all__ = ["convert", "ensure", "inspect"]


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluate.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, nargs="?", help="a checkpoint file, or a folder of Hugging Face or timm")
    parser.add_argument("--ckpt", type=Path, help="the same as FILE")
    parser.add_argument(
        "--out", type=Path, help="the encoder file to write (default: NAME.encoder.safetensors beside the checkpoint)"
    )
    command_line.add_options(parser)
    parser.add_argument(
        "--to",
        choices=("mae", "timm", "hf", "torchvision"),
        help="write the encoder in this format instead of the canonical one",
    )
    parser.add_argument("--inspect", action="store_true", help="print what the file holds and write nothing")
    parser.add_argument("--json", action="store_true", help="with --inspect: print JSON")
    parser.add_argument(
        "--if-needed", action="store_true", help="do nothing if OUT already holds the result of this conversion"
    )
    arguments = parser.parse_args(argv)
    if (arguments.file is None) == (arguments.ckpt is None):
        parser.error("give one checkpoint, as FILE or as --ckpt FILE")
    file = Path(named.with_class(str(arguments.file or arguments.ckpt), arguments.encoder))
    end_with_parent()
    try:
        options = command_line.options(arguments)
        if arguments.inspect:
            found = inspect(file, **options)
            print(json.dumps(found, indent=1) if arguments.json else inspection(found))
            return 0
        if arguments.to:
            return _write_out(arguments, file, options)
        out = arguments.out or default_out(file)
        if arguments.if_needed:
            with exclusive(out.with_name(".lock"), f"converting {file}"):
                path = ensure(file, out, **options)
                if path.resolve() != out.resolve():  # an encoder file already: a row has its own
                    path = writing.copy(path, out)
            print(f"{Certificate.read(encoder.certificate_path(path))}\nencoder: {path}")
            return 0
        made = convert(file, out, **options)
    except UserError as error:
        print(f"evaluate.convert: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        written = encoder.read_spec(out)
        assert written is not None  # the conversion has just written it
        spec = json.loads(written.to_json())
        print(
            json.dumps(
                {
                    "encoder": str(out),
                    "certificate_file": str(encoder.certificate_path(out)),
                    "spec": spec,
                    "certificate": made.to_dict(),
                },
                indent=1,
            )
        )
    else:
        print(f"{made}\nencoder: {out}")
    return 0


def _write_out(arguments: argparse.Namespace, file: Path, options: dict[str, Any]) -> int:
    """``--to``: an encoder file is taken with its certificate, any other checkpoint is converted and certified on the
    way."""
    with TemporaryDirectory() as folder:
        path = named.weights_of(file)
        if path is None or encoder.read_spec(path) is None:
            path = Path(folder) / "encoder.safetensors"
            convert(file, path, **options)
        loaded = encoder.load(path)
    out = arguments.out or export.default_out(file, arguments.to)
    notes = export.export(loaded, arguments.to, out)
    if arguments.json:
        print(
            json.dumps(
                {"file": str(out), "format": arguments.to, "fingerprint": loaded.fingerprint, "notes": notes}, indent=1
            )
        )
    else:
        print(
            "\n".join(
                [
                    f"written as {arguments.to}: {out}",
                    "read back: every tensor and setting equal",
                    *(f"note: {note}" for note in notes),
                ]
            )
        )
    return 0


if __name__ == "__main__":
    leave(main)
