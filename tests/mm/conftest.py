"""A tiny encoder and a small dense world (VOC too), made once for all mm tests."""

from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from evaluate.data import toy_dense
from evaluate.encoder.model import Encoder
from evaluate.encoder.spec import EncoderSpec
from evaluate.mm import operators
from tests.factories import MEAN, STD
from tests.worlds import make_voc, make_voc2012

operators.provide()  # before any test imports mmdet
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=0)
    spec = EncoderSpec(
        family="vit",
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=3,
        num_heads=3,
        mean=MEAN,
        std=STD,
        class_token=True,
        final_norm=True,
    )
    return Encoder(spec, model.state_dict())


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    toy_dense.make(root, seed=0, train_images=24, val_images=8)
    make_voc(root, root)
    make_voc2012(root, root)
    return root
