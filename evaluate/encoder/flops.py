"""How many floating-point operations a forward pass of an encoder takes, by its spec alone (no torch).

A product of an (a, b) by a (b, c) matrix counts 2 a b c; what is added, normalized or activated is not counted.
"""

from evaluate.encoder.spec import EncoderSpec

GIGA = 1e9
STEM = 7 * 7 * 3  # inputs of a value of a ResNet's first layer


def forward_gflop(spec: EncoderSpec, side: int, window: int | None = None, whole: int = 4) -> float:
    """GFLOP of one square image of ``side`` pixels.

    Args:
        window: side in tokens of the windows that attention of a ViT stays in, but for ``whole`` blocks (ViTDet).
    """
    if spec.family not in ("vit", "resnet"):
        return spec.counts.get("gflop", 0.0) * (side / spec.img_size) ** 2
    return (_vit(spec, side, window, whole) if spec.is_vit else _resnet(spec, side)) / GIGA


def _vit(spec: EncoderSpec, side: int, window: int | None, whole: int) -> float:
    width = spec.embed_dim
    patches = (-(-side // spec.patch_size)) ** 2
    tokens = patches + spec.registers + spec.class_token
    products = tokens * width * width * (4 + 2 * spec.mlp_ratio)  # of a block: four of attention, two of the MLP
    seen = spec.depth * tokens if window is None else whole * tokens + (spec.depth - whole) * window**2
    embedding = patches * width * 3 * spec.patch_size**2
    return 2 * (spec.depth * products + 2 * tokens * seen * width + embedding)


def _resnet(spec: EncoderSpec, side: int) -> float:
    expansion = 4 if spec.block == "bottleneck" else 1
    total = (side / 2) ** 2 * 64 * STEM
    inputs = 64
    for stage, blocks in enumerate(spec.layers):
        width = 64 * 2**stage
        places, outputs = (side / 4 / 2**stage) ** 2, width * expansion
        inner = width * spec.base_width // 64 * spec.cardinality
        for number in range(blocks):
            if spec.block == "basic":
                total += places * 9 * (inputs * width + width * width)
            else:
                reduced = places if number or not stage else 4 * places  # the stride is in the 3x3 convolution
                total += reduced * inputs * inner + places * (9 * inner * inner / spec.cardinality + inner * outputs)
            if inputs != outputs:
                total += places * inputs * outputs
            inputs = outputs
    return 2 * total
