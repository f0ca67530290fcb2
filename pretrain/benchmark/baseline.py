"""The plain baseline of ``pretrain.benchmark``: our own code that does a step's arithmetic without care for speed.

Nothing of the released SiameseIM code is in it. It gives the same numbers as ``pretrain.methods.siameseim`` from the
same parameters, without anything that makes it fast: one PIL image at a time, attention by its formula, transposes
around each BatchNorm, the full table of relative positions, the diagonal of an (N x N) product, a loop over parameters.
Nothing but the benchmark uses it. Facts: the released code (arXiv 2206.01204), single process.

Axes: B batch, N patches of a view, V visible patches, D width.
"""

import math
import random
from pathlib import Path

import torch
from PIL import Image, ImageFilter, ImageOps
from timm.layers import Mlp
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from pretrain.data.views import Batch
from pretrain.geometry import RelativeGeometry, relative_geometry, relative_positions
from pretrain.methods.siameseim import Config, SiameseIM, TokenBatchNorm, normalize
from pretrain.optimizer import make_optimizer


class PermutedBatchNorm(nn.Module):
    """BatchNorm over all tokens with the width moved to the second axis and back, in float32."""

    def __init__(self, bn: nn.Module):
        super().__init__()
        self.bn = bn

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, enabled=False):
            return self.bn(tokens.float().permute(0, 2, 1).contiguous()).permute(0, 2, 1).contiguous()


class ExplicitAttention(Attention):
    """softmax(q k^T / sqrt(d)) v, each factor a tensor of its own."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """``attn_mask`` and ``is_causal`` are there because timm's attention has them; no block here gives them."""
        batch, tokens, width = x.shape
        query, key, value = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = ((query @ key.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(batch, tokens, width))


class PlainSiameseIM(SiameseIM):
    """SiameseIM's parameters under the plain arithmetic."""

    def __init__(self, config: Config):
        super().__init__(config)
        for module in list(self.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, TokenBatchNorm):
                    setattr(module, name, PermutedBatchNorm(child.bn))
                elif isinstance(child, Attention):
                    child.__class__ = ExplicitAttention  # the same parameters, another forward
                elif isinstance(child, Block):
                    child.__class__ = Block  # which keeps what its norms give
                elif isinstance(child, Mlp):
                    child.__class__ = Mlp  # a RecomputedMlp until here

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        for target, online in zip(self.target.parameters(), self.online.parameters(), strict=True):
            target.data = momentum * target.data + (1 - momentum) * online.data

    def online_side(self, batch: Batch) -> Tensor:
        assert batch.geometry is not None
        mask = self.hidden(batch)
        count, cells = mask.shape
        branch, width = self.online, self.decoder_pos_embed.shape[-1]
        patches = branch.patch_embed(batch.view1) + self.pos_embed[:, 1:]
        patches = patches[~mask].reshape(count, -1, patches.shape[-1])
        cls = (branch.cls_token + self.pos_embed[:, :1]).expand(count, -1, -1)
        seen = branch.projector(branch.decoder_embed(branch.blocks(torch.cat([cls, patches], dim=1))))
        positions = self.decoder_pos_embed[:, 1:].expand(count, -1, -1)[~mask].reshape(count, -1, width)
        positions = torch.cat([self.decoder_pos_embed[:, :1].expand(count, -1, -1), positions], dim=1)
        queries = branch.mask_token.expand(count, cells, -1) + self.decoder_pos_mlp(
            relative_table(batch.geometry, self.grid_size, width)
        )
        return self.decoder_pred(self.predictor(torch.cat([seen + positions, queries], dim=1)))[:, -cells:]

    def target_side(self, batch: Batch) -> Tensor:
        branch = self.target
        with torch.no_grad():
            patches = branch.patch_embed(batch.view2) + self.pos_embed[:, 1:]
            cls = (branch.cls_token + self.pos_embed[:, :1]).expand(len(patches), -1, -1)
            return branch.projector(branch.decoder_embed(branch.blocks(torch.cat([cls, patches], dim=1))))[:, 1:]

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(prediction.device.type, enabled=False):
            p, t = prediction.float().reshape(-1, prediction.shape[-1]), normalize(target).reshape(-1, target.shape[-1])
            correlation = (t.T @ t) / len(t)
            attraction = ((p - t) ** 2).sum(-1).mean()
            spread = torch.diag(p @ correlation @ p.T).mean()
            return (attraction + self.neg_weight * spread) / p.shape[-1]


def plain_optimizer(model: nn.Module, config: Config) -> torch.optim.AdamW:
    """The same AdamW, one parameter and one operation after the other."""
    groups = [
        {key: group[key] for key in ("params", "weight_decay")} for group in make_optimizer(model, config).param_groups
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, foreach=False, fused=False)


def relative_table(geometry: RelativeGeometry, grid_size: int, width: int) -> Tensor:
    """(B, N, 2D): sines and cosines of each cell's row, column and the logarithms of both scales, computed for every
    cell."""
    rows, columns = relative_positions(geometry, grid_size)
    scales = ((10 * scale.log())[:, None].expand_as(rows) for scale in (geometry.scale_height, geometry.scale_width))
    quarter = width // 4
    omega = 10000.0 ** (-torch.arange(quarter, device=rows.device) / quarter)
    parts = []
    for positions in (rows, columns, *scales):
        angles = positions[..., None] * omega
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=-1)


