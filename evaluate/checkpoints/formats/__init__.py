"""Every checkpoint format that is known, and which one a file is of."""

import re
from dataclasses import dataclass, replace
from importlib import import_module

from evaluate.checkpoints.formats.table import Branch, Format
from evaluate.checkpoints.reader import Checkpoint
from evaluate.runtime.errors import UserError

# a format is a file of this folder that defines FORMATS, and its name here
MODULES = ("siameseim", "plain_vit", "moco_v3", "beit", "clip", "huggingface", "mmpretrain", "resnets")
FORMATS: tuple[Format, ...] = tuple(
    known for module in MODULES for known in import_module(f"{__name__}.{module}").FORMATS
)
# what different methods call the two branches
ALIASES = (("online", "student", "base", "query", "encoder"), ("target", "ema", "teacher", "momentum", "key"))
EMA_PATHS = (
    "state_dict_ema",
    "model_ema",
    "ema",
    "ema_state_dict",
    "ema_model",
    "model_ema_state_dict",
    *(
        f"{outer}/{inner}"
        for outer in ("ema", "model_ema", "ema_model")
        for inner in ("module", "state_dict", "shadow")
    ),
)
# parts before an encoder's names that belong to no method; what stands outside them is a head or a loss
PREFIXES = ("model", "backbone", "encoder", "net", "network", "base_model", "visual_encoder", "vision_encoder", "trunk")
STEMS = (
    "patch_embed.proj.weight",
    "patch_embed.projection.weight",
    "conv1.weight",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embedding.weight",
)
SUPPORTED = (
    "plain ViTs (MAE, DINO, DINOv2, iBOT, MoCo-v3, SiameseIM, CLIP, timm, Hugging Face, mmpretrain), BEiT and ResNets"
)
FOREIGN = {  # keys of architectures that are often asked for and not supported
    "a Swin transformer": r"(.+\.)?layers\.\d+\.blocks\.\d+\.attn\..+",
    "a ConvNeXt": r"(.+\.)?(stages\.\d+\.(blocks\.)?\d+\.(conv_dw|dwconv|gamma).*|downsample_layers\..+)",
    "a ViT with gated MLPs (SwiGLU)": r"(.+\.)?mlp\.(w12|w1|w2|w3|fc1_g|fc1_x)\..+",
    "a ViT with pooling by attention (SigLIP)": r"(.+\.)?(attn_pool|vision_model\.head)\..+",
    "DINOv2 as transformers names it (convert DINOv2's own file)": r"(.+\.)?encoder\.layer\.\d+\.layer_scale1\.lambda1",
    "a distilled DeiT": r"(.+\.)?dist_token",
    "a network of separable convolutions": r"(.+\.)?(conv_stem|conv_dw)\..+",
    "a ResNet with squeeze-and-excitation": r"(.+\.)?layer\d\.\d+\.se\..+",
    "parameters flattened by FSDP (save the full state dict)": r"(.+\.)?_?flat_param.*",
}


@dataclass(frozen=True)
class Recognized:
    """A file's format and where in the file its encoder stands."""

    known: Format
    """The format."""
    path: str
    """Of the state dict that it was told by."""
    checkpoint: Checkpoint
    """The file as the format sees it: without the prefix."""
    prefix: str = ""
    """What was taken off every key of the encoder."""


def by_name(name: str) -> Format:
    """The format called so; raises UserError listing the legal names."""
    for known in FORMATS:
        if known.name == name:
            return known
    raise UserError(f"there is no format {name!r}; the formats are {', '.join(known.name for known in FORMATS)}")


def recognize(checkpoint: Checkpoint, asked: str | None = None, prefix: str | None = None) -> Recognized:
    """The format of a file and where its encoder stands, by keys and shapes, or as asked.

    Where the keys fit a format but do not lie where its own files have them, or stand behind a prefix of no method,
    they are taken there.

    Raises:
        UserError: no format fits (what is supported, what was found and what helps are said), or several do.
    """
    whole = checkpoint
    if prefix:
        checkpoint = checkpoint.without_prefix(prefix)
        if not checkpoint.state_dicts:
            raise UserError(
                f"{whole.path} has no key that begins with {prefix!r}; {_advice(whole) or 'its keys: ' + _seen(whole)}"
            )
    taken = prefix or ""
    while True:
        if found := _fitting(checkpoint, asked):
            if taken and taken != (prefix or ""):
                _refuse_left_out(found, taken, whole)
            return replace(found, prefix=taken)
        stripped = None if prefix else _strip(checkpoint)
        if stripped is None:
            break
        part, checkpoint = stripped
        taken += part
    if asked:
        paths = ", ".join(repr(path) for path in whole.state_dicts)
        raise UserError(
            f"{whole.path} is not of format {asked}: none of its state dicts ({paths}) has this format's keys; choose "
            f"another --format, or a state dict with --prefix PATH"
        )
    raise UserError(_unknown(whole))


