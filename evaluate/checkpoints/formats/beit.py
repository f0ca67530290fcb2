"""BEiT: relative position bias, layer scale, query and value biases without a key bias, mean and std 0.5.

The pretraining file shares one table of biases between all blocks; fine-tuned files and timm's have one a block. BEiT
has, as a rule, no position embedding.
"""

from evaluate.checkpoints.formats.table import HALF, IMAGENET, VIT_ROLES, Branch, Format, Rows, State, drop

ROWS: Rows = (
    (r"(cls_token|pos_embed)", r"\1"),
    (r"patch_embed\.proj\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"blocks\.(\d+)\.(norm1|attn\.proj|norm2|mlp\.fc1|mlp\.fc2)\.(weight|bias)", r"blocks.\1.\2.\3"),
    (r"blocks\.(\d+)\.attn\.qkv\.weight", r"blocks.\1.attn.qkv.weight"),
    (r"blocks\.(\d+)\.attn\.(q_bias|v_bias|relative_position_bias_table)", r"blocks.\1.attn.\2"),
    (r"blocks\.(\d+)\.(gamma_1|gamma_2)", r"blocks.\1.\2"),
    (r"rel_pos_bias\.relative_position_bias_table", "rel_pos_bias"),
    (r"(norm|fc_norm)\.(weight|bias)", r"\1.\2"),
    *drop(
        r"(.+\.)?relative_position_index",
        r"mask_token",
        r"(lm_)?head\.(weight|bias)",
        r"cls_pt_layers\..+",
        r"decoder_.+",
    ),
)
ROLES = {
    **{role: name for role, name in VIT_ROLES.items() if role not in ("pre", "registers")},
    "q_bias": "blocks.{i}.attn.q_bias",
    "v_bias": "blocks.{i}.attn.v_bias",
    "scale1": "blocks.{i}.gamma_1",
    "scale2": "blocks.{i}.gamma_2",
    "bias_table": "blocks.{i}.attn.relative_position_bias_table",
}
SHARED = "rel_pos_bias.relative_position_bias_table"


def share_table(state: State) -> State:
    """The shared table copied to every block, as timm's Beit expects; the features are the same."""
    table = state.get("rel_pos_bias")
    if table is None:
        return state
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    copies = {f"blocks.{index}.attn.relative_position_bias_table": table.clone() for index in blocks}
    return {**{name: tensor for name, tensor in state.items() if name != "rel_pos_bias"}, **copies}


def read_tables(state: State) -> dict[str, object]:
    """Heads are the columns of the table of relative positions; only BEiT v2's file has ``cls_pt_layers``."""
    table = next((tensor for name, tensor in state.items() if name.endswith("relative_position_bias_table")), None)
    found: dict[str, object] = {"num_heads": table.shape[1]} if table is not None and table.dim() == 2 else {}
    if any(name.startswith("cls_pt_layers.") for name in state):
        found |= {"mean": IMAGENET[0], "std": IMAGENET[1]}
    return found


def _format(name: str, description: str, signature: str, roles: dict[str, str]) -> Format:
    return Format(
        name=name,
        description=description,
        family="vit",
        state_dict_paths=("model", "module", "state_dict", ""),
        required_keys=(r"blocks\.\d+\.attn\.q_bias", signature),
        branches={"encoder": Branch(ROWS, roles)},
        normalization=HALF,
        assumes=("mean",),
        naming="beit",
        read_semantics=read_tables,
        pooling="mean",
        transform=share_table,
    )


FORMATS = (
    _format(
        "beit",
        "BEiT with one table of relative positions for all blocks",
        r"rel_pos_bias\.relative_position_bias_table",
        {**ROLES, "bias_table": SHARED},
    ),
    _format(
        "beit_blocks",
        "BEiT with a table of relative positions in each block",
        r"blocks\.\d+\.attn\.relative_position_bias_table",
        ROLES,
    ),
)
