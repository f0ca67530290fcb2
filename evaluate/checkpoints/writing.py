"""Writes an encoder file and its certificate: both, or neither."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evaluate import encoder
from evaluate.checkpoints.certificate import Certificate
from evaluate.encoder.model import Encoder
from evaluate.encoder.spec import EncoderSpec
from evaluate.runtime.errors import UserError, unwritten
from results.atomic import atomic_write

Checks = dict[str, dict[str, Any]]


def write(
    out: Path,
    state: dict[str, Any],
    spec: EncoderSpec,
    compare: Callable[[Encoder], Checks],
    facts: dict[str, Any],
    what: str,
) -> Certificate:
    """Saves under a temporary name, reads that file back, certifies it, and only then gives it its name."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as written:
            encoder.save(written, state, spec)
            state.clear()  # half the memory: what is certified is the file, not what was in memory
            built = encoder.load(written, _uncertified=True)
            checks = compare(built)
            overflow = next(
                (check["reason"] for check in checks.values() if "not finite" in check.get("reason", "")), ""
            )
            if overflow:
                raise UserError(f"{what} was not converted: {overflow}; take a checkpoint from before the run diverged")
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
            if not any(check.get("passed") for check in checks.values()):
                reasons = "; ".join(dict.fromkeys(check["skipped"] for check in checks.values()))
                raise UserError(f"{what} was not converted: nothing could be compared ({reasons})")
            certificate_path = encoder.certificate_path(out)
            certificate_path.unlink(missing_ok=True)  # never an old certificate beside a new encoder
        made = Certificate(
            True, built.fingerprint, spec.source_format, spec.branch, *spec.source_digests, checks=checks, **facts
        )
        made.write(certificate_path)
    except OSError as error:
        raise unwritten(out, error) from error
    return made


def copy(source: Path, out: Path) -> Path:
    """Copies a certified encoder file and its certificate; returns ``out``. Raises UserError where it has no room."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        encoder.certificate_path(out).unlink(missing_ok=True)  # never an old certificate beside a new encoder
        for own, theirs in ((out, source), (encoder.certificate_path(out), encoder.certificate_path(source))):
            with atomic_write(own) as written:
                shutil.copyfile(theirs, written)
    except OSError as error:
        raise unwritten(out, error) from error
    return out
