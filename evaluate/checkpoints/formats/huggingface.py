"""Hugging Face transformers: ViT and DINO, ViT-MAE, CLIP. ``config.json`` beside the file is obeyed; without it, the
classes' defaults.

LayerNorm eps is 1e-12 for ViT and 1e-5 for CLIP by default. Query, key and value are separate. transformers 5 writes
``layers.N.attention.q_proj`` where earlier releases write ``encoder.layer.N.attention.attention.query``; both are read.
"""

from typing import Any

from evaluate.checkpoints.formats.clip import batch_dimension
from evaluate.checkpoints.formats.table import CLIP, HALF, Branch, Format, Rows, drop, with_prefix

PREFIX = "<prefix>"  # replaced by the model's own: "vit." in a model with a head, nothing in a bare one
WRITTEN: Rows = (
    (PREFIX + r"embeddings\.cls_token", "cls_token"),
    (PREFIX + r"embeddings\.position_embeddings", "pos_embed"),
    (PREFIX + r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (PREFIX + r"encoder\.layer\.(\d+)\.layernorm_before\.(weight|bias)", r"blocks.\1.norm1.\2"),
    (PREFIX + r"encoder\.layer\.(\d+)\.layernorm_after\.(weight|bias)", r"blocks.\1.norm2.\2"),
    (PREFIX + r"encoder\.layer\.(\d+)\.attention\.attention\.query\.(weight|bias)", r"blocks.\1.attn.qkv.\2#0"),
    (PREFIX + r"encoder\.layer\.(\d+)\.attention\.attention\.key\.(weight|bias)", r"blocks.\1.attn.qkv.\2#1"),
    (PREFIX + r"encoder\.layer\.(\d+)\.attention\.attention\.value\.(weight|bias)", r"blocks.\1.attn.qkv.\2#2"),
    (PREFIX + r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    (PREFIX + r"encoder\.layer\.(\d+)\.intermediate\.dense\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (PREFIX + r"encoder\.layer\.(\d+)\.output\.dense\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (PREFIX + r"layernorm\.(weight|bias)", r"norm.\1"),
    *drop(
        r"decoder\..+",
        PREFIX + r"pooler\.dense\.(weight|bias)",
        r"classifier\.(weight|bias)",
        PREFIX + r"embeddings\.mask_token",
    ),
)
IN_MEMORY: Rows = (
    (PREFIX + r"embeddings\.cls_token", "cls_token"),
    (PREFIX + r"embeddings\.position_embeddings", "pos_embed"),
    (PREFIX + r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (PREFIX + r"layers\.(\d+)\.layernorm_before\.(weight|bias)", r"blocks.\1.norm1.\2"),
    (PREFIX + r"layers\.(\d+)\.layernorm_after\.(weight|bias)", r"blocks.\1.norm2.\2"),
    (PREFIX + r"layers\.(\d+)\.attention\.q_proj\.(weight|bias)", r"blocks.\1.attn.qkv.\2#0"),
    (PREFIX + r"layers\.(\d+)\.attention\.k_proj\.(weight|bias)", r"blocks.\1.attn.qkv.\2#1"),
    (PREFIX + r"layers\.(\d+)\.attention\.v_proj\.(weight|bias)", r"blocks.\1.attn.qkv.\2#2"),
    (PREFIX + r"layers\.(\d+)\.attention\.(?:o_proj|out_proj)\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    (PREFIX + r"layers\.(\d+)\.mlp\.(fc1|fc2)\.(weight|bias)", r"blocks.\1.mlp.\2.\3"),
    (PREFIX + r"layernorm\.(weight|bias)", r"norm.\1"),
    *drop(
        r"decoder\..+",
        PREFIX + r"pooler\.dense\.(weight|bias)",
        r"classifier\.(weight|bias)",
        PREFIX + r"embeddings\.mask_token",
    ),
)
TOWER: Rows = (
    (r"vision_model\.embeddings\.class_embedding", "cls_token"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "pos_embed"),
    (r"vision_model\.embeddings\.patch_embedding\.weight", "patch_embed.proj.weight"),
    (r"vision_model\.pre_layrnorm\.(weight|bias)", r"norm_pre.\1"),
    (r"vision_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.(weight|bias)", r"blocks.\1.norm\2.\3"),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", r"blocks.\1.attn.qkv.\2#0"),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.k_proj\.(weight|bias)", r"blocks.\1.attn.qkv.\2#1"),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.v_proj\.(weight|bias)", r"blocks.\1.attn.qkv.\2#2"),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    (r"vision_model\.encoder\.layers\.(\d+)\.mlp\.(fc1|fc2)\.(weight|bias)", r"blocks.\1.mlp.\2.\3"),
    (r"vision_model\.post_layernorm\.(weight|bias)", r"norm.\1"),
    *drop(r"(vision|text)_model\.embeddings\.position_ids", r"text_model\.(?!embeddings\.position_ids).+"),
    *drop(r"(visual|text)_projection\.(weight|bias)", r"logit_scale", r"classifier\.(weight|bias)"),
)
WRITTEN_BLOCK, MEMORY_BLOCK, TOWER_BLOCK = "encoder.layer.{i}.", "layers.{i}.", "vision_model.encoder.layers.{i}."
COMMON_ROLES = {
    "patch": "embeddings.patch_embeddings.projection.{p}",
    "cls": "embeddings.cls_token",
    "pos": "embeddings.position_embeddings",
    "norm": "layernorm.{p}",
}
WRITTEN_ROLES = {
    **COMMON_ROLES,
    "norm1": WRITTEN_BLOCK + "layernorm_before.{p}",
    "norm2": WRITTEN_BLOCK + "layernorm_after.{p}",
    "q": WRITTEN_BLOCK + "attention.attention.query.{p}",
    "k": WRITTEN_BLOCK + "attention.attention.key.{p}",
    "v": WRITTEN_BLOCK + "attention.attention.value.{p}",
    "proj": WRITTEN_BLOCK + "attention.output.dense.{p}",
    "fc1": WRITTEN_BLOCK + "intermediate.dense.{p}",
    "fc2": WRITTEN_BLOCK + "output.dense.{p}",
}
MEMORY_ROLES = {
    **COMMON_ROLES,
    "norm1": MEMORY_BLOCK + "layernorm_before.{p}",
    "norm2": MEMORY_BLOCK + "layernorm_after.{p}",
    "q": MEMORY_BLOCK + "attention.q_proj.{p}",
    "k": MEMORY_BLOCK + "attention.k_proj.{p}",
    "v": MEMORY_BLOCK + "attention.v_proj.{p}",
    "proj": MEMORY_BLOCK + "attention.o_proj.{p}",
    "fc1": MEMORY_BLOCK + "mlp.fc1.{p}",
    "fc2": MEMORY_BLOCK + "mlp.fc2.{p}",
}
TOWER_ROLES = {
    "patch": "vision_model.embeddings.patch_embedding.{p}",
    "cls": "vision_model.embeddings.class_embedding",
    "pos": "vision_model.embeddings.position_embedding.weight",
    "pre": "vision_model.pre_layrnorm.{p}",
    "norm": "vision_model.post_layernorm.{p}",
    "norm1": TOWER_BLOCK + "layer_norm1.{p}",
    "norm2": TOWER_BLOCK + "layer_norm2.{p}",
    "q": TOWER_BLOCK + "self_attn.q_proj.{p}",
    "k": TOWER_BLOCK + "self_attn.k_proj.{p}",
    "v": TOWER_BLOCK + "self_attn.v_proj.{p}",
    "proj": TOWER_BLOCK + "self_attn.out_proj.{p}",
    "fc1": TOWER_BLOCK + "mlp.fc1.{p}",
    "fc2": TOWER_BLOCK + "mlp.fc2.{p}",
}


def _vit(name: str, description: str, prefix: str, **extra: Any) -> tuple[Format, Format]:
    """The format as written to files, and as transformers 5 names it in memory."""
    common = {
        "family": "vit",
        "state_dict_paths": ("", "state_dict", "model"),
        "layer_norm_eps": 1e-12,
        "assumes": ("num_heads", "layer_norm_eps", "activation", "mean"),
        "naming": "hf",
        **extra,
    }
    required, start = common.pop("required_keys", ()), prefix.replace(".", r"\.")
    written, in_memory = (
        tuple((pattern.replace(PREFIX, start), timm) for pattern, timm in rows) for rows in (WRITTEN, IN_MEMORY)
    )
    return (
        Format(
            name=name,
            description=description,
            required_keys=(start + r"encoder\.layer\.\d+\.layernorm_before\.weight", *required),
            branches={"encoder": Branch(written, with_prefix(prefix, WRITTEN_ROLES))},
            **common,
        ),
        Format(
            name=f"{name}_5",
            description=f"{description}, names of transformers 5",
            required_keys=(start + r"layers\.\d+\.layernorm_before\.weight", *required),
            branches={"encoder": Branch(in_memory, with_prefix(prefix, MEMORY_ROLES))},
            **common,
        ),
    )


FORMATS = (
    *_vit("hf_vit_mae", "Hugging Face ViT-MAE", "vit.", required_keys=(r"decoder\..+",)),
    *_vit("hf_vit", "Hugging Face ViT with a head", "vit.", forbidden_keys=(r"decoder\..+",), normalization=HALF),
    *_vit(
        "hf_vit_model",
        "Hugging Face ViT with a pooler",
        "",
        required_keys=(r"pooler\.dense\.weight",),
        normalization=HALF,
    ),
    *_vit("hf_dino", "Hugging Face ViT without pooler, as DINO's", "", forbidden_keys=(r"pooler\.dense\..+",)),
    Format(
        name="hf_clip",
        description="Hugging Face CLIP, vision model",
        family="vit",
        state_dict_paths=("", "state_dict", "model"),
        required_keys=(
            r"vision_model\.encoder\.layers\.\d+\.self_attn\.q_proj\.weight",
            r"vision_model\.pre_layrnorm\.weight",
        ),
        branches={"vision": Branch(TOWER, TOWER_ROLES)},
        normalization=CLIP,
        layer_norm_eps=1e-5,
        activation="quick_gelu",
        transform=batch_dimension,
        assumes=("num_heads", "layer_norm_eps", "activation", "mean"),
        naming="hf",
    ),
)
