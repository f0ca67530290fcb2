"""What one checkpoint format is: where its tensors lie, what they are called, and what their names do not say.

Rows are two columns: a pattern that must match a whole key, and the timm name it becomes (``None``: dropped on
purpose). Every key of the state dict must match exactly one row. ``NAME#0``, ``NAME#1`` … are parts of one tensor,
joined along the first axis.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor, cat

from evaluate.checkpoints.reader import Checkpoint
from evaluate.checkpoints.statements import CLIP, HALF, IMAGENET, UNIT
from evaluate.runtime.errors import UserError

__all__ = ["CLIP", "HALF", "IMAGENET", "UNIT", "Branch", "Format", "Rows", "State"]
Rows = tuple[tuple[str, str | None], ...]
State = dict[str, Tensor]
# what a format's keys leave open, by field of EncoderSpec; "mean" stands for mean and std
EVERYTHING = ("num_heads", "layer_norm_eps", "activation", "mean", "pooling", "interpolation")
# keys that belong to no model: AveragedModel's count
BOOKKEEPING = re.compile(r"n_averaged")


@dataclass(frozen=True)
class Branch:
    """One encoder within a file."""

    rows: Rows
    """The name table of the whole state dict that holds this branch."""
    roles: Mapping[str, str]
    """What each tensor is, for the reference forward (``evaluate.checkpoints.reference``): role to name template."""
    state_dict_path: str | None = None
    """Where its state dict lies; None: where the format's own does."""


@dataclass(frozen=True)
class Format:
    """A checkpoint format: how a file of it is told, what its tensors are called, and what its own code does with
    them."""

    name: str
    """As ``--format`` takes it."""
    description: str
    """One line for the table in docs/conversion.md and for the certificate."""
    family: str
    """``vit`` or ``resnet``."""
    branches: Mapping[str, Branch]
    """The encoders of a file by name; the first is the one taken when none is asked for."""
    state_dict_paths: tuple[str, ...] = ("",)
    """Paths where the state dict may lie, as in ``Checkpoint.state_dicts``."""
    required_keys: tuple[str, ...] = ()
    """Patterns that must each match some key."""
    forbidden_keys: tuple[str, ...] = ()
    """Patterns that may match no key."""
    matches: Callable[[Checkpoint, str], bool] | None = None
    """What else tells it apart, from the file and the path of the state dict."""
    normalization: tuple[tuple[float, float, float], tuple[float, float, float]] = IMAGENET
    """Mean and std of its method's preprocessing, on the 0 to 1 scale."""
    layer_norm_eps: float = 1e-6
    """Epsilon of every LayerNorm."""
    activation: str = "gelu"
    """A name of ``evaluate.encoder.model.ACTIVATIONS``."""
    pooling: str = "cls"
    """What its method's own evaluation reads out: ``cls`` or ``mean``."""
    interpolation: str = "bicubic"
    """How its code resizes the position embedding (``evaluate.encoder.interpolation.METHODS``)."""
    num_heads: Callable[[int], int] | None = None
    """From the width; None: 64 channels a head (80 at width 1280)."""
    pos_embed_may_lack_prefix: bool = False
    """The position embedding may lack rows for class token and registers."""
    transform: Callable[[State], State] | None = None
    """The one change to tensors, after renaming."""
    read_semantics: Callable[[State], dict[str, object]] | None = None
    """What the source's tensors themselves say of fields of ``EncoderSpec``; words are read by ``statements``."""
    assumes: tuple[str, ...] = ()
    """Fields that keys of this kind do not decide: unless something says them, they are assumed aloud."""
    marks: tuple[str, ...] = ()
    """Patterns of keys that only this method has: where one matches, nothing is assumed."""
    naming: str = ""
    """Whose names of tensors: "timm", "hf", "open_clip", "beit" or another's; it decides which JSON is meant."""

    def path_in(self, checkpoint: Checkpoint) -> str | None:
        """Where this format's tensors lie in the file; None where the file is not of this format."""
        own = [branch.state_dict_path for branch in self.branches.values()]
        places = self.state_dict_paths if None in own else own
        return next((path for path in places if self.fits(checkpoint, path)), None)

    def fits(self, checkpoint: Checkpoint, path: str | None) -> bool:
        """Whether the state dict at a path has this format's keys, and no other's."""
        keys = checkpoint.state_dicts.get(path or "")
        if keys is None or path is None:
            return False
        found = all(any(re.fullmatch(pattern, key) for key in keys) for pattern in self.required_keys)
        spoiled = any(re.fullmatch(pattern, key) for pattern in self.forbidden_keys for key in keys)
        return found and not spoiled and (self.matches is None or self.matches(checkpoint, path))

    def undecided(self, keys: Mapping[str, Tensor]) -> tuple[str, ...]:
        """The fields of ``assumes``, none where a key marks the method."""
        return () if any(re.fullmatch(pattern, key) for pattern in self.marks for key in keys) else self.assumes


def vit_rows(prefix: str = "") -> Rows:
    """timm's own VisionTransformer names behind a prefix (a regular expression)."""
    return (
        (prefix + r"(cls_token|pos_embed|reg_token)", r"\1"),
        (prefix + r"patch_embed\.proj\.(weight|bias)", r"patch_embed.proj.\1"),
        (prefix + r"norm_pre\.(weight|bias)", r"norm_pre.\1"),
        (
            prefix + r"blocks\.(\d+)\.(norm1|attn\.qkv|attn\.proj|norm2|mlp\.fc1|mlp\.fc2)\.(weight|bias)",
            r"blocks.\1.\2.\3",
        ),
        (prefix + r"blocks\.(\d+)\.(ls1|ls2)\.gamma", r"blocks.\1.\2.gamma"),
        (prefix + r"(norm|fc_norm)\.(weight|bias)", r"\1.\2"),
    )


