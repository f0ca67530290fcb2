"""Our names of the parameters of detectron2's ViTDet Mask R-CNN and of mmseg's MAE backbone."""

import re

DETECTRON2_NAMES = (
    (r"backbone\.net\.", "backbone."),
    (r"backbone\.simfp_2\.", "neck.levels.0."),
    (r"backbone\.simfp_3\.", "neck.levels.1."),
    (r"backbone\.simfp_4\.", "neck.levels.2."),
    (r"backbone\.simfp_5\.", "neck.levels.3."),
    (r"proposal_generator\.rpn_head\.conv\.conv(\d)\.", r"rpn_head.rpn_conv.\1.conv."),
    (r"proposal_generator\.rpn_head\.objectness_logits\.", "rpn_head.rpn_cls."),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.", "rpn_head.rpn_reg."),
    (r"roi_heads\.box_head\.conv(\d)\.norm\.", r"roi_head.bbox_head.shared_convs.\1.ln."),
    (r"roi_heads\.box_head\.conv(\d)\.", r"roi_head.bbox_head.shared_convs.\1.conv."),
    (r"roi_heads\.box_head\.fc1\.", "roi_head.bbox_head.shared_fcs.0."),
    (r"roi_heads\.box_predictor\.cls_score\.", "roi_head.bbox_head.fc_cls."),
    (r"roi_heads\.box_predictor\.bbox_pred\.", "roi_head.bbox_head.fc_reg."),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.norm\.", r"roi_head.mask_head.convs.\1.ln."),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.", r"roi_head.mask_head.convs.\1.conv."),
    (r"roi_heads\.mask_head\.deconv\.", "roi_head.mask_head.upsample."),
    (r"roi_heads\.mask_head\.predictor\.", "roi_head.mask_head.conv_logits."),
)


def detectron2_name(name: str) -> str:
    """Our name of a parameter of detectron2's ViTDet, whose heads count their convolutions from 1.

    Raises KeyError for another name.
    """
    for pattern, ours in DETECTRON2_NAMES:
        match = re.match(pattern, name)
        if match:
            number = match.expand(ours)
            if "roi_heads" in pattern and match.groups():
                number = match.expand(ours.replace(r"\1", str(int(match[1]) - 1)))
            return number + name[match.end() :]
    raise KeyError(name)


MMSEG_NAMES = (
    (r"^layers\.", "blocks."),
    (r"patch_embed\.projection", "patch_embed.proj"),
    (r"\.gamma_(\d)$", r".ls\1.gamma"),
    (r"\.ln(\d)\.", r".norm\1."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"^ln1\.", "norm."),
)


def mmseg_name(name: str) -> str:
    """Our name of a parameter of mmseg's MAE backbone."""
    for pattern, ours in MMSEG_NAMES:
        name = re.sub(pattern, ours, name)
    return name
