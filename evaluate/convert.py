"""Converts a checkpoint of any known format into the canonical encoder file, and certifies it by numbers.

    python -m evaluate.convert FILE [--out encoder.safetensors] [--branch target] [--format mae] [--inspect] [--json]
    python -m evaluate.convert ENCODER_OR_CKPT --to mae|timm|hf|torchvision [--out FILE]     writes it back out
    (evaluate/checkpoints/export.py)

Exit status 0: written and certified; 2: one sentence says what is wrong, and nothing was written.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from evaluate import encoder
from evaluate.checkpoints import export, formats
from evaluate.checkpoints.conversion import convert, default_out, ensure, inspect
from evaluate.checkpoints.files import weights_file
from evaluate.runtime.errors import UserError

__all__ = ["convert", "ensure", "inspect"]


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluate.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="a checkpoint file, or a Hugging Face folder")
    parser.add_argument(
        "--out", type=Path, help="the encoder file to write (default: NAME.encoder.safetensors beside the checkpoint)"
    )
    parser.add_argument(
        "--branch", help="which encoder of the file (default: the one that the method's own evaluation takes)"
    )
    parser.add_argument(
        "--format",
        help=f"one of {', '.join(known.name for known in formats.FORMATS)} (default: recognized by its keys)",
    )
    parser.add_argument(
        "--to",
        choices=("mae", "timm", "hf", "torchvision"),
        help="write the encoder in this format instead of the canonical one",
    )
    parser.add_argument("--inspect", action="store_true", help="say what the file holds and write nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    try:
        if arguments.inspect:
            print(json.dumps(inspect(arguments.file), indent=1))
            return 0
        if arguments.to:
            return _write_out(arguments)
        out = arguments.out or default_out(arguments.file)
        made = convert(arguments.file, out, arguments.branch, arguments.format)
    except UserError as error:
        print(f"evaluate.convert: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        spec = json.loads(encoder.read_spec(out).to_json())
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


def _write_out(arguments: argparse.Namespace) -> int:
    """``--to``: an encoder file is taken with its certificate, any other checkpoint is converted and certified on the
    way."""
    with TemporaryDirectory() as folder:
        path = weights_file(arguments.file)
        if encoder.read_spec(path) is None:
            path = Path(folder) / "encoder.safetensors"
            convert(arguments.file, path, arguments.branch, arguments.format)
        loaded = encoder.load(path)
    out = arguments.out or export.default_out(arguments.file, arguments.to)
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
    sys.exit(main())
