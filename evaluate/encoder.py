"""The canonical encoder: weights under timm names, everything that names do not say, and the one way to compute features.

Axes: B batch, N patches, D width, C channels, h w patch grid or map.
"""

import copy
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.layers import QuickGELU
from timm.models.beit import Beit, gen_relative_position_index
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from evaluate.interpolation import resample_pos_embed
from evaluate.runtime.errors import UserError
from results.atomic import whole

KIND = "siamese-eval encoder 1"
ACTIVATIONS = {"gelu": nn.GELU, "quick_gelu": QuickGELU}
PROVENANCE = ("source_format", "branch", "epoch", "source_sha256", "source_json_sha256", "pooling")  # these change no feature


@dataclass(frozen=True)
class EncoderSpec:
    """All that the tensors' names do not say. Sizes in pixels, mean and std on the 0 to 1 scale of pixels."""

    family: str  # "vit" or "resnet"
    embed_dim: int
    depth: int  # transformer blocks, or residual blocks of all stages
    mean: tuple[float, ...]
    std: tuple[float, ...]
    img_size: int = 224
    patch_size: int = 16  # a ResNet: its stride
    num_heads: int = 0
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-6
    activation: str = "gelu"
    pre_norm: bool = False  # LayerNorm before the blocks (CLIP); the patch embedding then has no bias
    final_norm: bool = False  # LayerNorm of all tokens after the blocks; forward_tokens does not apply it
    fc_norm: bool = False  # LayerNorm after pooling, of fine-tuned models
    class_token: bool = False
    registers: int = 0
    pos_embed: bool = True
    pos_embed_prefix: bool = True  # class token and registers have position rows
    qkv_bias: bool = True
    layer_scale: bool = False
    rel_pos_bias: bool = False
    layers: tuple[int, ...] = ()  # residual blocks of the four stages
    block: str = ""  # "basic" or "bottleneck"
    cardinality: int = 1
    base_width: int = 64
    batch_norm_eps: float = 1e-5
    pooling: str = "cls"  # what the method recommends: "cls" or "mean"
    interpolation: str = "bicubic"
    source_format: str = ""
    branch: str = ""
    epoch: int | None = None
    source_sha256: str = ""
    source_json_sha256: str = ""  # of the JSON files beside it that describe it; "" where there are none

    @property
    def source_digests(self) -> tuple[str, str]:
        """As ``evaluate.checkpoint.digests`` of the source."""
        return self.source_sha256, self.source_json_sha256

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "EncoderSpec":
        values = json.loads(text)
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


@dataclass(frozen=True)
class Tokens:
    """Output of one block, no norm applied: class token (B, D) or None, patch tokens (B, N, D), row by row."""

    cls: Tensor | None
    patches: Tensor

    def pooled(self, kind: str) -> Tensor:
        """(B, D): the class token ("cls") or the mean patch token ("mean")."""
        if kind == "mean":
            return self.patches.mean(dim=1)
        if kind != "cls":
            raise ValueError(f"pooling is 'cls' or 'mean', not {kind!r}")
        if self.cls is None:
            raise ValueError("this encoder has no class token; use pooling 'mean'")
        return self.cls


@dataclass(frozen=True)
class Maps:
    """Output of one stage of a ResNet: (B, C, h, w)."""

    map: Tensor

    def pooled(self, kind: str = "mean") -> Tensor:
        """(B, C): the mean over the map, the only pooling of a ResNet."""
        return self.map.mean(dim=(2, 3))


