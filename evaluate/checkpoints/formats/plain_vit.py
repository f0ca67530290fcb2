"""ViTs already under timm's names: MAE, fine-tuned SiameseIM and MAE, DINO and iBOT backbones, timm.

They are told apart by where the state dict lies and by their heads, which decides mean/std and interpolation.
"""

import functools
import math
import re

from evaluate.checkpoints.formats.moco_v3 import moco_v3_heads
from evaluate.checkpoints.formats.table import (
    EVERYTHING,
    HALF,
    VIT_ROLES,
    Branch,
    Format,
    Rows,
    State,
    drop,
    vit_rows,
    with_prefix,
)
from evaluate.checkpoints.reader import Checkpoint
from evaluate.checkpoints.statements import is_moco_v3, is_sine_cosine, is_timm_hub

PLAIN: Rows = (*vit_rows(), *drop(r"head(_dist)?\.(weight|bias)", r"mask_token"))
DINOV2: Rows = (*vit_rows(), (r"register_tokens", "reg_token"), (r"mask_token", None))
DINOV2_ROLES = {**VIT_ROLES, "registers": "register_tokens"}
MAE: Rows = (
    *vit_rows(),
    *drop(r"mask_token", r"decoder_pos_embed", r"decoder_(embed|norm|pred)\.(weight|bias)", r"decoder_blocks\..+"),
)
HEADLESS_ROWS: Rows = (*MAE, (r"masked_embed", None))
DINO_HEAD = drop(
    r"head\.(mlp|last_layer|mlp2|last_layer2|last_layer_g|last_layer2_g)\..+",
    r"head2?\..*center",
    r"head\.(weight|bias)",
)
DINO: Rows = (*vit_rows(r"backbone\."), *drop(r"backbone\.(masked_embed|mask_token)"), *DINO_HEAD, (r"head2\..+", None))
DINO_BRANCHES = {name: Branch(DINO, with_prefix("backbone.", VIT_ROLES), name) for name in ("teacher", "student")}
DINOV2_TRAINING: Rows = (
    *vit_rows(r"backbone\."),
    (r"backbone\.register_tokens", "reg_token"),
    *drop(r"backbone\.mask_token", r"(dino_head|ibot_head)\..+", r"(dino|ibot)_loss\..+"),
)
DINOV2_BRANCHES = {
    name: Branch(DINOV2_TRAINING, with_prefix("backbone.", DINOV2_ROLES), name) for name in ("teacher", "student")
}
BLOCKS = r"blocks\.\d+\.attn\.qkv\.weight"
NOT_PLAIN = (r"mm_blocks\..+", r".*relative_position_bias_table", r"blocks\.\d+\.gamma_1", r"blocks\.\d+\.attn\.q_bias")
HEAD = r"head\.weight"


def read_positions(state: State) -> dict[str, object]:
    """The fixed sines and cosines of MAE and MoCo-v3 are resized by their code's plain bicubic."""
    positions = state.get("pos_embed")
    fixed = positions is not None and is_sine_cosine(positions)
    made_by_mae = any(name.startswith("decoder_") or name == "mask_token" and state[name].dim() == 3 for name in state)
    return {"interpolation": "bicubic"} if fixed or made_by_mae else {}


def read_registers(state: State) -> dict[str, object]:
    """DINOv2's models with registers resize positions with antialiasing and without the offset."""
    return {"interpolation": "bicubic_antialias"} if any(name.endswith("register_tokens") for name in state) else {}


def fold_class_position(state: State) -> State:
    """DINOv2 with registers: the class token's own position goes into it, as timm has it; registers have none."""
    positions, token, registers = (state.get(name) for name in ("pos_embed", "cls_token", "reg_token"))
    if registers is None or token is None or positions is None or positions.dim() != 3 or token.dim() != 3:
        return state
    side = math.isqrt(max(0, positions.shape[1] - 1))
    if side * side != positions.shape[1] - 1 or positions.shape[2] != token.shape[2]:
        return state
    return {**state, "cls_token": token + positions[:, :1], "pos_embed": positions[:, 1:]}


