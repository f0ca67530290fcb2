"""The fine-tuned classifier: an encoder, mean of its patch tokens, a LayerNorm and a linear head; its file and its evaluation."""

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from timm.layers import DropPath, trunc_normal_
from torch import nn

from evaluate.classification import metrics
from evaluate.classification.outcomes import table as outcome_table
from evaluate.data.imagenet import ImageSet
from evaluate.data.transforms import CenterCrop, normalise
from evaluate.runtime import precision
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError
from results.atomic import whole

KIND = "siamese-eval classifier 1"
HEAD_STD = 2e-5  # of SiameseIM's and MAE's fine-tuning


class Classifier(nn.Module):
    """Logits (B, C) from normalised images (B, 3, H, W).

    Patch tokens of the last block, without class token and final norm -> mean -> LayerNorm (fresh) -> linear. A ResNet: its pooled
    map -> linear. The encoder's own last norm, which is not used, takes no gradient, nor does the position embedding unless
    ``train_positions``; the rest does.
    """

    def __init__(self, encoder: Any, classes: int, drop_path: float = 0.0, train_positions: bool = False) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.resnet = encoder.spec.family == "resnet"
        width = encoder.spec.embed_dim
        self.fc_norm = nn.Identity() if self.resnet else nn.LayerNorm(width, eps=encoder.spec.layer_norm_eps)
        self.head = nn.Linear(width, classes)
        trunc_normal_(self.head.weight, std=HEAD_STD)
        nn.init.zeros_(self.head.bias)
        for name, parameter in self.encoder.model.named_parameters():
            parameter.requires_grad_((train_positions or name != "pos_embed") and not name.startswith(("norm.", "fc_norm.")))
        if not self.resnet:
            blocks = self.encoder.model.blocks
            for rate, block in zip(torch.linspace(0, drop_path, len(blocks)).tolist(), blocks, strict=True):
                block.drop_path1, block.drop_path2 = (DropPath(rate) if rate else nn.Identity() for _ in range(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        last = self.encoder.forward_blocks(images, 1)[-1]
        return self.head(self.fc_norm(last.pooled() if self.resnet else last.patches.mean(dim=1)))

    def named_timm_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters under timm's names: those of the encoder's model, ``fc_norm.*`` and ``head.*``."""
        return [(name.removeprefix("encoder.model."), parameter) for name, parameter in self.named_parameters()]


def save(path: Path, classifier: Classifier, classes: tuple[str, ...], preprocessing: CenterCrop) -> None:
    """Writes ``classifier.safetensors`` atomically: all weights, and what is needed to use them."""
    from safetensors.torch import save_file

    about = {"kind": KIND, "encoder": classifier.encoder.fingerprint, "classes": classes, "preprocessing": asdict(preprocessing)}
    metadata = {"about": json.dumps(about)}  # one entry: safetensors writes several in random order, and a record hashes this file
    with whole(path) as written:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in classifier.state_dict().items()}, written, metadata)


def load(path: Path, encoder: Any) -> tuple[Classifier, tuple[str, ...], CenterCrop]:
    """The classifier fine-tuned from ``encoder``, in eval mode, with its class list and its test preprocessing.

    Raises UserError for a file that is none, or that was made from another encoder.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a classifier ({error}); make one with python -m evaluate.finetune") from error
    if about.get("kind") != KIND:
        raise UserError(f"{path} is not a classifier written by evaluate.finetune; make one with python -m evaluate.finetune")
    if about["encoder"] != encoder.fingerprint:
        raise UserError(f"{path} was fine-tuned from another encoder; fine-tune this one with python -m evaluate.finetune")
    classes = tuple(about["classes"])
    classifier = Classifier(encoder, len(classes))
    classifier.load_state_dict(state, strict=True)
    return classifier.eval(), classes, CenterCrop(**about["preprocessing"])


def outcomes(
    classifier: Classifier, images: ImageSet, preprocessing: CenterCrop, env: Env, arithmetic: str, allowed_bad: int = 0
) -> dict[str, torch.Tensor]:
    """Whether each image is right among the best 1 and the best 5 classes: ``top1`` and ``top5``, bool (n,).

    ``allowed_bad`` images may be unreadable and are left out; the record names them.
    """
    classifier.eval()
    mean, std = classifier.encoder.spec.mean, classifier.encoder.spec.std

    def measure(pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with precision.autocast(arithmetic, env.device):
            logits = classifier(normalise(pixels, mean, std, env.device)).float()
        return torch.stack([metrics.correct_at(logits, labels, k) for k in (1, 5)], dim=1)

    table = outcome_table(images, preprocessing, 2, measure, env, allowed_bad)
    return dict(zip(("top1", "top5"), table.unbind(dim=1), strict=True))
