"""Features of a random ViT on a device beside the CPU's in float32.

    python -m tests.gpu.measures.encoder DEVICE MODEL      a name of timm

Prints, as JSON, the largest difference by precision, over the largest feature.
"""

import json
import sys

import timm
import torch

from evaluate.checkpoints import architecture
from evaluate.classification.features import frozen_tokens
from evaluate.data.transforms import normalize
from evaluate.encoder import Encoder
from evaluate.runtime import precision


def random_vit(name: str) -> Encoder:
    """timm's model of that name with random weights, as an encoder."""
    state = timm.create_model(name, num_classes=0).state_dict()
    statistics = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    return Encoder(architecture.vit(state, statistics, None, False, name), state).eval()


def main(device: str, name: str) -> None:
    """Prints the differences."""
    torch.manual_seed(0)
    encoder = random_vit(name)
    pixels = torch.randint(0, 256, (8, 3, 224, 224), dtype=torch.uint8)

    def features(where: str, arithmetic: str) -> torch.Tensor:
        encoder.to(where)
        with torch.inference_mode(), precision.autocast(arithmetic, where):
            images = normalize(pixels, encoder.spec.mean, encoder.spec.std, where)
            return frozen_tokens(encoder, images)[1].float().cpu()

    wanted = features("cpu", "fp32")

    def difference(arithmetic: str) -> float:
        found = features(device, arithmetic)
        return ((found - wanted).abs().max() / wanted.abs().max()).item()

    names = ("fp32", "tf32", "bf16", "fp16") if device == "cuda" else ("fp32", "bf16")
    print(json.dumps({name: difference(name) for name in names}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