def _unmarked(checkpoint: Checkpoint, path: str) -> bool:
    """A plain ViT about which neither timm's config.json nor MoCo-v3's entries say whose it is."""
    keys = checkpoint.state_dicts[path]
    second = any(key == "register_tokens" or key == "mask_token" and keys[key].dim() == 2 for key in keys)
    return not is_timm_hub(checkpoint) and not is_moco_v3(checkpoint) and not second


def _is_timm(checkpoint: Checkpoint, path: str) -> bool:
    """With a head, or described by timm's config.json, or written by ``--to timm`` without norm."""
    keys = checkpoint.state_dicts[path]
    if is_moco_v3(checkpoint) or "register_tokens" in keys:
        return False
    marked = is_timm_hub(checkpoint) or "head.weight" in keys or "fc_norm.weight" in keys
    return marked or bool(checkpoint.encoder_spec) and "norm.weight" not in keys


# a ViT without head, wherever it lies, is the same encoder: as DINO's and iBOT's files, unless its positions are MAE's
_headless = functools.partial(
    Format,
    family="vit",
    branches={"encoder": Branch(HEADLESS_ROWS, VIT_ROLES)},
    interpolation="dino",
    read_semantics=read_positions,
    assumes=EVERYTHING,
    naming="timm",
    transform=fold_class_position,
)
FORMATS = (
    _headless(
        name="mae",
        description="MAE pretraining checkpoint, with or without decoder",
        state_dict_paths=("model",),
        required_keys=(BLOCKS, r"norm\.weight"),
        forbidden_keys=(*NOT_PLAIN, HEAD, r"fc_norm\.weight"),
        matches=_unmarked,
        marks=(r"decoder_blocks\..+",),
    ),
    _headless(
        name="mae_no_norm",
        description="a ViT without final norm under MAE's names, as --to mae writes SiameseIM",
        state_dict_paths=("model",),
        required_keys=(BLOCKS,),
        forbidden_keys=(*NOT_PLAIN, HEAD, r"(fc_)?norm\.weight"),
        matches=lambda checkpoint, path: bool(checkpoint.encoder_spec),  # any other without norm is incomplete
    ),
    Format(
        name="finetuned",
        description="SiameseIM or MAE after fine-tuning: mean of the patch tokens, fc_norm, head",
        family="vit",
        state_dict_paths=("model",),
        required_keys=(BLOCKS, r"fc_norm\.weight"),
        forbidden_keys=NOT_PLAIN,
        matches=lambda checkpoint, path: not is_timm_hub(checkpoint),
        branches={"encoder": Branch(PLAIN, VIT_ROLES)},
        pooling="mean",
        assumes=("num_heads", "layer_norm_eps", "activation", "mean", "interpolation"),
        naming="timm",
    ),
    Format(
        name="deit",
        description="DeiT-style classifier: class token, norm, head",
        family="vit",
        state_dict_paths=("model",),
        required_keys=(BLOCKS, HEAD, r"norm\.weight"),
        forbidden_keys=(*NOT_PLAIN, r"fc_norm\.weight"),
        matches=lambda checkpoint, path: not is_timm_hub(checkpoint),
        branches={"encoder": Branch(PLAIN, VIT_ROLES)},
        assumes=EVERYTHING,
        naming="timm",
    ),
    Format(
        name="moco_v3_linear",
        description="MoCo-v3 ViT after its linear probe: names without prefix, heads as its own code has them",
        family="vit",
        state_dict_paths=("state_dict",),
        required_keys=(BLOCKS,),
        forbidden_keys=NOT_PLAIN,
        matches=lambda checkpoint, path: is_moco_v3(checkpoint),
        branches={"encoder": Branch(PLAIN, VIT_ROLES)},
        num_heads=moco_v3_heads,
        naming="timm",
    ),
    Format(
        name="dino",
        description="DINO training checkpoint; the official evaluation takes the teacher",
        family="vit",
        required_keys=(r"backbone\." + BLOCKS,),
        matches=lambda checkpoint, path: not _is_ibot(checkpoint) and not _is_dinov2(checkpoint),
        branches=DINO_BRANCHES,
        interpolation="dino",
        naming="timm",
    ),
    Format(
        name="ibot",
        description="iBOT training checkpoint; the official evaluation takes the teacher",
        family="vit",
        required_keys=(r"backbone\." + BLOCKS,),
        matches=lambda checkpoint, path: _is_ibot(checkpoint) and not _is_dinov2(checkpoint),
        branches=DINO_BRANCHES,
        interpolation="dino",
        naming="timm",
    ),
    Format(
        name="dinov2",
        description="DINOv2's own backbone file, with or without registers",
        family="vit",
        required_keys=(BLOCKS, r"blocks\.\d+\.ls1\.gamma", r"mask_token|register_tokens"),
        forbidden_keys=(*NOT_PLAIN, HEAD, r"decoder_.+"),
        matches=lambda checkpoint, path: not _unmarked(checkpoint, path) and not is_timm_hub(checkpoint),
        branches={"encoder": Branch(DINOV2, DINOV2_ROLES)},
        interpolation="dino",
        read_semantics=read_registers,
        naming="timm",
        transform=fold_class_position,
    ),
    Format(
        name="dinov2_training",
        description="DINOv2 training checkpoint, blocks in chunks or not; the official evaluation takes the teacher",
        family="vit",
        required_keys=(r"backbone\." + BLOCKS, r"backbone\.blocks\.\d+\.ls1\.gamma"),
        matches=lambda checkpoint, path: _is_dinov2(checkpoint),
        branches=DINOV2_BRANCHES,
        interpolation="dino",
        read_semantics=read_registers,
        naming="timm",
        transform=fold_class_position,
    ),
    _headless(
        name="dino_backbone",
        description="DINO backbone file: a flat state dict without head",
        required_keys=(BLOCKS, r"norm\.weight"),
        forbidden_keys=(*NOT_PLAIN, HEAD, r"fc_norm\.weight", r".*decoder.*"),
        matches=_unmarked,
    ),
    _headless(
        name="ibot_backbone",
        description='iBOT\'s extracted backbone: {"state_dict": names without prefix or head}',
        state_dict_paths=("state_dict",),
        required_keys=(BLOCKS, r"norm\.weight"),
        forbidden_keys=(*NOT_PLAIN, HEAD, r"fc_norm\.weight", r".*decoder.*"),
        matches=_unmarked,
    ),
    Format(
        name="timm",
        description="timm VisionTransformer, flat or in a training checkpoint",
        family="vit",
        state_dict_paths=("state_dict", ""),
        required_keys=(BLOCKS,),
        forbidden_keys=NOT_PLAIN,
        matches=_is_timm,
        branches={"encoder": Branch(PLAIN, VIT_ROLES), "ema": Branch(PLAIN, VIT_ROLES, "state_dict_ema")},
        normalization=HALF,
        interpolation="bicubic_antialias",
        pos_embed_may_lack_prefix=True,
        assumes=EVERYTHING,
        naming="timm",
        transform=fold_class_position,
    ),
)


def _is_dinov2(checkpoint: Checkpoint) -> bool:
    keys = [key for name in ("teacher", "student") for key in checkpoint.state_dicts.get(name, {})]
    return any(
        key.startswith(("dino_head.", "ibot_head.")) or key == "backbone.register_tokens" for key in keys
    ) or any(re.fullmatch(r"backbone\.blocks\.\d+\.ls1\.gamma", key) for key in keys)


def _is_ibot(checkpoint: Checkpoint) -> bool:
    keys = [key for name in ("teacher", "student") for key in checkpoint.state_dicts.get(name, {})]
    return any(
        key.startswith(("backbone.masked_embed", "head.mlp2", "head.last_layer2", "head2.")) for key in keys
    ) or any("shared_head" in name for name in checkpoint.settings)
