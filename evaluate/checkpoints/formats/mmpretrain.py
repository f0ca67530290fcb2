"""mmpretrain and MMSelfSup: {"state_dict": backbone.*}, with neck, head and, for methods with two branches, a target of
its own."""

from evaluate.checkpoints.formats.table import (
    EVERYTHING,
    RESNET_ROLES,
    Branch,
    Format,
    Rows,
    drop,
    resnet_rows,
    with_prefix,
)

HEADS = drop(
    r"(neck|head|target_generator|teacher|data_preprocessor|projector|predictor|encoder_k|momentum_encoder|queue.*)\..+",
    r"queue|queue_ptr|target_net\..+|target_neck\..+|backbone\.mask_token|backbone\.fc\..+",
)
ROWS: Rows = (
    (r"backbone\.(cls_token|pos_embed)", r"\1"),
    (r"backbone\.patch_embed\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"backbone\.pre_norm\.(weight|bias)", r"norm_pre.\1"),
    (r"backbone\.layers\.(\d+)\.(?:ln|norm)([12])\.(weight|bias)", r"blocks.\1.norm\2.\3"),
    (r"backbone\.layers\.(\d+)\.attn\.(qkv|proj)\.(weight|bias)", r"blocks.\1.attn.\2.\3"),
    (r"backbone\.layers\.(\d+)\.ffn\.layers\.0\.0\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (r"backbone\.layers\.(\d+)\.ffn\.layers\.1\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (r"backbone\.(?:ln1|norm1|norm)\.(weight|bias)", r"norm.\1"),
    (r"backbone\.(?:ln2|fc_norm)\.(weight|bias)", r"fc_norm.\1"),
    *HEADS,
)
BLOCK = "backbone.layers.{i}."
ROLES = {
    "patch": "backbone.patch_embed.projection.{p}",
    "cls": "backbone.cls_token",
    "pos": "backbone.pos_embed",
    "pre": "backbone.pre_norm.{p}",
    "norm1": BLOCK + "ln1.{p}",
    "norm2": BLOCK + "ln2.{p}",
    "qkv": BLOCK + "attn.qkv.{p}",
    "proj": BLOCK + "attn.proj.{p}",
    "fc1": BLOCK + "ffn.layers.0.0.{p}",
    "fc2": BLOCK + "ffn.layers.1.{p}",
    "norm": "backbone.ln1.{p}",
}
OLDER_ROLES = {**ROLES, "norm1": BLOCK + "norm1.{p}", "norm2": BLOCK + "norm2.{p}", "norm": "backbone.norm1.{p}"}

FORMATS = (
    Format(
        name="mmpretrain_vit",
        description="mmpretrain or MMSelfSup ViT",
        family="vit",
        state_dict_paths=("state_dict", ""),
        required_keys=(r"backbone\.layers\.\d+\.ffn\.layers\.0\.0\.weight", r"backbone\.layers\.\d+\.ln1\.weight"),
        branches={"backbone": Branch(ROWS, ROLES)},
        assumes=EVERYTHING,
    ),
    Format(
        name="mmselfsup_vit",
        description="MMSelfSup ViT of an early release (norm1 for ln1)",
        family="vit",
        state_dict_paths=("state_dict", ""),
        required_keys=(r"backbone\.layers\.\d+\.ffn\.layers\.0\.0\.weight", r"backbone\.layers\.\d+\.norm1\.weight"),
        branches={"backbone": Branch(ROWS, OLDER_ROLES)},
        assumes=EVERYTHING,
    ),
    Format(
        name="mmpretrain_resnet",
        description="mmpretrain or MMSelfSup ResNet",
        family="resnet",
        state_dict_paths=("state_dict",),
        required_keys=(r"backbone\.conv1\.weight", r"(neck|head|data_preprocessor)\..+"),
        branches={"backbone": Branch((*resnet_rows(r"backbone\."), *HEADS), with_prefix("backbone.", RESNET_ROLES))},
        pooling="mean",
        assumes=("mean",),
    ),
)
