"""From a checkpoint of any known format to the canonical encoder file and its certificate."""

import sys
from pathlib import Path
from typing import Any

from evaluate import encoder
from evaluate.checkpoints import architecture, certificate, formats
from evaluate.checkpoints.certificate import Certificate
from evaluate.checkpoints.files import digests, weights_file
from evaluate.checkpoints.formats.table import rename
from evaluate.checkpoints.reader import read
from evaluate.checkpoints.reference import Semantics
from evaluate.encoder.spec import EncoderSpec
from evaluate.runtime.errors import UserError
from results.atomic import atomic_write


def convert(path: Path | str, out: Path | str, branch: str | None = None, format: str | None = None) -> Certificate:
    """Writes ``out`` and its certificate beside it, both or neither.

    Args:
        path: a checkpoint file, or a Hugging Face folder.
        branch: for example "target"; None: the one that the method's own evaluation takes.
        format: a name of ``evaluate.checkpoints.formats.FORMATS``; None: recognized by its keys.

    Raises:
        UserError: one sentence on what is wrong with the file.
    """
    path, out = Path(path), Path(out)
    checkpoint = read(path)
    known, group = formats.recognize(checkpoint, format)
    name, chosen = formats.choose_branch(known, checkpoint, group, branch)
    where = chosen.state_dict_path or group
    source = checkpoint.state_dicts[where]
    what = f"{checkpoint.path} ({known.name})"
    state, used, dropped = rename(source, chosen.rows, what)
    if not used:
        raise UserError(f"{what} holds no tensor of branch {name!r}; choose another with --branch")
    architecture.check_values(state, what)
    state = known.transform(state) if known.transform else state
    spec = architecture.spec_of(state, known, checkpoint, name, what)
    state = architecture.complete(state, spec, what)
    place = f"at {where!r}" if where else "at the top level"
    facts = {
        "recognized": f"{known.name}: {known.description}, state dict {place}",
        "used": used,
        "dropped": dropped,
        "other_entries": sorted({*checkpoint.top_level, *checkpoint.state_dicts} - {where, ""}),
        "notes": [*known.notes, *(f"{entry} holds objects that were not read" for entry in checkpoint.not_restored)],
    }
    meant = Semantics(spec.num_heads, spec.layer_norm_eps, spec.activation, spec.batch_norm_eps)
    return _write(out, state, spec, lambda built: certificate.compare(source, chosen.roles, meant, built), facts, what)


def _write(
    out: Path, state: dict[str, Any], spec: EncoderSpec, compare: Any, facts: dict[str, Any], what: str
) -> Certificate:
    """Saves under a temporary name, reads that file back, certifies it, and only then gives it its name."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as written:
            encoder.save(written, state, spec)
            state.clear()  # half the memory: what is certified is the file, not what was in memory
            built = encoder.load(written, _uncertified=True)
            checks = compare(built)
            failed = ", ".join(
                f"{name} by {check['difference']:.1e}"
                for name, check in checks.items()
                if not check.get("passed", True)
            )
            if failed:
                raise UserError(
                    f"{what} was not converted: the encoder's features differ from the source's own ({failed}); "
                    f"please report the file"
                )
            certificate_path = encoder.certificate_path(out)
            certificate_path.unlink(missing_ok=True)  # never an old certificate beside a new encoder
        made = Certificate(
            True, built.fingerprint, spec.source_format, spec.branch, *spec.source_digests, checks=checks, **facts
        )
        made.write(certificate_path)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another place with --out") from error
    return made


def ensure(path: Path | str, out: Path | str) -> Path:
    """An encoder file with a passing certificate: ``path`` itself if it is one, else its conversion at ``out``, made if
    need be.

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
    fitting = [known for known in formats.FORMATS if known.path_in(checkpoint) is not None]
    return {
        "file": str(checkpoint.path),
        "sha256": checkpoint.sha256,
        "formats": {
            known.name: {"description": known.description, "branches": list(known.branches)} for known in fitting
        },
        "state_dicts": {
            group: {
                "tensors": len(state),
                "values": sum(tensor.numel() for tensor in state.values()),
                "prefixes": _prefixes(state),
            }
            for group, state in checkpoint.state_dicts.items()
        },
        "entries": checkpoint.top_level,
        "not_read": list(checkpoint.not_restored),
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
