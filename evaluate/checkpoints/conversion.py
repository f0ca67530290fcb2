"""From a checkpoint of any known format to the canonical encoder file and its certificate."""

import dataclasses
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from evaluate import encoder
from evaluate.checkpoints import architecture, certificate, formats, named, whole_models, writing
from evaluate.checkpoints.certificate import Certificate
from evaluate.checkpoints.fields import Described, Options, options_of, spec_of
from evaluate.checkpoints.formats import Recognized
from evaluate.checkpoints.formats.table import Branch, rename
from evaluate.checkpoints.reader import Checkpoint, read
from evaluate.checkpoints.reference import Semantics
from evaluate.encoder import own
from evaluate.encoder.spec import EncoderSpec, describe_assumption
from evaluate.runtime.errors import UserError

MAX_ATTENTION = 4 * 2**30  # bytes of one block's attention weights in the certificate's forward pass


@dataclass(frozen=True)
class Prepared:
    """A checkpoint read, recognized and described, before anything is computed or written."""

    recognized: Recognized
    """Its format and where its encoder stands."""
    branches: tuple[str, ...]
    """The encoders that the file holds."""
    path: str
    """Of the chosen branch's state dict."""
    chosen: Branch
    """The branch."""
    described: Described
    """The spec, and notes."""
    state: dict[str, Tensor]
    """The encoder's tensors in float32 under timm's names."""
    used: list[str]
    """Keys whose tensors these are."""
    dropped: list[str]
    """Keys that were left out on purpose."""


def convert(
    path: Path | str,
    out: Path | str,
    branch: str | None = None,
    format: str | None = None,
    assume: Mapping[str, Any] | None = None,
    normalize: str | None = None,
    prefix: str | None = None,
) -> Certificate:
    """Writes ``out`` and its certificate beside it, both or neither.

    Args:
        path: a checkpoint file, or a folder of Hugging Face's, timm's or open_clip's.
        branch: for example "target"; None: the one that the method's own evaluation takes.
        format: a name of ``evaluate.checkpoints.formats.FORMATS``; None: recognized by its keys.
        assume: fields of ``EncoderSpec`` that win over all that is said or assumed ({"num_heads": 12}).
        normalize: mean and std by name: imagenet, half, clip or none.
        prefix: of the encoder's keys, or the path of its state dict; None: found.

    Raises:
        UserError: one sentence on what is wrong with the file.
    """
    out = Path(out)
    options = options_of(branch, format, assume, normalize, prefix)
    checkpoint: Checkpoint | None
    if given := named.parse(path):
        checkpoint, found = _plain(given, options) if given.model else (None, None)
        if checkpoint is None or found is None:
            return whole_models.convert(given, out, options)
        ready = found
    else:
        checkpoint = read(Path(path))
        ready = prepare(checkpoint, options)
    known, spec = ready.recognized.known, ready.described.spec
    what = f"{checkpoint.path} ({known.name})"
    where = f"at {ready.path!r}" if ready.path else "at the top level"
    where += f" behind {ready.recognized.prefix!r}" if ready.recognized.prefix else ""
    if spec.family == "vit":
        tokens = (spec.img_size // spec.patch_size) ** 2
        if 4 * tokens**2 * spec.num_heads > MAX_ATTENTION:
            raise UserError(
                f"{what}: attention at the encoder's image size of {spec.img_size} px takes "
                f"{4 * tokens**2 * spec.num_heads / 2**30:.0f} GiB in each block; at most 4 GiB are supported"
            )
    notes = list(ready.described.notes)
    average = [name for name in ready.branches if name == "ema" and spec.branch != "ema"]
    notes += ["the file also holds an average of the weights; --branch ema takes it"] * len(average)
    notes += [spec.remark] if spec.remark else []
    notes += [f"{entry} holds objects that were not read" for entry in checkpoint.not_restored]
    facts = {
        "recognized": f"{known.name}: {known.description}, state dict {where}",
        "used": ready.used,
        "dropped": ready.dropped,
        "other_entries": sorted({*checkpoint.top_level, *checkpoint.state_dicts} - {ready.path, ""}),
        "assumed": spec.assumed,
        "notes": notes,
    }
    meant = Semantics(spec.num_heads, spec.layer_norm_eps, spec.activation, spec.batch_norm_eps)
    source = ready.recognized.checkpoint.state_dicts[ready.path]
    roles = ready.chosen.roles
    return writing.write(
        out, ready.state, spec, lambda built: certificate.compare(source, roles, meant, built), facts, what
    )


def _plain(given: named.Named, options: Options) -> tuple[Checkpoint, Prepared | None]:
    """A named model of timm's as a checkpoint of timm's hub; prepared where it is a ViT, BEiT or ResNet that the
    canonical encoder computes, else None. Raises UserError as ``convert``.
    """
    options = whole_models.with_name(options, given)
    checkpoint = whole_models.as_published(given, options)
    try:
        ready = prepare(checkpoint, dataclasses.replace(options, asked={}))
    except UserError:
        return checkpoint, None
    spec = dataclasses.replace(
        ready.described.spec, options=options.to_dict(), remark="" if given.weights else whole_models.RANDOM
    )
    return checkpoint, dataclasses.replace(ready, described=dataclasses.replace(ready.described, spec=spec))


def prepare(checkpoint: Checkpoint, options: Options) -> Prepared:
    """Everything about a conversion that can be said without computing a feature.

    Raises:
        UserError: as ``convert`` does.
    """
    asked = options.asked
    recognized = formats.recognize(checkpoint, asked.get("format"), asked.get("prefix"))
    known, view = recognized.known, recognized.checkpoint
    branches = formats.branches_in(known, view, recognized.path)
    name, chosen = formats.choose_branch(known, view, recognized.path, asked.get("branch"))
    path = chosen.state_dict_path if chosen.state_dict_path is not None else recognized.path
    source = view.state_dicts[path]
    what = f"{checkpoint.path} ({known.name})"
    state, used, dropped = rename(source, chosen.rows, what)
    if not used:
        raise UserError(f"{what} holds no tensor of branch {name!r}; choose another with --branch")
    declared = sum(tensor.numel() * 4 for tensor in state.values())
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()}
    if declared > 16 * sum(stored.values()) + 2**26:  # a few tensors may share their values, hundreds may not
        raise UserError(
            f"{what}: its tensors declare {declared / 2**30:.1f} GiB of values but store only "
            f"{sum(stored.values()) / 2**20:.1f} MiB; save each tensor with a storage of its own"
        )
    architecture.check_values(state, what)
    state = known.transform(state) if known.transform else state
    options = dataclasses.replace(options, branch=name)
    described = spec_of(state, source, known, view, options, what)
    state = architecture.complete(state, described.spec, what)
    dropped = [*dropped, *view.outside_prefix.get(path, ())]
    return Prepared(recognized, tuple(branches), path, chosen, described, state, used, dropped)