def _fitting(checkpoint: Checkpoint, asked: str | None) -> Recognized | None:
    """The format that fits without any change of keys; None where there is none."""
    formats = [by_name(asked)] if asked else FORMATS
    fitting = [(known, path) for known in formats if (path := known.path_in(checkpoint)) is not None]
    if len(fitting) > 1:
        names = ", ".join(known.name for known, _ in fitting)
        raise UserError(f"{checkpoint.path} fits several formats ({names}); choose one with --format")
    if fitting:
        return Recognized(*fitting[0], checkpoint)
    elsewhere = [  # a format whose branches lie in places of their own is known by these places
        (known, path)
        for path in checkpoint.state_dicts
        for known in formats
        if None in [branch.state_dict_path for branch in known.branches.values()] and known.fits(checkpoint, path)
    ]
    paths = list(dict.fromkeys(path for _, path in elsewhere))
    primary = [path for path in paths if path not in EMA_PATHS and "ema" not in path.split("/")] or paths
    if len(primary) > 1:
        listed = ", ".join(map(repr, primary))
        raise UserError(
            f"{checkpoint.path} holds several encoders, at {listed}: the branch is ambiguous; choose one with --prefix "
            f"PATH"
        )
    if primary:
        return Recognized(*next((known, path) for known, path in elsewhere if path == primary[0]), checkpoint)
    if asked:  # its signature does not hold; the file may still be meant so
        known = formats[0]
        places = [branch.state_dict_path for branch in known.branches.values() if branch.state_dict_path]
        place = next((path for path in places or known.state_dict_paths if path in checkpoint.state_dicts), None)
        if place is None and not places and len(checkpoint.state_dicts) == 1:
            place = next(iter(checkpoint.state_dicts))
        if place is not None and not _strip(checkpoint):
            return Recognized(known, place, checkpoint)
    return None


def _encoders(checkpoint: Checkpoint) -> dict[str, set[str]]:
    """By prefix of an encoder's first tensor the paths of state dicts where it stands."""
    found: dict[str, set[str]] = {}
    for path, state in checkpoint.state_dicts.items():
        for key in state:
            stem = next((stem for stem in STEMS if key == stem or key.endswith("." + stem)), None)
            if stem and not re.search(r"(^|\.)layer\d\.\d+\.$", key.removesuffix(stem)):  # conv1 of a ResNet's block
                found.setdefault(key.removesuffix(stem), set()).add(path)
    return found


def _strip(checkpoint: Checkpoint) -> tuple[str, Checkpoint] | None:
    """The file without the first part of every encoder's prefix, where that part belongs to no method and is the only
    one."""
    prefixes = list(_encoders(checkpoint))
    first = {prefix.split(".")[0] for prefix in prefixes}
    if len(prefixes) != 1 or not prefixes[0] or not first <= set(PREFIXES):
        return None
    part = first.pop() + "."
    return part, checkpoint.without_prefix(part)


def _refuse_left_out(found: Recognized, prefix: str, whole: Checkpoint) -> None:
    """Raises UserError where a key outside the prefix would be a tensor of the encoder but for a part of the prefix."""
    rows = next(iter(found.known.branches.values())).rows
    for key in found.checkpoint.outside_prefix.get(found.path, ()):
        bare = key
        while bare.split(".")[0] in PREFIXES:
            bare = bare.partition(".")[2]
        if bare and any(name is not None and re.fullmatch(pattern, bare) for pattern, name in rows):
            raise UserError(
                f"{whole.path}: most keys of the encoder begin with {prefix!r}, but {key!r} does not; to leave it out, "
                f"give --prefix {prefix}"
            )


def choose_branch(known: Format, checkpoint: Checkpoint, path: str, asked: str | None) -> tuple[str, Branch]:
    """The branch asked for, under its own name or another method's, or the default one.

    Raises:
        UserError: no such branch (the legal ones are listed).
    """
    there = branches_in(known, checkpoint, path)
    if asked is None:
        return next(iter(there.items()))
    names = next((names for names in ALIASES if asked in names), (asked,))
    for name in (asked, *names):
        if name in there:
            return name, there[name]
    raise UserError(f"{checkpoint.path} ({known.name}) has no branch {asked!r}; its branches are {', '.join(there)}")


def branches_in(known: Format, checkpoint: Checkpoint, path: str) -> dict[str, Branch]:
    """The encoders that a file of a format really holds; an average of the weights in a place of its own is branch
    "ema"."""
    there = {
        name: branch
        for name, branch in known.branches.items()
        if branch.state_dict_path is None or branch.state_dict_path in checkpoint.state_dicts
    }
    if not set(there) & set(ALIASES[1]):
        average = next((place for place in EMA_PATHS if place != path and known.fits(checkpoint, place)), None)
        if average:
            first = next(iter(there.values()))
            there["ema"] = replace(first, state_dict_path=average)
    return there


def _unknown(checkpoint: Checkpoint) -> str:
    """One sentence: what the file is not, what was found, what is supported, and what helps."""
    keys = [key for state in checkpoint.state_dicts.values() for key in state]
    foreign = next((name for name, pattern in FOREIGN.items() if any(re.fullmatch(pattern, key) for key in keys)), None)
    looks = f"it looks like {foreign}" if foreign else f"keys seen: {_seen(checkpoint)}"
    advice = _advice(checkpoint) or NO_ADVICE
    return f"{checkpoint.path} is of no known format: {looks}; supported are {SUPPORTED}; {advice}"


NO_ADVICE = 'save the encoder alone under one of their names, as {"model": state_dict}'


def _advice(checkpoint: Checkpoint) -> str:
    """What to say to the command, where it was tried and a format fits."""
    prefixes = sorted(_encoders(checkpoint))
    useful = [
        prefix
        for prefix in prefixes
        if prefix
        and any(
            known.path_in(view) is not None or any(known.fits(view, path) for path in view.state_dicts)
            for view in [checkpoint.without_prefix(prefix)]
            for known in FORMATS
        )
    ]
    if len(prefixes) > 1 and useful:
        choices = " or --prefix ".join(useful[:6])
        return f"it holds several encoders, so the branch is ambiguous: choose with --prefix {choices}"
    if useful:
        return f"an encoder stands behind a prefix: --prefix {useful[0]}"
    return (
        f"it holds several encoders ({', '.join(map(repr, prefixes[:6]))}): the branch is ambiguous"
        if len(prefixes) > 1
        else ""
    )


def _seen(checkpoint: Checkpoint, most: int = 12) -> str:
    keys = [f"{path}: {key}" if path else key for path, state in checkpoint.state_dicts.items() for key in state]
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
