"""ViTs already under timm's names: MAE, fine-tuned SiameseIM and MAE, DINO and iBOT backbones, timm.

They are told apart by where the state dict lies and by their heads, which decides mean/std and interpolation.
"""

from collections.abc import Mapping
from typing import Any

from evaluate.checkpoints.formats.table import HALF, VIT_ROLES, Branch, Format, Rows, drop, vit_rows, with_prefix
from evaluate.checkpoints.reader import Checkpoint

PLAIN: Rows = (*vit_rows(), *drop(r"head(_dist)?\.(weight|bias)", r"mask_token"))
MAE: Rows = (
    *vit_rows(),
    *drop(r"mask_token", r"decoder_pos_embed", r"decoder_(embed|norm|pred)\.(weight|bias)", r"decoder_blocks\..+"),
)
DINO_HEAD = drop(
    r"head\.(mlp|last_layer|mlp2|last_layer2|last_layer_g|last_layer2_g)\..+",
    r"head2?\..*center",
    r"head\.(weight|bias)",
)
DINO: Rows = (*vit_rows(r"backbone\."), *drop(r"backbone\.(masked_embed|mask_token)"), *DINO_HEAD, (r"head2\..+", None))
DINO_BRANCHES = {name: Branch(DINO, with_prefix("backbone.", VIT_ROLES), name) for name in ("teacher", "student")}
BLOCKS = r"blocks\.\d+\.attn\.qkv\.weight"
NOT_PLAIN = (r"mm_blocks\..+", r".*relative_position_bias_table", r"blocks\.\d+\.gamma_1", r"blocks\.\d+\.attn\.q_bias")
HEAD = r"head\.weight"


def timm_semantics(checkpoint: Checkpoint) -> dict[str, Any]:
    """timm's hub files say their mean and std in config.json; a training checkpoint may in its args."""
    own = checkpoint.config.get("pretrained_cfg")
    config: Mapping[str, Any] = own if isinstance(own, dict) else checkpoint.config or checkpoint.settings
    return {
        name: tuple(config[name])
        for name in ("mean", "std")
        if isinstance(config.get(name), list | tuple) and len(config[name]) == 3
    }


FORMATS = (
    Format(
        name="mae",
        description="MAE pretraining checkpoint, with or without decoder",
        family="vit",
        state_dict_paths=("model",),
        required_keys=(BLOCKS, r"norm\.weight"),
        forbidden_keys=(*NOT_PLAIN, HEAD, r"fc_norm\.weight"),
        branches={"encoder": Branch(MAE, VIT_ROLES)},
    ),
    Format(
        name="mae_no_norm",
        description="a ViT without final norm under MAE's names, as --to mae writes SiameseIM",
        family="vit",
        state_dict_paths=("model",),
        required_keys=(BLOCKS,),
        forbidden_keys=(*NOT_PLAIN, HEAD, r"(fc_)?norm\.weight"),
        matches=lambda checkpoint, group: bool(
            checkpoint.encoder_spec
        ),  # any other file without norm is an incomplete one
        branches={"encoder": Branch(MAE, VIT_ROLES)},
    ),
    Format(
        name="finetuned",
        description="SiameseIM or MAE after fine-tuning: mean of the patch tokens, fc_norm, head",
        family="vit",
        state_dict_paths=("model",),
        required_keys=(BLOCKS, r"fc_norm\.weight"),
        forbidden_keys=NOT_PLAIN,
        branches={"encoder": Branch(PLAIN, VIT_ROLES)},
        pooling="mean",
    ),
    Format(
        name="deit",
        description="DeiT-style classifier: class token, norm, head",
        family="vit",
        state_dict_paths=("model",),
        required_keys=(BLOCKS, HEAD, r"norm\.weight"),
        forbidden_keys=(*NOT_PLAIN, r"fc_norm\.weight"),
        branches={"encoder": Branch(PLAIN, VIT_ROLES)},
    ),
    Format(
        name="dino",
        description="DINO training checkpoint; the official evaluation takes the teacher",
        family="vit",
        required_keys=(r"backbone\." + BLOCKS,),
        matches=lambda checkpoint, group: not _is_ibot(checkpoint),
        branches=DINO_BRANCHES,
        interpolation="dino",
    ),
    Format(
        name="ibot",
        description="iBOT training checkpoint; the official evaluation takes the teacher",
        family="vit",
        required_keys=(r"backbone\." + BLOCKS,),
        matches=lambda checkpoint, group: _is_ibot(checkpoint),
        branches=DINO_BRANCHES,
        interpolation="dino",
    ),
    Format(
        name="dino_backbone",
        description="DINO backbone file: a flat state dict without head",
        family="vit",
        state_dict_paths=("",),
        required_keys=(BLOCKS, r"norm\.weight"),
        forbidden_keys=(*NOT_PLAIN, HEAD, r"fc_norm\.weight", r".*decoder.*"),
        branches={"encoder": Branch(PLAIN, VIT_ROLES)},
        matches=lambda checkpoint, group: checkpoint.path.suffix != ".safetensors",
        interpolation="dino",
    ),
    Format(
        name="ibot_backbone",
        description='iBOT\'s extracted backbone: {"state_dict": names without prefix or head}',
        family="vit",
        state_dict_paths=("state_dict",),
        required_keys=(BLOCKS, r"norm\.weight"),
        forbidden_keys=(*NOT_PLAIN, HEAD, r"fc_norm\.weight"),
        branches={"encoder": Branch((*PLAIN, (r"masked_embed", None)), VIT_ROLES)},
        interpolation="dino",
    ),
    Format(
        name="timm",
        description="timm VisionTransformer, flat or in a training checkpoint",
        family="vit",
        state_dict_paths=("state_dict", ""),
        required_keys=(BLOCKS,),
        forbidden_keys=NOT_PLAIN,
        matches=lambda checkpoint, group: (
            HEAD.replace("\\", "") in checkpoint.state_dicts[group]
            or "fc_norm.weight" in checkpoint.state_dicts[group]
            or (group == "" and checkpoint.path.suffix == ".safetensors")
        ),
        branches={"encoder": Branch(PLAIN, VIT_ROLES), "ema": Branch(PLAIN, VIT_ROLES, "state_dict_ema")},
        normalization=HALF,
        interpolation="bicubic_antialias",
        pos_embed_may_lack_prefix=True,
        read_semantics=timm_semantics,
    ),
)


def _is_ibot(checkpoint: Checkpoint) -> bool:
    keys = [key for name in ("teacher", "student") for key in checkpoint.state_dicts.get(name, {})]
    return any(
        key.startswith(("backbone.masked_embed", "head.mlp2", "head.last_layer2", "head2.")) for key in keys
    ) or any("shared_head" in name for name in checkpoint.settings)
