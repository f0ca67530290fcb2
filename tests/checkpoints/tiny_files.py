"""Tiny files of every format, made from what its roles say."""

import torch
from timm.models.resnet import Bottleneck, ResNet

from evaluate.checkpoints import formats

WIDTH, DEPTH, PATCH, SIDE = 128, 2, 8, 2
# what a real file of the format has besides its encoder, as far as recognition needs it: key to shape
EXTRAS = {
    "siameseim": {"mask_token": (1, 1, WIDTH), "decoder_pos_mlp.weight": (WIDTH, 2 * WIDTH)},
    "mae": {"mask_token": (1, 1, WIDTH), "decoder_blocks.0.norm1.weight": (WIDTH,)},
    "finetuned": {"fc_norm.weight": (WIDTH,), "fc_norm.bias": (WIDTH,), "head.weight": (5, WIDTH)},
    "moco_v3_linear": {"head.weight": (5, WIDTH), "head.bias": (5,)},
    "dinov2": {"mask_token": (1, WIDTH)},
    "dinov2_training": {"dino_head.mlp.0.weight": (4, 4), "ibot_head.mlp.0.weight": (4, 4)},
    "deit": {"head.weight": (5, WIDTH), "head.bias": (5,)},
    "ibot": {"backbone.masked_embed": (1, WIDTH)},
    "timm": {"head.weight": (5, WIDTH), "head.bias": (5,)},
    "moco_v3_vit": {"base_encoder.head.0.weight": (4, WIDTH), "predictor.0.weight": (4, 4)},
    "moco_v3_resnet": {"base_encoder.fc.0.weight": (4, 4), "predictor.0.weight": (4, 4)},
    "beit": {"mask_token": (1, 1, WIDTH), "lm_head.weight": (9, WIDTH), "rel_pos_bias.relative_position_index": (5, 5)},
    "beit_blocks": {"head.weight": (5, WIDTH)},
    "clip_openai": {
        "visual.proj": (WIDTH, 4),
        "input_resolution": (),
        "vocab_size": (),
        "text_projection": (4, 4),
        "ln_final.bias": (4,),
    },
    "open_clip": {"visual.proj": (WIDTH, 4), "logit_scale": (), "token_embedding.weight": (9, 4)},
    "open_clip_timm": {"visual.head.proj.weight": (4, WIDTH), "text.transformer.resblocks.0.ln_1.weight": (4,)},
    "hf_vit_mae": {"decoder.mask_token": (1, 1, 4), "decoder.decoder_norm.bias": (4,)},
    "hf_vit_mae_5": {"decoder.mask_token": (1, 1, 4), "decoder.decoder_norm.bias": (4,)},
    "hf_vit": {"classifier.weight": (5, WIDTH)},
    "hf_vit_model": {"pooler.dense.weight": (WIDTH, WIDTH), "pooler.dense.bias": (WIDTH,)},
    "hf_vit_model_5": {"pooler.dense.weight": (WIDTH, WIDTH), "pooler.dense.bias": (WIDTH,)},
    "hf_clip": {
        "visual_projection.weight": (4, WIDTH),
        "text_model.final_layer_norm.weight": (4,),
        "vision_model.embeddings.position_ids": (1, 5),
    },
    "mmpretrain_vit": {"neck.decoder_pred.weight": (4, 4), "data_preprocessor.mean": (3,)},
    "mmpretrain_resnet": {"neck.fc0.weight": (4, 4)},
    "torchvision": {"fc.weight": (5, 4)},
    "torchvision_training": {"fc.weight": (5, 4)},
    "simclr_converted": {"fc.weight": (5, 4)},
    "moco": {"queue": (4, 9), "encoder_q.fc.0.weight": (4, 4)},
    "simsiam": {"encoder.fc.0.weight": (4, 4), "predictor.0.weight": (4, 4)},
    "swav": {"projection_head.0.weight": (4, 4), "prototypes.weight": (9, 4)},
    "solo_learn": {"projector.0.weight": (4, 4), "classifier.weight": (5, 4)},
    "solo_learn_early": {"projector.0.weight": (4, 4), "classifier.weight": (5, 4)},
    "simclr_sthalles": {"backbone.fc.0.weight": (4, 4)},
    "barlow_twins": {"projector.0.weight": (4, 4)},
    "byol_sthalles": {"projetion.net.0.weight": (4, 4)},
    "lightly": {"projection_head.layers.0.weight": (4, 4)},
}
# groups whose first place is ambiguous or shared: where this test puts the state dict
GROUPS = {"beit": "module", "beit_blocks": "model", "siameseim": "model", "timm": ""}
NO_FINAL_NORM = ("siameseim", "finetuned", "mae_no_norm")
CHARACTERS = {
    "cls": (1, 1, WIDTH),
    "pos": (1, SIDE**2 + 1, WIDTH),
    "registers": (1, 4, WIDTH),
    "scale1": (WIDTH,),
    "scale2": (WIDTH,),
    "q_bias": (WIDTH,),
    "v_bias": (WIDTH,),
}
LINEAR = {"qkv": (3 * WIDTH, WIDTH), "proj": (WIDTH, WIDTH), "fc1": (4 * WIDTH, WIDTH), "fc2": (WIDTH, 4 * WIDTH)}
LINEAR |= {role: (WIDTH, WIDTH) for role in "qkv"}