def ensure(
    path: Path | str,
    out: Path | str,
    branch: str | None = None,
    format: str | None = None,
    assume: Mapping[str, Any] | None = None,
    normalize: str | None = None,
    prefix: str | None = None,
) -> Path:
    """An encoder file with a passing certificate: ``path`` itself if it is one, else its conversion at ``out``, made if
    need be.

    One that was made from another file, or with other options, is made again; what a new one assumes is said on stderr.

    Raises:
        UserError: as ``convert`` and ``evaluate.encoder.file.load`` do.
    """
    path, out = Path(path), Path(out)
    options = options_of(branch, format, assume, normalize, prefix)
    given = named.parse(path)
    if given:
        options = whole_models.with_name(options, given)
        if given.code:
            own.allow(given.code)
    source = named.weights_of(path)
    if source and encoder.read_spec(source) is not None:
        if set(options.to_dict()) - {"branch"}:
            raise UserError(
                f"{source} is already an encoder file, which --assume and the like cannot change; convert its source "
                f"again with these options"
            )
        encoder.load(source)
        return source
    if is_current(path, out, options):
        try:
            encoder.load(out)
            return out
        except UserError as error:
            print(f"{out} is made again: {error}", file=sys.stderr)
    made = convert(path, out, branch, format, assume, normalize, prefix)
    for line in made.assumptions():
        print(f"{path}: {line}", file=sys.stderr)
    return out


def is_current(path: Path, out: Path, options: Options) -> bool:
    """Whether an encoder file was made from exactly this checkpoint, what lies beside it, and these options."""
    try:
        spec = encoder.read_spec(out) if out.is_file() else None
    except UserError:  # damaged, or from another version
        return False
    if spec is None or spec.source_digests != named.digests(path):
        return False
    return spec.options == dataclasses.replace(options, branch=spec.branch).to_dict()


