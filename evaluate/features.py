"""The frozen pass: class token and mean patch token of the last blocks, once for each image set, kept on disk for every task.

Axes: n images, K blocks (the last K, in order; the final one last), D width. Features are raw: no norm after the block; ``read_out``
applies the one a protocol asks for. The folder's name is a hash of all that can change a feature (encoder, preprocessing, images,
precision, K), so two checkpoints never share features. Shards are written atomically beside their checksum: an interrupted pass goes
on, a damaged shard is found and made again.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from evaluate import distributed, precision
from evaluate.data.imagenet import Images, ImageSet, InOrder, batches
from evaluate.data.transforms import CenterCrop, normalise
from evaluate.errors import UserError
from evaluate.progress import track
from evaluate.task import Env

FORMAT = 1  # raise it when stored features change their meaning
BATCH, BATCHES_A_SHARD = 64, 64
POOLINGS = ("cls", "mean")


@dataclass(frozen=True)
class Features:
    """Features of one image set on disk."""

    folder: Path
    shards: int

    def tokens(self, kind: str, block: int = -1) -> torch.Tensor | None:
        """(n, D) float32 of one block, ``kind`` "cls" or "mean"; None for the class token of an encoder that has none."""
        parts = []
        for shard in range(self.shards):
            tensors = _read_shard(self.folder, shard)
            if tensors is None:
                raise UserError(f"shard {shard} of {self.folder} was damaged after it was written; run the task again")
            if kind not in tensors:
                return None
            parts.append(tensors[kind][:, block].float())  # of the last K blocks only one stays in memory
        return torch.cat(parts)


def check_image_size(encoder: Any, img_size: int) -> None:
    """Raises UserError where a ViT's patches do not fill the protocol's crop."""
    spec = encoder.spec
    if spec.family == "vit" and img_size % spec.patch_size:
        raise UserError(f"img_size {img_size} is no multiple of the patch size {spec.patch_size}; choose another: --set img_size=N")


def forward(encoder: Any, images: torch.Tensor, blocks: int = 1) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Raw class tokens (B, K, D), or None, and mean patch tokens (B, K, D) of normalised images; of a ResNet, the pooled last map."""
    if encoder.spec.family == "resnet":
        return None, encoder.forward_blocks(images, 1)[-1].pooled()[:, None]
    tokens = encoder.forward_blocks(images, blocks)
    means = torch.stack([block.patches.mean(dim=1) for block in tokens], dim=1)
    return (torch.stack([block.cls for block in tokens], dim=1) if tokens[-1].cls is not None else None), means


def pooling_of(encoder: Any, asked: str | None) -> str:
    """What is read out: what is asked for, else what the method recommends; the mean where there is no class token."""
    kind = asked or encoder.spec.pooling
    if kind not in POOLINGS:
        raise UserError(f"pooling is one of {', '.join(POOLINGS)}, not {kind!r}")
    return kind if encoder.spec.class_token else "mean"


def read_out(encoder: Any, kind: str, tokens: torch.Tensor) -> torch.Tensor:
    """The linear probe's input from raw tokens (…, D).

    A class token goes through the encoder's own final norm, where it has one (MAE, MoCo-v3, DINO). The mean patch token goes through a
    LayerNorm without parameters: ``fc_norm`` of SiameseIM's ``--global_pool``, fresh and frozen. A ResNet's pooled map is taken as it is.
    """
    if encoder.spec.family == "resnet":
        return tokens
    if kind == "cls":
        return encoder.model.norm(tokens)
    return torch.nn.functional.layer_norm(tokens, tokens.shape[-1:], eps=encoder.spec.layer_norm_eps)


def extract(encoder: Any, images: ImageSet, preprocessing: CenterCrop, env: Env, arithmetic: str = "fp32", blocks: int = 4) -> Features:
    """The features of a set: read from ``env.out_dir.parent / "features"``, where missing or damaged computed.

    Several processes (torchrun) share the shards out; the features do not depend on how many.
    """
    arithmetic = precision.resolve(arithmetic, env.device)
    blocks = min(blocks, encoder.spec.depth) if encoder.spec.family == "vit" else 1
    identity = {
        "format": FORMAT, "encoder": encoder.fingerprint, "preprocessing": asdict(preprocessing), "set": images.name,
        "images": images.fingerprint, "precision": arithmetic, "blocks": blocks, "batch": BATCH, "batches_a_shard": BATCHES_A_SHARD,
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = env.out_dir.parent / "features" / f"{images.name}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "identity.json").write_text(json.dumps(identity, indent=1))
    size = BATCH * BATCHES_A_SHARD
    rank, world = distributed.world()
    shards = -(-len(images) // size)
    missing = [shard for shard in range(rank, shards, world) if _read_shard(folder, shard) is None]
    draws = [batch for shard in missing for batch in _shard_draws(len(images), shard)]
    loader = iter(track(batches(Images(images, preprocessing), draws, env.workers), f"features of {images.name}", len(draws)))
    for shard in missing:
        parts: list[dict[str, torch.Tensor]] = []
        for _ in _shard_draws(len(images), shard):
            pixels, _labels = next(loader)
            with torch.inference_mode(), precision.autocast(arithmetic, env.device):
                cls, mean = forward(encoder, normalise(pixels, encoder.spec.mean, encoder.spec.std, env.device), blocks)
            parts.append({name: value.cpu() for name, value in (("cls", cls), ("mean", mean)) if value is not None})
        _write_shard(folder, shard, {name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    distributed.barrier()
    return Features(folder, shards)


def _shard_draws(count: int, shard: int) -> list[list[tuple[int, int]]]:
    """A shard's batches: their limits depend on the shard alone, so a resumed pass computes what an unbroken one does."""
    size = BATCH * BATCHES_A_SHARD
    begin, end = shard * size, min(count, (shard + 1) * size)
    return [[(0, begin + index) for _, index in batch] for batch in InOrder(end - begin, BATCH)]


def _write_shard(folder: Path, shard: int, tensors: dict[str, torch.Tensor]) -> None:
    content = save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()})
    for name, data in ((f"{shard:05d}.safetensors", content), (f"{shard:05d}.sha256", hashlib.sha256(content).hexdigest().encode())):
        temporary = folder / f"{name}.{os.getpid()}.tmp"
        temporary.write_bytes(data)
        os.replace(temporary, folder / name)


def _read_shard(folder: Path, shard: int) -> dict[str, torch.Tensor] | None:
    """The tensors of a shard, or None where it is absent or its checksum differs."""
    path, checksum = folder / f"{shard:05d}.safetensors", folder / f"{shard:05d}.sha256"
    if not (path.is_file() and checksum.is_file()):
        return None
    content = path.read_bytes()
    return load_tensors(content) if hashlib.sha256(content).hexdigest() == checksum.read_text() else None
