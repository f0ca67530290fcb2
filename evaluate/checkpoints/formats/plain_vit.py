"""ViTs already under timm's names: MAE, fine-tuned SiameseIM and MAE, DINO and iBOT backbones, timm.

They are told apart by where the state dict lies and by their heads, which decides mean/std and interpolation.
"""

from collections.abc import Mapping
from typing import Any

from evaluate.checkpoints.formats.table import HALF, VIT_ROLES, Branch, Format, Rows, behind, dropped, vit_rows
from evaluate.checkpoints.reader import Checkpoint

PLAIN: Rows = (*vit_rows(), *dropped(r"head(_dist)?\.(weight|bias)", r"mask_token"))
MAE: Rows = (
    *vit_rows(),
    *dropped(r"mask_token", r"decoder_pos_embed", r"decoder_(embed|norm|pred)\.(weight|bias)", r"decoder_blocks\..+"),
)
DINO_HEAD = dropped(r"head\.(mlp|last_layer|mlp2|last_layer2|last_layer_g|last_layer2_g)\..+", r"head2?\..*center", r"head\.(weight|bias)")
DINO: Rows = (*vit_rows(r"backbone\."), *dropped(r"backbone\.(masked_embed|mask_token)"), *DINO_HEAD, (r"head2\..+", None))
DINO_BRANCHES = {name: Branch(DINO, behind("backbone.", VIT_ROLES), name) for name in ("teacher", "student")}
BLOCKS = r"blocks\.\d+\.attn\.qkv\.weight"
NOT_PLAIN = (r"mm_blocks\..+", r".*relative_position_bias_table", r"blocks\.\d+\.gamma_1", r"blocks\.\d+\.attn\.q_bias")
HEAD = r"head\.weight"


def timm_semantics(checkpoint: Checkpoint) -> dict[str, Any]:
    """timm's hub files say their mean and std in config.json; a training checkpoint may in its args."""
    own = checkpoint.config.get("pretrained_cfg")
    config: Mapping[str, Any] = own if isinstance(own, dict) else checkpoint.config or checkpoint.settings
    return {name: tuple(config[name]) for name in ("mean", "std") if isinstance(config.get(name), list | tuple) and len(config[name]) == 3}


FORMATS = (
    Format(
        name="mae",
        description="MAE pretraining checkpoint, with or without decoder",
        family="vit",
        groups=("model",),
        has=(BLOCKS, r"norm\.weight"),
        lacks=(*NOT_PLAIN, HEAD, r"fc_norm\.weight"),
        branches={"encoder": Branch(MAE, VIT_ROLES)},
    ),
    Format(
        name="mae_no_norm",
        description="a ViT without final norm under MAE's names, as --to mae writes SiameseIM",
        family="vit",
        groups=("model",),
        has=(BLOCKS,),
        lacks=(*NOT_PLAIN, HEAD, r"(fc_)?norm\.weight"),
        test=lambda checkpoint, group: bool(checkpoint.said),  # any other file without norm is an incomplete one
        branches={"encoder": Branch(MAE, VIT_ROLES)},
    ),
    Format(
        name="finetuned",
        description="SiameseIM or MAE after fine-tuning: mean of the patch tokens, fc_norm, head",
        family="vit",
        groups=("model",),
        has=(BLOCKS, r"fc_norm\.weight"),
        lacks=NOT_PLAIN,
        branches={"encoder": Branch(PLAIN, VIT_ROLES)},
        pooling="mean",
    ),
    Format(
        name="deit",
        description="DeiT-style classifier: class token, norm, head",
        family="vit",
        groups=("model",),
        has=(BLOCKS, HEAD, r"norm\.weight"),
        lacks=(*NOT_PLAIN, r"fc_norm\.weight"),
        branches={"encoder": Branch(PLAIN, VIT_ROLES)},
    ),
    Format(
        name="dino",
        description="DINO training checkpoint; the official evaluation takes the teacher",
        family="vit",
        has=(r"backbone\." + BLOCKS,),
        test=lambda checkpoint, group: not _is_ibot(checkpoint),
        branches=DINO_BRANCHES,
        interpolation="dino",
    ),
    Format(
        name="ibot",
        description="iBOT training checkpoint; the official evaluation takes the teacher",
        family="vit",
        has=(r"backbone\." + BLOCKS,),
        test=lambda checkpoint, group: _is_ibot(checkpoint),
        branches=DINO_BRANCHES,
        interpolation="dino",
    ),
    Format(
        name="dino_backbone",
        description="DINO backbone file: a flat state dict without head",
        family="vit",
        groups=("",),
        has=(BLOCKS, r"norm\.weight"),
        lacks=(*NOT_PLAIN, HEAD, r"fc_norm\.weight", r".*decoder.*"),
        branches={"encoder": Branch(PLAIN, VIT_ROLES)},
        test=lambda checkpoint, group: checkpoint.path.suffix != ".safetensors",
        interpolation="dino",
    ),
    Format(
        name="ibot_backbone",
        description='iBOT\'s extracted backbone: {"state_dict": names without prefix or head}',
        family="vit",
        groups=("state_dict",),
        has=(BLOCKS, r"norm\.weight"),
        lacks=(*NOT_PLAIN, HEAD, r"fc_norm\.weight"),
        branches={"encoder": Branch((*PLAIN, (r"masked_embed", None)), VIT_ROLES)},
        interpolation="dino",
    ),
    Format(
        name="timm",
        description="timm VisionTransformer, flat or in a training checkpoint",
        family="vit",
        groups=("state_dict", ""),
        has=(BLOCKS,),
        lacks=NOT_PLAIN,
        test=lambda checkpoint, group: (
            HEAD.replace("\\", "") in checkpoint.groups[group]
            or "fc_norm.weight" in checkpoint.groups[group]
            or (group == "" and checkpoint.path.suffix == ".safetensors")
        ),
        branches={"encoder": Branch(PLAIN, VIT_ROLES), "ema": Branch(PLAIN, VIT_ROLES, "state_dict_ema")},
        normalization=HALF,
        interpolation="bicubic_antialias",
        bare_positions=True,
        adjust=timm_semantics,
    ),
)


def _is_ibot(checkpoint: Checkpoint) -> bool:
    keys = [key for name in ("teacher", "student") for key in checkpoint.groups.get(name, {})]
    return any(key.startswith(("backbone.masked_embed", "head.mlp2", "head.last_layer2", "head2.")) for key in keys) or any(
        "shared_head" in name for name in checkpoint.settings
    )