class Encoder(nn.Module):
    """An encoder with its spec. Takes images (B, 3, H, W) normalised with ``spec.mean`` and ``spec.std``."""

    def __init__(self, spec: EncoderSpec, state: dict[str, Tensor]):
        super().__init__()
        self.spec = spec
        self.model = build(spec)
        self.model.load_state_dict(state, strict=True, assign=True)
        if spec.rel_pos_bias:
            _restore_buffers(self.model)
        self.fingerprint = fingerprint(spec, state)
        self.source = {"format": spec.source_format, "branch": spec.branch, "sha256": spec.source_sha256}
        self._other_sizes: dict[tuple[int, int], nn.Module] = {}

    def forward(self, images: Tensor) -> Tokens | Maps:
        return self.forward_blocks(images, 1)[-1]

    def forward_tokens(self, images: Tensor) -> Tokens | Maps:
        """Straight from the last block with no norm: ``Tokens`` of a ViT, ``Maps`` of a ResNet."""
        return self.forward_blocks(images, 1)[-1]

    def forward_blocks(self, images: Tensor, n: int = 4) -> list[Any]:
        """The last n blocks of a ViT (list of ``Tokens``), the last n stages of a ResNet (list of ``Maps``); the final one last.

        Other image sizes than ``spec.img_size`` work; the position embedding is interpolated as ``spec.interpolation`` says.
        """
        if self.spec.family == "resnet":
            return self._stages(images)[-n:]
        x = self.embed(images)
        prefix = int(self.spec.class_token) + self.spec.registers
        blocks = self._blocks_for(images)
        outputs = []
        for index, block in enumerate(blocks):
            x = block(x)
            if index >= len(blocks) - n:
                outputs.append(Tokens(x[:, 0] if self.spec.class_token else None, x[:, prefix:]))
        return outputs

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to what the first block takes, (B, prefix + N, D)."""
        spec, model = self.spec, self.model
        if images.shape[-2] % spec.patch_size or images.shape[-1] % spec.patch_size:
            raise ValueError(f"images of {tuple(images.shape[-2:])} px are no multiple of the patch size {spec.patch_size}")
        grid = (images.shape[-2] // spec.patch_size, images.shape[-1] // spec.patch_size)
        x = model.patch_embed.proj(images).flatten(2).transpose(1, 2)
        extra = [token.expand(len(x), -1, -1) for token in (model.cls_token, getattr(model, "reg_token", None)) if token is not None]
        prefix = int(spec.class_token) + spec.registers
        if not spec.pos_embed:
            x = torch.cat([*extra, x], dim=1)
        elif spec.pos_embed_prefix:
            x = torch.cat([*extra, x], dim=1) + resample_pos_embed(model.pos_embed, grid, prefix, spec.interpolation)
        else:
            x = torch.cat([*extra, x + resample_pos_embed(model.pos_embed, grid, 0, spec.interpolation)], dim=1)
        return model.norm_pre(x) if spec.pre_norm else x

    def _blocks_for(self, images: Tensor) -> Any:
        """The blocks; with relative position bias and another size, those of a copy whose bias tables are interpolated."""
        size = (images.shape[-2], images.shape[-1])
        if not self.spec.rel_pos_bias or size == (self.spec.img_size, self.spec.img_size):
            return self.model.blocks
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.model.parameters()) and self.training:
            raise ValueError(f"an encoder with relative position bias trains at its own size, {self.spec.img_size} px, not at {size}")
        if size not in self._other_sizes:
            resized = copy.deepcopy(self.model)
            resized.set_input_size(size)
            self._other_sizes = {size: resized.to(images.device)}
        return self._other_sizes[size].blocks

    def _stages(self, images: Tensor) -> list[Maps]:
        model = self.model
        x = model.maxpool(model.act1(model.bn1(model.conv1(images))))
        outputs = []
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            x = stage(x)
            outputs.append(Maps(x))
        return outputs


def build(spec: EncoderSpec) -> nn.Module:
    """timm's model without weights (on the meta device), in eval mode; ``num_classes`` 0."""
    norm = partial(nn.LayerNorm, eps=spec.layer_norm_eps)
    common = {
        "img_size": spec.img_size, "patch_size": spec.patch_size, "embed_dim": spec.embed_dim, "depth": spec.depth,
        "num_heads": spec.num_heads, "mlp_ratio": spec.mlp_ratio, "qkv_bias": spec.qkv_bias, "norm_layer": norm,
        "init_values": 1.0 if spec.layer_scale else None, "num_classes": 0,
    }  # fmt: skip
    with torch.device("meta"):
        if spec.family == "resnet":
            block = {"basic": BasicBlock, "bottleneck": Bottleneck}[spec.block]
            norm_layer = partial(nn.BatchNorm2d, eps=spec.batch_norm_eps)
            model = ResNet(block, spec.layers, 0, cardinality=spec.cardinality, base_width=spec.base_width, norm_layer=norm_layer)
        elif spec.rel_pos_bias:
            model = Beit(**common, use_abs_pos_emb=spec.pos_embed, use_rel_pos_bias=True, use_fc_norm=spec.fc_norm)
            if not (spec.final_norm or spec.fc_norm):
                model.norm = nn.Identity()
        else:
            model = VisionTransformer(
                **common,
                global_pool="token" if spec.class_token else "avg",
                class_token=spec.class_token,
                reg_tokens=spec.registers,
                pos_embed="learn" if spec.pos_embed else "none",
                no_embed_class=not spec.pos_embed_prefix,
                pre_norm=spec.pre_norm,
                final_norm=spec.final_norm or spec.fc_norm,
                fc_norm=spec.fc_norm,
                act_layer=ACTIVATIONS[spec.activation],
                weight_init="skip",
            )
    return model.eval()


