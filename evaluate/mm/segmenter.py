"""A segmenter's recipe, completed from the encoder and the data."""

import copy

from mmengine.config import Config, ConfigDict

from evaluate.data.ade20k import class_names, paired_files
from evaluate.data.published_counts import size
from evaluate.encoder.model import Encoder
from evaluate.mm.backbones.resnet import ResNetBackbone, widths
from evaluate.mm.backbones.segmentation import SegmentationBackbone
from evaluate.mm.multi_scale import Views
from evaluate.mm.transforms import LoadLabels, LoadPicture
from evaluate.runtime import distributed
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError


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


def fill_encoder(cfg: Config, encoder: Encoder) -> None:
    """Puts in what follows from the encoder: width, depth and normalization."""
    spec, model = encoder.spec, cfg.model
    if spec.family == "vit":
        model.backbone.update(SegmentationBackbone.arguments(spec, encoder.model.state_dict()))
        model.neck.embed_dim = spec.embed_dim
        cfg.optim_wrapper.paramwise_cfg.num_layers = spec.depth
        channels = [spec.embed_dim] * 4
    else:
        model.backbone.update(ResNetBackbone.arguments(spec, encoder.model.state_dict()))
        channels = widths(spec)
    model.data_preprocessor.mean = [255 * value for value in spec.mean]
    model.data_preprocessor.std = [255 * value for value in spec.std]
    model.decode_head.in_channels = channels
    model.decode_head.channels = model.decode_head.channels or spec.embed_dim
    model.auxiliary_head.in_channels = channels[2]


def fill_data(cfg: Config, env: Env) -> int:
    """Puts in folders, classes and limits; returns how many validation pictures are asked for.

    Raises:
        UserError: a picture without a label map, or the reverse; also among what is read only after the training.
    """
    root = env.data_root / "ade20k"
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.num_workers = env.workers
        loader.persistent_workers = env.workers > 0
        loader.dataset.update(root=str(root), limit=env.limit, seed=env.seed)
    cfg.train_dataloader.sampler.seed = env.seed
    cfg.model.decode_head.num_classes = cfg.model.auxiliary_head.num_classes = len(class_names(root))
    counts = {split: len(paired_files(root, split)[0]) for split in ("training", "validation")}
    env.report(sizes={f"ade20k_{split}": size(count, len(class_names(root))) for split, count in counts.items()})
    return min(counts["validation"], env.limit or counts["validation"])
