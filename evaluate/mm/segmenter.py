"""A segmenter's recipe, completed from the encoder and the data."""

import copy
from fractions import Fraction
from typing import Any

import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor

from evaluate.data import dense_sets
from evaluate.data.published_counts import size
from evaluate.encoder.model import Encoder
from evaluate.mm.backbones.layers import padded_side
from evaluate.mm.backbones.pyramid import PyramidBackbone
from evaluate.mm.backbones.resnet import ResNetBackbone, widths
from evaluate.mm.backbones.segmentation import SegmentationBackbone
from evaluate.mm.multi_scale import Views
from evaluate.mm.transforms import LoadLabels, LoadPicture
from evaluate.runtime import distributed
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError


class ViTSegmentor(EncoderDecoder):
    """mmseg's segmentor, whose maps cover a picture exactly whatever its size and the size of a patch.

    In testing it pads pictures with zeros on the right and below as the data preprocessor does in training, and cuts
    the logits back. mmseg would stretch the logits of the padded picture over the picture as it was.
    """

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """Normalized pictures (B, 3, H, W) to logits (B, classes, H, W)."""
        height, width = inputs.shape[2:]
        patch = self.backbone.patch_embed.patch_size
        padded = F.pad(inputs, (0, padded_side(width, patch) - width, 0, padded_side(height, patch) - height))
        metas = [{**meta, "img_shape": padded.shape[2:]} for meta in batch_img_metas]
        return super().encode_decode(padded, metas)[:, :, :height, :width]


def require_two_crops(cfg: Config, micro_batch: int | None, device: str) -> None:
    """Refuses one crop at once in one process, where BatchNorm of a map pooled to one pixel would see a single value.

    Raises:
        UserError: such a batch; several GPUs synchronize BatchNorm and may have one crop each.
    """
    size = distributed.world_size()
    synchronized = size > 1 and device.startswith("cuda")
    share = cfg.batch_size // size
    if min(micro_batch or share, share) == 1 and not synchronized:
        raise UserError(
            "UPerNet's BatchNorm needs at least two crops at once in a process; set batch_size or micro_batch higher"
        )


def multi_scale_loader(cfg: Config) -> ConfigDict:
    """The recipe's test data, each picture as its views at the recipe's ratios."""
    loader = copy.deepcopy(cfg.test_dataloader)
    loader.dataset.pipeline = [
        {"type": LoadPicture},
        {"type": LoadLabels},
        {"type": Views, "crop": cfg.crop, "ratios": cfg.ratios},
    ]
    return loader


def set_crop(cfg: Config, side: int) -> None:
    """Takes crops of another side than the recipe's, of pictures that are smaller or larger in the same ratio."""
    train, test = (loader.dataset.pipeline for loader in (cfg.train_dataloader, cfg.test_dataloader))
    cfg.longest = cfg.longest * side // cfg.crop
    for resize in (train[2], test[1]):
        resize.scale = (resize.scale[0] * side // cfg.crop, side)
    if "img_size" in cfg.model.backbone:
        cfg.model.backbone.img_size = (side, side)
    train[3].crop_size = cfg.model.data_preprocessor.size = (side, side)
    if cfg.model.test_cfg.mode == "slide":
        share = Fraction(cfg.model.test_cfg.stride[0], cfg.crop).limit_denominator(3)  # two thirds, or a half
        cfg.model.test_cfg.update(crop_size=(side, side), stride=(int(side * share), int(side * share)))
    cfg.crop = side


def fill_encoder(cfg: Config, encoder: Encoder) -> None:
    """Puts in what follows from the encoder: width, depth, the padding and normalization."""
    spec, model = encoder.spec, cfg.model
    if spec.family == "vit":
        side = padded_side(model.backbone.img_size[0], spec.patch_size)
        model.backbone.img_size = model.data_preprocessor.size = (side, side)
        model.backbone.update(SegmentationBackbone.arguments(spec, encoder.model.state_dict()))
        model.neck.embed_dim = spec.embed_dim
        cfg.optim_wrapper.paramwise_cfg.num_layers = spec.depth
        channels = [spec.embed_dim] * 4
    elif spec.recipes == "pyramid":
        model.backbone.update(type=PyramidBackbone, **PyramidBackbone.arguments(spec, {}))
        channels = list(spec.maps)
    else:
        model.backbone.update(ResNetBackbone.arguments(spec, encoder.model.state_dict()))
        channels = widths(spec)
    model.data_preprocessor.mean = [255 * value for value in spec.mean]
    model.data_preprocessor.std = [255 * value for value in spec.std]
    model.decode_head.in_channels = channels
    model.decode_head.channels = model.decode_head.channels or spec.embed_dim
    model.auxiliary_head.in_channels = channels[2]


def fill_data(cfg: Config, env: Env, name: str = "ade20k") -> int:
    """Puts in folders, classes and limits; returns how many validation pictures are asked for.

    Args:
        name: the set's in ``evaluate.data.dense_sets``.

    Raises:
        UserError: a picture without a label map or the reverse, or a label map that cannot be used; also among what is
            read only after the training.
    """
    images = dense_sets.below(env.data_root, name)
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.num_workers = env.workers
        loader.persistent_workers = env.workers > 0
        loader.dataset.update(data=name, root=str(images.root), limit=env.limit, seed=env.seed)
    cfg.train_dataloader.sampler.seed = env.seed
    for head in filter(None, (cfg.model.decode_head, cfg.model.auxiliary_head)):
        head.num_classes = len(images.classes)
    counts = {split: len(pictures) for split, pictures in images.check(env.limit).items()}
    env.report(sizes={f"{name}_{split}": size(count, len(images.classes)) for split, count in counts.items()})
    return min(counts["validation"], env.limit or counts["validation"])