def _restore_buffers(model: nn.Module) -> None:
    """BEiT's buffers that no state dict holds: the zero key bias and the index into the table of relative positions."""
    for block in model.blocks:
        attention = block.attn
        if attention.k_bias is not None:
            attention.register_buffer("k_bias", torch.zeros_like(attention.q_bias), persistent=False)
        attention.register_buffer("relative_position_index", gen_relative_position_index(attention.window_size), persistent=False)


def fingerprint(spec: EncoderSpec, state: dict[str, Tensor]) -> str:
    """Hexadecimal digest of the tensors and of every field of the spec that can change a feature."""
    digest = hashlib.sha256()
    values = {name: value for name, value in dataclasses.asdict(spec).items() if name not in PROVENANCE}
    digest.update(json.dumps(values, sort_keys=True).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def certificate_path(path: Path) -> Path:
    """Where the certificate of an encoder file lies: ``encoder.certificate.json`` beside ``encoder.safetensors``."""
    return path.with_suffix(".certificate.json")


def save(path: Path, state: dict[str, Tensor], spec: EncoderSpec) -> None:
    """Writes an encoder file atomically: float32 tensors under timm names, the spec as JSON in the metadata."""
    with whole(path) as written:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, written, {"kind": KIND, "spec": spec.to_json()})


def read_spec(path: Path) -> EncoderSpec | None:
    """The spec of an encoder file; None for any other file."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError):
        return None  # not a safetensors file, so not an encoder file
    return EncoderSpec.from_json(metadata["spec"]) if metadata.get("kind") == KIND else None


def load(path: Path | str, device: str = "cpu", *, _uncertified: bool = False) -> Encoder:
    """An encoder in eval mode on ``device``.

    Any other checkpoint of a known format is converted in a temporary folder and certified first.

    Raises:
        UserError: no encoder, or one whose certificate is absent, failed, or belongs to other tensors.
    """
    path = Path(path)
    spec = read_spec(path)
    if spec is None:
        from tempfile import TemporaryDirectory

        from evaluate.convert import convert

        with TemporaryDirectory() as folder:
            out = Path(folder) / "encoder.safetensors"
            convert(path, out)
            return load(out, device)
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        loaded = Encoder(spec, state)
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the encoder file {path} is damaged ({str(error).splitlines()[0]}); convert its source again") from error
    if not _uncertified:
        _check_certificate(path, loaded)
    return loaded.eval().to(device)


def _check_certificate(path: Path, encoder: Encoder) -> None:
    file = certificate_path(path)
    remedy = "convert its source again with python -m evaluate.convert"
    if not file.is_file():
        raise UserError(f"the encoder {path} has no certificate ({file.name} is not beside it); {remedy}")
    try:
        certificate = json.loads(file.read_text())
        passed, certified = certificate["passed"], certificate["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the certificate {file} is damaged; {remedy}") from error
    if certified != encoder.fingerprint:
        raise UserError(f"the certificate {file} belongs to another encoder than {path}; {remedy}")
    if passed is not True:
        raise UserError(f"the certificate of {path} did not pass; {remedy}")
