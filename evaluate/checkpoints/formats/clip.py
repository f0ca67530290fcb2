"""CLIP's visual tower: OpenAI's file (TorchScript archive or state dict), open_clip, and open_clip with a timm trunk.

LayerNorm eps 1e-5, a norm before the blocks, a patch embedding without bias. OpenAI's tower uses QuickGELU; open_clip's
uses GELU unless its configuration says quick_gelu.
"""

import torch

from evaluate.checkpoints.formats.table import CLIP, VIT_ROLES, Branch, Format, Rows, State, drop, vit_rows, with_prefix
from evaluate.checkpoints.reader import Checkpoint

TEXT = drop(
    r"(transformer|text|token_embedding|ln_final|text_projection)\..+",
    r"positional_embedding|text_projection|logit_scale|logit_bias|attn_mask|input_resolution|context_length|vocab_size",
)
ROWS: Rows = (
    (r"visual\.class_embedding", "cls_token"),
    (r"visual\.positional_embedding", "pos_embed"),
    (r"visual\.conv1\.weight", "patch_embed.proj.weight"),
    (r"visual\.ln_pre\.(weight|bias)", r"norm_pre.\1"),
    (r"visual\.transformer\.resblocks\.(\d+)\.ln_([12])\.(weight|bias)", r"blocks.\1.norm\2.\3"),
    (r"visual\.transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", r"blocks.\1.attn.qkv.\2"),
    (r"visual\.transformer\.resblocks\.(\d+)\.attn\.out_proj\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    (r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (r"visual\.transformer\.resblocks\.(\d+)\.ls_([12])\.gamma", r"blocks.\1.ls\2.gamma"),
    (r"visual\.ln_post\.(weight|bias)", r"norm.\1"),
    *drop(r"visual\.proj"),
    *TEXT,
)
BLOCK = "visual.transformer.resblocks.{i}."
ROLES = {
    "patch": "visual.conv1.{p}",
    "cls": "visual.class_embedding",
    "pos": "visual.positional_embedding",
    "pre": "visual.ln_pre.{p}",
    "norm1": BLOCK + "ln_1.{p}",
    "qkv": BLOCK + "attn.in_proj_{p}",
    "proj": BLOCK + "attn.out_proj.{p}",
    "norm2": BLOCK + "ln_2.{p}",
    "fc1": BLOCK + "mlp.c_fc.{p}",
    "fc2": BLOCK + "mlp.c_proj.{p}",
    "scale1": BLOCK + "ls_1.gamma",
    "scale2": BLOCK + "ls_2.gamma",
    "norm": "visual.ln_post.{p}",
}
TRUNK: Rows = (*vit_rows(r"visual\.trunk\."), *drop(r"visual\.trunk\.(head|attn_pool)\..+", r"visual\.head\..+"), *TEXT)
SIGNATURE = (r"visual\.class_embedding", r"visual\.transformer\.resblocks\.\d+\.ln_1\.weight")


def batch_dimension(state: State) -> State:
    """Class token (D) to (1, 1, D) and positions (1 + N, D) to (1, 1 + N, D)."""
    state = dict(state)
    if "cls_token" in state and state["cls_token"].dim() == 1:
        state["cls_token"] = state["cls_token"][None, None]
    if "pos_embed" in state and state["pos_embed"].dim() == 2:
        state["pos_embed"] = state["pos_embed"][None]
    return state


def is_openai(checkpoint: Checkpoint, group: str) -> bool:
    """OpenAI's file carries three size entries, or is a model in its mixed precision: half weights, float32 norms."""
    state = checkpoint.state_dicts[group]
    mixed = (
        state["visual.class_embedding"].dtype == torch.float32
        and state.get("visual.conv1.weight", torch.empty(0)).dtype == torch.float16
    )
    return mixed or any(key in state for key in ("input_resolution", "context_length", "vocab_size"))


def read_trunk(state: State) -> dict[str, object]:
    """timm's towers with a norm before the blocks (its CLIP family) have eps 1e-5, the others 1e-6."""
    return {"layer_norm_eps": 1e-5} if "visual.trunk.norm_pre.weight" in state else {}


FORMATS = (
    Format(
        name="clip_openai",
        description="OpenAI CLIP, visual tower",
        family="vit",
        state_dict_paths=("", "state_dict", "model"),
        required_keys=SIGNATURE,
        matches=is_openai,
        branches={"visual": Branch(ROWS, ROLES)},
        normalization=CLIP,
        layer_norm_eps=1e-5,
        activation="quick_gelu",
        naming="open_clip",
        transform=batch_dimension,
    ),
    Format(
        name="open_clip",
        description="open_clip, visual tower",
        family="vit",
        state_dict_paths=("", "state_dict", "model"),
        required_keys=SIGNATURE,
        matches=lambda checkpoint, group: not is_openai(checkpoint, group),
        branches={"visual": Branch(ROWS, ROLES)},
        normalization=CLIP,
        layer_norm_eps=1e-5,
        interpolation="bicubic_antialias",
        transform=batch_dimension,
        assumes=("num_heads", "activation", "mean"),
        naming="open_clip",
    ),
    Format(
        name="open_clip_timm",
        description="open_clip with a timm trunk as visual tower",
        family="vit",
        state_dict_paths=("", "state_dict", "model"),
        required_keys=(r"visual\.trunk\.blocks\.\d+\.norm1\.weight",),
        branches={"visual": Branch(TRUNK, with_prefix("visual.trunk.", VIT_ROLES))},
        normalization=CLIP,
        interpolation="bicubic_antialias",
        read_semantics=read_trunk,
        assumes=("num_heads", "layer_norm_eps", "activation", "mean", "pooling"),
        naming="open_clip",
    ),
)
