"""How much memory of a GPU a dense training is predicted to take (no torch): the peak of live tensors, in GiB.

Read off the pretended GPU (docs/gpus.md): ViTDet-B takes 4.6 for 1 image of 1024 px, 26.2 for 8, and 7.0 for 4
with gradient checkpointing; UPerNet 26.1 with a ViT-B and 41.7 with a ViT-L for 16 crops of 512 px.
"""

from evaluate.encoder import memory
from evaluate.encoder.spec import EncoderSpec

FIXED, AN_IMAGE, AN_IMAGE_CHECKPOINTED = 1.5, 3.09, 1.4  # of ViTDet-B
A_CROP = 1.25  # of UPerNet's heads, at a ViT-B's width
HEADS = {"vitdet": 25e6, "upernet": 70e6}  # weights, with 256 channels and with 768


def of_detection(spec: EncoderSpec, side: int, images: int, checkpointing: bool = False) -> float:
    """GiB of a training step of ViTDet.

    Other encoders than ViT-B are scaled by depth x width, which overestimates the heads' part.
    """
    scale = spec.depth * spec.embed_dim / (12 * 768)
    image = AN_IMAGE_CHECKPOINTED if checkpointing else AN_IMAGE
    return scale * (FIXED + images * image * (side / 1024) ** 2)


def of_segmentation(spec: EncoderSpec, side: int, crops: int) -> float:
    """GiB of a training step of UPerNet."""
    heads = A_CROP * (side / 512) ** 2 * spec.embed_dim / 768
    return memory.of_training(spec, side, crops) + crops * heads
