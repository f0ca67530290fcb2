"""How much memory of a GPU an encoder takes, by its spec alone (no torch): the peak of live tensors, in GiB.

A block keeps so many bytes of each token and channel; that was read off the pretended GPU (tests/gpu/pretended), whose
peaks these formulas give to a tenth. A card needs 10 to 15 % more.
"""

import math

from evaluate.encoder.spec import EncoderSpec

GIB = 2**30
TRAINED = 34  # bytes of a token and channel that a block keeps in 16 bits until the backward pass
PASSED = {16: 36, 32: 55}  # the same where only one block's are there at a time, by bits of the arithmetic
TRAINED_MAP, PASSED_STEM = 4, {16: 6, 32: 12}  # bytes of a value of a ResNet: kept of each map, and of its first
OPTIMIZED = 16  # bytes of a weight with its gradient and AdamW's two moments
WEIGHT = 4


def weights(spec: EncoderSpec) -> int:
    """How many there are."""
    if spec.family not in ("vit", "resnet"):
        return round(spec.counts.get("weights", 0))
    if spec.family != "vit":
        return round(sum(inputs * outputs for _, inputs, outputs in _convolutions(spec)))
    width = spec.embed_dim
    block = width * width * (4 + 2 * spec.mlp_ratio)
    return round(spec.depth * block + width * (3 * spec.patch_size**2 + _tokens(spec, spec.img_size)))


def of_training(spec: EncoderSpec, side: int, images: int) -> float:
    """GiB of a training step of so many images of ``side`` pixels at once, in 16 bits."""
    vit = spec.family == "vit"
    tokens = spec.depth * _tokens(spec, side) * spec.embed_dim
    kept = TRAINED * tokens if vit else TRAINED_MAP * _values(spec, side)[0]
    return (OPTIMIZED * weights(spec) + kept * images) / GIB


def of_passing(spec: EncoderSpec, side: int, images: int, bits: int = 16) -> float:
    """GiB of a forward pass alone."""
    vit = spec.family == "vit"
    tokens = _tokens(spec, side) * spec.embed_dim
    taken = PASSED[bits] * tokens if vit else PASSED_STEM[bits] * _values(spec, side)[1]
    return (WEIGHT * weights(spec) + taken * images) / GIB


def _tokens(spec: EncoderSpec, side: int) -> int:
    return math.ceil(side / spec.patch_size) ** 2 + spec.registers + spec.class_token


def _convolutions(spec: EncoderSpec) -> list[tuple[float, float, int]]:
    """Of a ResNet: by which factor a map's side is smaller than the image's, weights for each output channel, and
    output channels.
    """
    found: list[tuple[float, float, int]] = [(2, 7 * 7 * 3, 64)]
    inputs = 64
    for stage, blocks in enumerate(spec.layers):
        width, shrunk = 64 * 2**stage, 4 * 2**stage
        outputs = width * (4 if spec.block == "bottleneck" else 1)
        inner = width * spec.base_width // 64 * spec.cardinality
        for number in range(blocks):
            before = shrunk if number or not stage else shrunk / 2  # the stride is in the 3x3 convolution
            if spec.block == "basic":
                found += [(shrunk, 9 * inputs, width), (shrunk, 9 * width, width)]
            else:
                found += [(before, inputs, inner), (shrunk, 9 * inner / spec.cardinality, inner)]
                found.append((shrunk, inner, outputs))
            if inputs != outputs:
                found.append((shrunk, inputs, outputs))
            inputs = outputs
    return found


def _values(spec: EncoderSpec, side: int) -> tuple[float, float]:
    """How many values all maps of an encoder that is no ViT have, and the largest of them."""
    if spec.family != "resnet":
        scale = (side / spec.img_size) ** 2
        return scale * spec.counts.get("values", 0), scale * spec.counts.get("largest", 0)
    maps = [(side / shrunk) ** 2 * channels for shrunk, _, channels in _convolutions(spec)]
    return sum(maps), max(maps)
