"""A tiny encoder and a small dense world (VOC too), made once for all mm tests."""

from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from evaluate.data import toy_dense
from evaluate.encoder.model import Encoder
from evaluate.encoder.spec import EncoderSpec
from evaluate.mm import operators
from tests.mm.voc_world import make_voc

operators.provide()  # before any test imports mmdet
torch.set_num_threads(1)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def tiny_encoder(seed: int = 0, **changes) -> Encoder:
    """A randomly initialized ViT of the demo's size; norms, biases and scales are drawn too, so that each shows."""
    from evaluate.encoder.model import build

    spec = EncoderSpec(**{
        "family": "vit", "img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "mean": MEAN, "std": STD,
        "class_token": True, "final_norm": True, **changes,
    })  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in build(spec).state_dict().items():
        centre = 1.0 if "norm" in name and name.endswith("weight") or "gamma" in name else 0.0
        state[name] = centre + 0.1 * torch.randn(value.shape, generator=generator)
    return Encoder(spec, state)


def tiny_resnet() -> Encoder:
    """A ResNet of one basic block a stage."""
    from timm.models.resnet import BasicBlock, ResNet

    torch.manual_seed(0)
    model = ResNet(BasicBlock, (1, 1, 1, 1), 0)
    spec = EncoderSpec(
        family="resnet", embed_dim=512, depth=4, patch_size=32, mean=MEAN, std=STD, layers=(1, 1, 1, 1), block="basic", pooling="mean"
    )
    return Encoder(spec, model.state_dict())


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=0)
    spec = EncoderSpec(
        family="vit", img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, mean=MEAN, std=STD, class_token=True, final_norm=True
    )
    return Encoder(spec, model.state_dict())


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    toy_dense.make(root, seed=0, train_images=24, val_images=8)
    make_voc(root, root)
    return root
