"""What the tests are made with: tiny encoders, checkpoints, classifiers and environments."""

from dataclasses import replace
from pathlib import Path

import torch
from timm.models.resnet import ResNet, resnet18
from timm.models.vision_transformer import VisionTransformer

from evaluate import finetune, linear_probe
from evaluate.classification import classifier
from evaluate.data.transforms import CenterCrop
from evaluate.encoder.model import Encoder
from evaluate.encoder.spec import EncoderSpec
from evaluate.runtime.env import Env
from tests.worlds import WNIDS

WIDTH, DEPTH, TOKENS = 128, 3, 17


def mae_state(seed: int = 0, depth: int = DEPTH) -> dict[str, torch.Tensor]:
    """A tiny MAE-like ViT's state dict (32 px, patch 8, width 128, 3 blocks unless told, 2 heads), drawn with standard
    deviation 0.1, norms around 1.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(shape, generator=generator)

    state = {"cls_token": draw(1, 1, WIDTH), "pos_embed": draw(1, TOKENS, WIDTH)}
    layers = {"patch_embed.proj": (WIDTH, 3, 8, 8)}
    for index in range(depth):
        block = f"blocks.{index}."
        layers |= {block + "attn.qkv": (3 * WIDTH, WIDTH), block + "attn.proj": (WIDTH, WIDTH)}
        layers |= {block + "mlp.fc1": (4 * WIDTH, WIDTH), block + "mlp.fc2": (WIDTH, 4 * WIDTH)}
        for norm in ("norm1", "norm2"):
            state |= {f"{block}{norm}.weight": 1 + draw(WIDTH), f"{block}{norm}.bias": draw(WIDTH)}
    for name, shape in layers.items():
        state |= {f"{name}.weight": draw(*shape), f"{name}.bias": draw(shape[0])}
    return {**state, "norm.weight": 1 + draw(WIDTH), "norm.bias": draw(WIDTH)}


FINETUNE = replace(
    finetune.PRESETS["demo"],
    epochs=4,
    warmup_epochs=1,
    base_lr=4e-3,
    batch_size=32,
    micro_batch=16,
    mixup=0.2,
    cutmix=0.2,
    drop_path_rate=0.1,
    random_erasing_prob=0.1,
)


PROBE = replace(linear_probe.PRESETS["demo"], epochs=4, warmup_epochs=1, base_lr=12.8, batch_size=32, micro_batch=16)


def vit(seed: int = 0, class_token: bool = True, **fields: object) -> Encoder:
    """A random ViT of 32 px, patch 8, width 24 and 2 blocks, read out by its mean patch token; ``fields`` change its
    spec.
    """
    torch.manual_seed(seed)
    spec = EncoderSpec(
        **{  # type: ignore[arg-type]
            **{
                "family": "vit",
                "embed_dim": 24,
                "depth": 2,
                "mean": (0.5,) * 3,
                "std": (0.25,) * 3,
                "img_size": 32,
                "patch_size": 8,
            },
            **{"num_heads": 2, "class_token": class_token, "pooling": "mean"},
            **fields,
        }
    )
    model = VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=2,
        num_classes=0,
        final_norm=False,
        class_token=class_token,
        global_pool="token" if class_token else "avg",
    )
    return Encoder(spec, model.state_dict()).eval()


def class_token_vit(seed: int = 0, **fields: object) -> Encoder:
    """As ``vit``, read out by its class token."""
    return vit(seed, **{"pooling": "cls", **fields})


def resnet() -> Encoder:
    torch.manual_seed(0)
    model: ResNet = resnet18(num_classes=0)
    spec = EncoderSpec(
        "resnet", 512, 8, (0.5,) * 3, (0.25,) * 3, patch_size=32, layers=(2, 2, 2, 2), block="basic", pooling="mean"
    )
    return Encoder(spec, model.state_dict()).eval()


def environment(data: Path, out: Path, task: str, **fields: object) -> Env:
    (out / task).mkdir(parents=True, exist_ok=True)
    return Env(data, out / task, **fields)  # type: ignore[arg-type]


def save_classifier(path: Path, classes: tuple[str, ...] = WNIDS) -> None:
    """A classifier with a random head, which gives every class now and then."""
    model = classifier.Classifier(class_token_vit(), len(classes))
    torch.nn.init.normal_(model.head.weight)
    classifier.save(path, model, classes, CenterCrop(32, 32, "bicubic"))


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def tiny_encoder(seed: int = 0, **changes) -> Encoder:
    """A randomly initialized ViT of the demo's size; norms, biases and scales are drawn too, so that each shows."""
    from evaluate.encoder.model import build

    spec = EncoderSpec(
        **{
            "family": "vit",
            "img_size": 32,
            "patch_size": 8,
            "embed_dim": 48,
            "depth": 3,
            "num_heads": 3,
            "mean": MEAN,
            "std": STD,
            "class_token": True,
            "final_norm": True,
            **changes,
        }
    )
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
        family="resnet",
        embed_dim=512,
        depth=4,
        patch_size=32,
        mean=MEAN,
        std=STD,
        layers=(1, 1, 1, 1),
        block="basic",
        pooling="mean",
    )
    return Encoder(spec, model.state_dict())


def tiny_pyramid() -> Encoder:
    """A small ConvNeXt of timm's."""
    from evaluate.encoder.model import build

    torch.manual_seed(0)
    fields = {"model": "test_convnext", "maps": (24, 32, 48, 64), "img_size": 160, "patch_size": 1}
    spec = EncoderSpec("timm", 64, 1, MEAN, STD, pooling="mean", **fields)  # type: ignore[arg-type]
    return Encoder(spec, build(spec).state_dict())


def encoder_for(recipe: str) -> Encoder:
    """A tiny encoder of the kind that a recipe of mm_configs/ is for."""
    makers = {"_resnet_": tiny_resnet, "_pyramid_": tiny_pyramid, "_multi_scale_": lambda: tiny_encoder(depth=4)}
    return next((make for part, make in makers.items() if part in recipe), tiny_encoder)()


def shrink(cfg) -> None:
    """Seconds instead of days: small pictures and few regions."""
    side = 96
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        step = loader.dataset.pipeline[1]
        if "size" in step:
            step.size = side
        else:
            step.update(shortest=[side] if isinstance(step.shortest, list) else side, longest=side)
    if "img_size" in cfg.model.backbone:
        cfg.model.data_preprocessor.pad_size_divisor = side
        cfg.model.backbone.update(img_size=side, window=6)
        model, head = cfg.model, cfg.model.roi_head
        model.neck.out_channels = 16
        for part in (model.rpn_head, head.mask_head, head.bbox_head):
            part.update(
                {
                    key: 16
                    for key in ("in_channels", "feat_channels", "conv_out_channels", "fc_out_channels")
                    if key in part
                }
            )
        head.bbox_roi_extractor.out_channels = head.mask_roi_extractor.out_channels = 16
        head.bbox_head.fc_out_channels = 16
    cfg.model.train_cfg.rpn_proposal.update(nms_pre=20, max_per_img=20)
    cfg.model.train_cfg.rcnn.sampler.update(num=8)
    cfg.model.test_cfg.rpn.update(nms_pre=8, max_per_img=8)
    cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=4)
    cfg.precise_bn = min(cfg.get("precise_bn", 0), 2)