def inspect(path: Path | str, **options: Any) -> dict[str, Any]:
    """What a file holds and whether it converts, without converting it; ``options`` as of ``convert``."""
    checkpoint = read(Path(path))
    fitting = [known for known in formats.FORMATS if known.path_in(checkpoint) is not None]
    try:
        ready = prepare(checkpoint, options_of(**options))
        spec = ready.described.spec
        found = {
            "converts": True,
            "why_not": "",
            "format": ready.recognized.known.name,
            "architecture": _architecture(spec),
            **{name: getattr(spec, field) for name, field in SIZES.items()},
            "where": "/".join(filter(None, (ready.path, ready.recognized.prefix))),
            "branches": list(ready.branches),
            "assumed": spec.assumed,
            "notes": ready.described.notes,
        }
    except UserError as error:
        guess = _guess(checkpoint)
        found = {
            "converts": False,
            "why_not": str(error),
            "format": fitting[0].name if len(fitting) == 1 else "",
            **guess,
        }
    return {
        "file": str(checkpoint.path),
        "sha256": checkpoint.sha256,
        **found,
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


SIZES = {"width": "embed_dim", "depth": "depth", "heads": "num_heads", "patch": "patch_size", "image": "img_size"}


def inspection(found: Mapping[str, Any]) -> str:
    """Ten plain lines of what ``inspect`` found."""
    held = ", ".join(
        f"{path or 'top level'} ({group['tensors']} tensors)" for path, group in list(found["state_dicts"].items())[:6]
    )
    assumed = (
        "; ".join(describe_assumption(name, entry) for name, entry in found.get("assumed", {}).items()) or "nothing"
    )
    sizes = {name: found.get(name) or "not told" for name in ("width", "depth", "heads", "patch")}
    lines = {
        "file": found["file"],
        "architecture": found.get("architecture") or "not told",
        **sizes,
        "where": f"{found['where'] or 'top level'}" if found["converts"] else held,
        "branches": ", ".join(found.get("branches") or []) or "not told",
        "assumed": assumed if found["converts"] else "not told",
        "converts": f"yes, as {found['format']}" if found["converts"] else f"no: {found['why_not']}",
    }
    return "\n".join(f"{name + ':':<14}{value}" for name, value in lines.items())


def _architecture(spec: EncoderSpec) -> str:
    if spec.family == "resnet":
        return f"ResNet of {spec.block} blocks {'-'.join(map(str, spec.layers))}"
    name = "BEiT" if spec.rel_pos_bias else "ViT"
    parts = [
        "norm before the blocks" if spec.pre_norm else "",
        f"{spec.registers} registers" if spec.registers else "",
        "" if spec.class_token else "no class token",
        "" if spec.final_norm or spec.fc_norm else "no final norm",
    ]
    return ", ".join([f"{name} ({spec.activation}, eps {spec.layer_norm_eps:g})", *filter(None, parts)])


def _guess(checkpoint: Checkpoint) -> dict[str, Any]:
    """Sizes that the largest state dict shows, whatever it is of."""
    state = max(checkpoint.state_dicts.values(), key=len)
    patch = next(
        (t for key, t in state.items() if "patch_embed" in key and key.endswith("weight") and t.dim() == 4), None
    )
    blocks = {match.group(2) for key in state if (match := re.search(r"(blocks|layers?|resblocks)\.(\d+)\.", key))}
    found: dict[str, Any] = {"depth": len(blocks) or None, "where": "", "branches": []}
    if patch is not None:
        found |= {"architecture": "a transformer on patches", "width": patch.shape[0], "patch": patch.shape[-1]}
    elif any(key.endswith("layer1.0.conv1.weight") for key in state):
        found |= {"architecture": "a ResNet"}
    return found


def _prefixes(state: dict[str, Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for key in state:
        prefix = key.split(".")[0]
        counts[prefix] = counts.get(prefix, 0) + 1
    return counts


def default_out(path: Path) -> Path:
    """``NAME.encoder.safetensors`` beside the checkpoint."""
    given, source = named.parse(path), named.weights_of(path)
    source = source or Path(given.row if given else path)
    return source.with_name(f"{source.stem}.encoder.safetensors")