def resnet_rows(prefix: str = "") -> Rows:
    """torchvision's ResNet names behind a prefix (a regular expression), without ``fc``."""
    tensor = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
    return (
        (prefix + r"conv1\.weight", "conv1.weight"),
        (prefix + rf"bn1\.{tensor}", r"bn1.\1"),
        (prefix + r"layer([1-4])\.(\d+)\.conv([1-3])\.weight", r"layer\1.\2.conv\3.weight"),
        (prefix + rf"layer([1-4])\.(\d+)\.bn([1-3])\.{tensor}", r"layer\1.\2.bn\3.\4"),
        (prefix + r"layer([1-4])\.(\d+)\.downsample\.0\.weight", r"layer\1.\2.downsample.0.weight"),
        (prefix + rf"layer([1-4])\.(\d+)\.downsample\.1\.{tensor}", r"layer\1.\2.downsample.1.\3"),
    )


VIT_ROLES = {
    "patch": "patch_embed.proj.{p}",
    "cls": "cls_token",
    "registers": "reg_token",
    "pos": "pos_embed",
    "pre": "norm_pre.{p}",
    "norm1": "blocks.{i}.norm1.{p}",
    "qkv": "blocks.{i}.attn.qkv.{p}",
    "proj": "blocks.{i}.attn.proj.{p}",
    "norm2": "blocks.{i}.norm2.{p}",
    "fc1": "blocks.{i}.mlp.fc1.{p}",
    "fc2": "blocks.{i}.mlp.fc2.{p}",
    "scale1": "blocks.{i}.ls1.gamma",
    "scale2": "blocks.{i}.ls2.gamma",
    "norm": "norm.{p}",
}
RESNET_ROLES = {
    "conv1": "conv1",
    "bn1": "bn1",
    "layer1": "layer1",
    "layer2": "layer2",
    "layer3": "layer3",
    "layer4": "layer4",
}
SEQUENTIAL_ROLES = {
    "conv1": "0",
    "bn1": "1",
    "layer1": "4",
    "layer2": "5",
    "layer3": "6",
    "layer4": "7",
}  # nn.Sequential(*children)


def with_prefix(prefix: str, roles: Mapping[str, str]) -> dict[str, str]:
    """Roles whose names all stand behind a literal prefix."""
    return {role: prefix + name for role, name in roles.items()}


def drop(*patterns: str) -> Rows:
    """Rows of keys that are left out on purpose."""
    return tuple((pattern, None) for pattern in patterns)


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def rename(state: State, rows: Rows, what: str) -> tuple[State, list[str], list[str]]:
    """The tensors under timm names, the keys used and the keys dropped.

    Raises:
        UserError: a key that matches no row or two, or two keys that become one name.
    """
    renamed: State = {}
    used, left_out, unknown = [], [], []
    for key, tensor in state.items():
        if BOOKKEEPING.fullmatch(key):
            left_out.append(key)
            continue
        matches = [(pattern, name) for pattern, name in rows if _compiled(pattern).fullmatch(key)]
        if not matches:
            unknown.append(key)
            continue
        if len(matches) > 1:
            raise UserError(
                f"{what}: key {key!r} matches two rows of the name table, {matches[0][0]!r} and {matches[1][0]!r}"
            )
        pattern, name = matches[0]
        if name is None:
            left_out.append(key)
            continue
        name = _compiled(pattern).sub(name, key)
        if name in renamed:
            raise UserError(f"{what}: two keys become {name!r}, and {key!r} is the second of them")
        renamed[name] = tensor
        used.append(key)
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        listed = ", ".join(repr(key) for key in unknown[:5])
        raise UserError(
            f"{what}: no row of the name table takes {listed}{more}; remove what does not belong or choose --format"
        )
    return _join_parts(renamed, what), used, left_out


def _join_parts(state: State, what: str) -> State:
    """``NAME#0`` … joined along the first axis; ``#0`` and ``#2`` without ``#1`` are an error (a missing key
    projection)."""
    joined: State = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        base, mark, index = name.partition("#")
        if mark:
            parts.setdefault(base, {})[int(index)] = tensor
        else:
            joined[name] = tensor
    for base, pieces in parts.items():
        absent = [index for index in range(3) if index not in pieces]
        if absent:
            raise UserError(f"{what}: part {absent[0]} of 3 (query, key, value) of {base} is missing")
        shapes = {tuple(piece.shape) for piece in pieces.values()}
        if len(shapes) > 1:
            raise UserError(f"{what}: query, key and value of {base} differ in shape: {sorted(shapes)}")
        types = {piece.dtype for piece in pieces.values()}
        if len(types) > 1 and not all(
            dtype.is_floating_point for dtype in types
        ):  # joining would turn whole numbers into weights
            raise UserError(
                f"{what}: query, key and value of {base} differ in type: {', '.join(sorted(map(str, types)))}; "
                f"weights are floating point"
            )
        joined[base] = cat([pieces[index] for index in range(3)])
    return joined
