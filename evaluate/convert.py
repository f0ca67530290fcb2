"""Converts a checkpoint of any known format into the canonical encoder file, and certifies it by numbers.

    python -m evaluate.convert FILE [--out encoder.safetensors] [--branch target] [--format mae] [--inspect] [--json]
    python -m evaluate.convert ENCODER_OR_CKPT --to mae|timm|hf|torchvision [--out FILE]     writes it back out (evaluate/export.py)

Exit status 0: written and certified; 2: one sentence says what is wrong, and nothing was written.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from evaluate import certificate, encoder, formats, semantics, sizes
from evaluate.certificate import Certificate
from evaluate.checkpoint import Checkpoint, digests, read, weights_file
from evaluate.encoder.spec import EncoderSpec
from evaluate.formats.table import Format, rename
from evaluate.reference import Semantics
from evaluate.runtime.errors import UserError
from results.atomic import whole


def convert(path: Path | str, out: Path | str, branch: str | None = None, format: str | None = None) -> Certificate:
    """Writes ``out`` and its certificate beside it, both or neither.

    Args:
        path: a checkpoint file, or a Hugging Face folder.
        branch: for example "target"; None: the one that the method's own evaluation takes.
        format: a name of ``evaluate.formats.FORMATS``; None: recognised by its keys.

    Raises:
        UserError: one sentence on what is wrong with the file.
    """
    path, out = Path(path), Path(out)
    checkpoint = read(path)
    known, group = formats.recognise(checkpoint, format)
    name, chosen = formats.choose_branch(known, checkpoint, group, branch)
    where = chosen.group or group
    source = checkpoint.groups[where]
    what = f"{checkpoint.path} ({known.name})"
    state, used, dropped = rename(source, chosen.rows, what)
    if not used:
        raise UserError(f"{what} holds no tensor of branch {name!r}; choose another with --branch")
    sizes.check_values(state, what)
    state = known.fix(state) if known.fix else state
    spec = _spec(state, known, checkpoint, name, what)
    state = sizes.complete(state, spec, what)
    place = f"at {where!r}" if where else "at the top level"
    facts = {
        "recognised": f"{known.name}: {known.description}, state dict {place}",
        "used": used,
        "dropped": dropped,
        "other_entries": sorted({*checkpoint.entries, *checkpoint.groups} - {where, ""}),
        "notes": [*known.notes, *(f"{entry} holds objects that were not read" for entry in checkpoint.unread)],
    }
    meant = Semantics(spec.num_heads, spec.layer_norm_eps, spec.activation, spec.batch_norm_eps)
    return _write(out, state, spec, lambda built: certificate.compare(source, chosen.roles, meant, built), facts, what)


def _write(out: Path, state: dict[str, Any], spec: EncoderSpec, compare: Any, facts: dict[str, Any], what: str) -> Certificate:
    """Saves under a temporary name, reads that file back, certifies it, and only then gives it its name."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole(out) as written:
            encoder.save(written, state, spec)
            state.clear()  # half the memory: what is certified is the file, not what was in memory
            built = encoder.load(written, _uncertified=True)
            checks = compare(built)
            failed = ", ".join(f"{name} by {check['difference']:.1e}" for name, check in checks.items() if not check.get("passed", True))
            if failed:
                raise UserError(f"{what} was not converted: the encoder's features differ from the source's own ({failed}); please report the file")
            certificate_path = encoder.certificate_path(out)
            certificate_path.unlink(missing_ok=True)  # never an old certificate beside a new encoder
        made = Certificate(True, built.fingerprint, spec.source_format, spec.branch, *spec.source_digests, checks=checks, **facts)
        made.write(certificate_path)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another place with --out") from error
    return made


