"""The fine-tuned classifier: an encoder, mean of its patch tokens, a LayerNorm and a linear head; its file and its
evaluation.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.layers import DropPath, trunc_normal_
from torch import nn

from evaluate.classification.predictions import Predictor
from evaluate.data.transforms import CenterCrop
from evaluate.encoder import Encoder, timm_models
from evaluate.runtime import compilation
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError
from results.atomic import atomic_write, sha256

KIND = "siamese-eval classifier 1"
REMEDY = "make one with python -m evaluate.finetune"
HEAD_STD = 2e-5  # of SiameseIM's and MAE's fine-tuning


class Classifier(nn.Module):
    """Logits (B, C) from normalized images (B, 3, H, W).

    Patch tokens of the last block, without class token and final norm -> mean -> LayerNorm (fresh) -> linear. Any
    other encoder than a ViT: what it pools -> linear. A ViT's own last norm, which is not used, takes no gradient, nor
    does its position embedding unless ``train_positions``; the rest does.
    """

    def __init__(
        self, encoder: Encoder, classes: int, drop_path_rate: float = 0.0, train_positions: bool = False
    ) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.pooled_by_itself = not encoder.spec.is_vit
        width = encoder.spec.embed_dim
        self.fc_norm = nn.Identity() if self.pooled_by_itself else nn.LayerNorm(width, eps=encoder.spec.layer_norm_eps)
        self.head = nn.Linear(width, classes)
        trunc_normal_(self.head.weight, std=HEAD_STD)
        nn.init.zeros_(self.head.bias)
        for name, parameter in self.encoder.model.named_parameters() if encoder.spec.is_vit else ():
            parameter.requires_grad_(
                (train_positions or name != "pos_embed") and not name.startswith(("norm.", "fc_norm."))
            )
        if encoder.spec.family == "timm" and drop_path_rate:
            self.encoder.model = timm_models.with_drop_path(encoder.spec.model, self.encoder.model, drop_path_rate)
        if encoder.spec.is_vit:
            blocks = self.encoder.model.blocks
            for rate, block in zip(torch.linspace(0, drop_path_rate, len(blocks)).tolist(), blocks, strict=True):
                block.drop_path1, block.drop_path2 = (DropPath(rate) if rate else nn.Identity() for _ in range(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.pooled_by_itself:
            return self.head(self.encoder.pooled(images))
        return self.head(self.fc_norm(self.encoder.forward_blocks(images, 1)[-1].patches.mean(dim=1)))

    def named_timm_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters under timm's names: those of the encoder's model, ``fc_norm.*`` and ``head.*``."""
        return [(name.removeprefix("encoder.model."), parameter) for name, parameter in self.named_parameters()]


def save(
    path: Path,
    classifier: Classifier,
    classes: tuple[str, ...],
    preprocessing: CenterCrop,
    made: Mapping[str, Any] | None = None,
) -> None:
    """Writes ``classifier.safetensors`` atomically: all weights, what is needed to use them, and how it was ``made``.

    What is measured on a classifier rests on its making: settings, the paper's, limit, seed, images.
    """
    about = {
        "kind": KIND,
        "encoder": classifier.encoder.fingerprint,
        "classes": classes,
        "preprocessing": asdict(preprocessing),
        "made": dict(made or {}),
    }
    metadata = {
        "about": json.dumps(about)
    }  # one entry: safetensors writes several in random order, and a record hashes this file
    with atomic_write(path) as written:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.state_dict().items()},
            written,
            metadata,
        )


def load(path: Path, encoder: Encoder) -> tuple[Classifier, tuple[str, ...], CenterCrop]:
    """The classifier fine-tuned from ``encoder``, in eval mode, with its class list and its test preprocessing.

    Raises UserError for a file that is none, or that was made from another encoder.
    """
    about = _about(path)
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a classifier ({error}); {REMEDY}") from error
    if about["encoder"] != encoder.fingerprint:
        raise UserError(
            f"{path} was fine-tuned from another encoder; fine-tune this one with python -m evaluate.finetune"
        )
    classes = tuple(about["classes"])
    classifier = Classifier(encoder, len(classes))
    classifier.load_state_dict(state, strict=True)
    return classifier.eval(), classes, CenterCrop(**about["preprocessing"])


def how_made(path: Path) -> dict[str, Any]:
    """How a classifier was made, as ``save`` was told; {} where its file does not say. Raises UserError as ``load``."""
    made = _about(path).get("made")
    return made if isinstance(made, dict) else {}


def _about(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is not a classifier ({error}); {REMEDY}") from error
    if not isinstance(about, dict) or about.get("kind") != KIND:
        raise UserError(f"{path} is not a classifier written by evaluate.finetune; {REMEDY}")
    return about


def predictor(model: Classifier, path: Path, precision: str, env: Env, max_unreadable: int = 0) -> Predictor:
    """What asks a classifier about each image of a set; ``path`` is its file, whose digest names what is kept of the
    answers.
    """
    compilation.compile_module(model, env.compile)
    return Predictor(model.eval(), model.encoder.spec, sha256(path), precision, env, max_unreadable)
