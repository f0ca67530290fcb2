"""SiameseIM's pretraining checkpoint, the released one and ours: {"model": state dict, "epoch", "args"}, ours with
"config".

The target (EMA) branch has no position embedding of its own and uses the online one; neither branch ends in a norm.
"""

from evaluate.checkpoints.formats.table import VIT_ROLES, Branch, Format, Rows, drop

BLOCK = r"blocks\.(\d+)\.(norm1|attn\.qkv|attn\.proj|norm2|mlp\.fc1|mlp\.fc2)\.(weight|bias)"
HEADS = drop(
    r"(mm_)?mask_token",
    r"(mm_)?decoder_embed\.(weight|bias)",
    r"decoder_(pred|pos_mlp)\.(weight|bias|\d\.(weight|bias))",
    r"decoder_pos_embed",
    r"(mm_)?(projector|predictor)_decoder_blocks\..+",
    r"(student|teacher)_norm\..+",
)
ONLINE: Rows = (
    (r"(cls_token|pos_embed)", r"\1"),
    (r"patch_embed\.proj\.(weight|bias)", r"patch_embed.proj.\1"),
    (BLOCK, r"blocks.\1.\2.\3"),
    (r"mm_cls_token", None),
    (r"mm_patch_embed\.proj\.(weight|bias)", None),
    ("mm_" + BLOCK, None),
    *HEADS,
)
TARGET: Rows = (
    (r"pos_embed", "pos_embed"),
    (r"mm_cls_token", "cls_token"),
    (r"mm_patch_embed\.proj\.(weight|bias)", r"patch_embed.proj.\1"),
    ("mm_" + BLOCK, r"blocks.\1.\2.\3"),
    (r"cls_token", None),
    (r"patch_embed\.proj\.(weight|bias)", None),
    (BLOCK, None),
    *HEADS,
)
TARGET_ROLES = {role: "mm_" + name for role, name in VIT_ROLES.items() if role not in ("pos", "norm")}

FORMATS = (
    Format(
        name="siameseim",
        description="SiameseIM pretraining checkpoint",
        family="vit",
        state_dict_paths=("model", ""),
        required_keys=(r"mm_blocks\.\d+\.norm1\.weight",),
        branches={"online": Branch(ONLINE, VIT_ROLES), "target": Branch(TARGET, {**TARGET_ROLES, "pos": "pos_embed"})},
        pooling="mean",
    ),
)