def _spec(state: dict[str, Any], known: Format, checkpoint: Checkpoint, branch: str, what: str) -> EncoderSpec:
    """The spec from the tensors, the format, and what the file says of itself (which wins)."""
    settings = checkpoint.entries.get("config") if isinstance(checkpoint.entries.get("config"), dict) else {}
    epoch = checkpoint.entries.get("epoch")
    given: dict[str, Any] = {
        "mean": known.normalisation[0],
        "std": known.normalisation[1],
        "layer_norm_eps": known.layer_norm_eps,
        "activation": known.activation,
        "pooling": known.pooling,
        "interpolation": known.interpolation,
        "source_format": known.name,
        "branch": branch,
        "epoch": epoch if isinstance(epoch, int) and not isinstance(epoch, bool) else None,
        "source_sha256": checkpoint.sha256,
        "source_json_sha256": checkpoint.json_sha256,
        **(known.adjust(checkpoint) if known.adjust else {}),
    }
    heads = settings.get("num_heads", checkpoint.settings.get("num_heads"))
    if known.family == "vit" and ("num_heads" in settings or isinstance(heads, int)):  # args may mean another model's by it
        given["num_heads"] = heads
    given.update({name: settings[name] for name in ("mean", "std") if isinstance(settings.get(name), list)})
    given = semantics.checked({**given, **semantics.obeyed(checkpoint.said, known.family)}, f"{what}: the file")
    if known.family == "resnet":
        return sizes.resnet(state, given, what)
    spec = sizes.vit(state, given, known.num_heads, known.bare_positions, what)
    for name in ("img_size", "patch_size", "embed_dim", "depth"):
        if isinstance(settings.get(name), int) and settings[name] != getattr(spec, name):
            raise UserError(f"{what}: its config says {name} {settings[name]}, its tensors {getattr(spec, name)}; the file is inconsistent")
    return spec


def ensure(path: Path | str, out: Path | str) -> Path:
    """An encoder file with a passing certificate: ``path`` itself if it is one, else its conversion at ``out``, made if need be.

    Raises:
        UserError: as ``convert`` and ``evaluate.encoder.file.load`` do.
    """
    path, out = Path(path), Path(out)
    source = weights_file(path)
    if encoder.read_spec(source) is not None:
        encoder.load(source)
        return source
    if out.is_file() and (spec := encoder.read_spec(out)) is not None and spec.source_digests == digests(source):
        try:
            encoder.load(out)
            return out
        except UserError as error:
            print(f"{out} is made again: {error}", file=sys.stderr)
    convert(path, out)
    return out


def inspect(path: Path | str) -> dict[str, Any]:
    """What a file holds, without converting it: groups, prefixes, entries, and the formats that fit."""
    checkpoint = read(Path(path))
    fitting = [known for known in formats.FORMATS if known.group_in(checkpoint) is not None]
    return {
        "file": str(checkpoint.path),
        "sha256": checkpoint.sha256,
        "formats": {known.name: {"description": known.description, "branches": list(known.branches)} for known in fitting},
        "state_dicts": {
            group: {"tensors": len(state), "values": sum(tensor.numel() for tensor in state.values()), "prefixes": _prefixes(state)}
            for group, state in checkpoint.groups.items()
        },
        "entries": checkpoint.entries,
        "not_read": list(checkpoint.unread),
    }


def _prefixes(state: dict[str, Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for key in state:
        prefix = key.split(".")[0]
        counts[prefix] = counts.get(prefix, 0) + 1
    return counts


def default_out(path: Path) -> Path:
    """``NAME.encoder.safetensors`` beside the checkpoint."""
    source = weights_file(path)
    return source.with_name(f"{source.stem}.encoder.safetensors")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m evaluate.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a checkpoint file, or a Hugging Face folder")
    parser.add_argument("--out", type=Path, help="the encoder file to write (default: NAME.encoder.safetensors beside the checkpoint)")
    parser.add_argument("--branch", help="which encoder of the file (default: the one that the method's own evaluation takes)")
    parser.add_argument("--format", help=f"one of {', '.join(known.name for known in formats.FORMATS)} (default: recognised by its keys)")
    parser.add_argument("--to", choices=("mae", "timm", "hf", "torchvision"), help="write the encoder in this format instead of the canonical one")
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
        print(json.dumps({"encoder": str(out), "certificate_file": str(encoder.certificate_path(out)), "spec": spec, "certificate": made.to_dict()}, indent=1))
    else:
        print(f"{made}\nencoder: {out}")
    return 0


def _write_out(arguments: argparse.Namespace) -> int:
    """``--to``: an encoder file is taken with its certificate, any other checkpoint is converted and certified on the way."""
    from evaluate import export

    with TemporaryDirectory() as folder:
        path = weights_file(arguments.file)
        if encoder.read_spec(path) is None:
            path = Path(folder) / "encoder.safetensors"
            convert(arguments.file, path, arguments.branch, arguments.format)
        loaded = encoder.load(path)
    out = arguments.out or export.default_out(arguments.file, arguments.to)
    notes = export.export(loaded, arguments.to, out)
    if arguments.json:
        print(json.dumps({"file": str(out), "format": arguments.to, "fingerprint": loaded.fingerprint, "notes": notes}, indent=1))
    else:
        print("\n".join([f"written as {arguments.to}: {out}", "read back: every tensor and setting equal", *(f"note: {note}" for note in notes)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