def tiny_vit(known: formats.Format, roles: dict[str, str], seed: int) -> dict[str, torch.Tensor]:
    """A ViT of two blocks under the names that the format's roles give."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...], scale: float = 0.1) -> torch.Tensor:
        return scale * torch.randn(shape, generator=generator)

    clip = known.transform is not None and known.transform.__name__ == "batch_dimension"
    pre_norm = clip
    state: dict[str, torch.Tensor] = {}
    for role, template in roles.items():
        if role in ("scale1", "scale2") and "beit" not in known.name and "dinov2" not in known.name:
            continue
        if role == "registers" and "dinov2" not in known.name:
            continue
        if (
            role == "pos"
            and "beit" in known.name
            or role == "pre"
            and not pre_norm
            or role == "norm"
            and known.name in NO_FINAL_NORM
        ):
            continue
        for block in range(DEPTH if "{i}" in template else 1):
            name = template.replace("{i}", str(block))
            if role == "patch":
                state[name.replace("{p}", "weight")] = draw((WIDTH, 3, PATCH, PATCH))
                if not pre_norm:
                    state[name.replace("{p}", "bias")] = draw((WIDTH,))
            elif role in ("norm", "pre", "norm1", "norm2"):
                state[name.replace("{p}", "weight")] = 1 + draw((WIDTH,))
                state[name.replace("{p}", "bias")] = draw((WIDTH,))
            elif role in LINEAR:
                state[name.replace("{p}", "weight")] = draw(LINEAR[role])
                if "{p}" in name and not (role == "qkv" and "q_bias" in roles):
                    state[name.replace("{p}", "bias")] = draw(LINEAR[role][:1])
            elif role == "bias_table":
                state[name] = draw(((2 * SIDE - 1) ** 2 + 3, WIDTH // 64))
            else:
                state[name] = draw(CHARACTERS[role])
            if clip and role in ("cls", "pos"):
                state[name] = state[name].squeeze(0).squeeze(0)
    return state


def tiny_resnet(roles: dict[str, str], seed: int) -> dict[str, torch.Tensor]:
    """A ResNet of one bottleneck a stage, likewise."""
    torch.manual_seed(seed)
    model = ResNet(Bottleneck, (1, 1, 1, 1), 0, base_width=8)
    state = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            tensor = 0.1 * torch.randn_like(tensor)
        stem, _, rest = name.partition(".")
        state[f"{roles[stem]}.{rest}"] = tensor
    return state


def checkpoint_of(known: formats.Format) -> dict[str, object]:
    """The whole object: every branch, the extras, and an entry that says it was trained."""
    content: dict[str, object] = {}
    for seed, branch in enumerate(known.branches.values()):
        group = branch.state_dict_path or GROUPS.get(known.name, known.state_dict_paths[0])
        roles = dict(branch.roles)
        made = tiny_vit(known, roles, seed) if known.family == "vit" else tiny_resnet(roles, seed)
        node = content
        for part in filter(None, group.split("/")):
            node = node.setdefault(part, {})  # type: ignore[assignment]
        node.update({**made, **{key: value for key, value in node.items() if key == "pos_embed"}})
        node.update({key: torch.zeros(shape) for key, shape in EXTRAS.get(known.name, {}).items()})
    if known.name != "simclr_converted" and any(
        content.get(name) is not None for name in ("state_dict", "model", "module")
    ):
        content["epoch"] = 7
    if known.name == "moco_v3_linear":
        content |= {"arch": "vit_small", "optimizer": {}, "best_acc1": 70.0}
    if known.name == "mae_no_norm":
        content["encoder_spec"] = {"num_heads": WIDTH // 64}
    return content