class PerImageViews:
    """Two augmented views, their geometry and the mask of one image file, by PIL and torchvision, one after the
    other."""

    def __init__(self, config: Config):
        self.config = config
        self.jitter = v2.RandomApply([v2.ColorJitter(*config.jitter)], p=config.jitter_probability)
        self.gray = v2.RandomGrayscale(p=config.gray_probability)
        self.tensor = v2.Compose(
            [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(config.mean, config.std)]
        )

    def __call__(self, path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[bool, bool], int]:
        """View 1, view 2 (each (3, S, S)), mask (N,), crops (2, 4), the two flips, and the image's width."""
        with Image.open(path) as file:
            image = file.convert("RGB")
        views, boxes, flips = zip(*(self.view(image, number) for number in range(2)), strict=True)
        mask = torch.tensor(cell_by_cell_mask(self.config)).flatten().bool()
        return *views, mask, torch.tensor(boxes), flips, image.width

    def view(self, image: Image.Image, number: int) -> tuple[Tensor, list[int], bool]:
        """One view of a PIL image, its crop and whether it was flipped."""
        config = self.config
        flipped = random.random() < config.flip_probability
        if flipped:
            image = TF.hflip(image)
        crop = v2.RandomResizedCrop(config.img_size, scale=config.crop_scale)
        box = crop.make_params([image])
        top, left, height, width = (box[name] for name in ("top", "left", "height", "width"))
        size = [config.img_size, config.img_size]
        view = TF.resized_crop(image, top, left, height, width, size, interpolation=v2.InterpolationMode.BICUBIC)
        view = self.gray(self.jitter(view))
        if random.random() < config.blur_probability[number]:
            view = view.filter(ImageFilter.GaussianBlur(random.uniform(*config.blur_sigma)))
        if random.random() < config.solarize_probability[number]:
            view = ImageOps.solarize(view)
        return self.tensor(view), [top, left, height, width], flipped

    def batch(self, paths: list[Path]) -> Batch:
        """A whole batch on the CPU."""
        views1, views2, masks, crops, flips, widths = zip(*(self(path) for path in paths), strict=True)
        boxes, flipped = torch.stack(crops), torch.tensor(flips)
        geometry = relative_geometry(boxes[:, 0], boxes[:, 1], flipped[:, 0], flipped[:, 1], torch.tensor(widths))
        index = torch.arange(len(paths))
        return Batch(torch.stack(views1), torch.stack(views2), torch.stack(masks), geometry, index)


def cell_by_cell_mask(config: Config) -> list[list[int]]:
    """BEiT's block-wise mask with its loops over cells, filled up at random to exactly ``num_masked``."""
    side, mask, count = config.grid_size, [[0] * config.grid_size for _ in range(config.grid_size)], 0
    while count < config.num_masked:
        added = 0
        for _ in range(10):
            area = random.uniform(config.min_block, config.num_masked - count)
            ratio = math.exp(random.uniform(math.log(0.3), math.log(1 / 0.3)))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if not (0 < height < side and 0 < width < side):
                continue
            top, left = random.randint(0, side - height), random.randint(0, side - width)
            cells = [(row, column) for row in range(top, top + height) for column in range(left, left + width)]
            fresh = [(row, column) for row, column in cells if not mask[row][column]]
            if 0 < len(fresh) <= config.num_masked - count:
                for row, column in fresh:
                    mask[row][column] = 1
                added = len(fresh)
                break
        if not added:
            break
        count += added
    free = [(row, column) for row in range(side) for column in range(side) if not mask[row][column]]
    for row, column in random.sample(free, config.num_masked - count):
        mask[row][column] = 1
    return mask
