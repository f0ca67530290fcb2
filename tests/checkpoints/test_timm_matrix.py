"""Every plain ViT, BEiT and ResNet of timm's registry with published weights, scaled down and saved five ways.

    CONVERT_MATRIX=1 uv run pytest tests/checkpoints/test_timm_matrix.py -s   (else every 80th)

Each must convert into the features that timm gives, or with what was assumed said aloud, or be refused: wrong and
silent is none.
"""

import json
import os
from collections import Counter

import pytest
import timm
import torch
from safetensors.torch import save_file

from evaluate import encoder
from evaluate.checkpoints import conversion
from evaluate.runtime.errors import UserError

STEP = 1 if os.environ.get("CONVERT_MATRIX") else 80
KINDS = ("VisionTransformer", "Beit", "ResNet")
MODULES = {"vision_transformer", "beit", "resnet"}
# each architecture once, whatever the number of its published weights
NAMES = [
    name
    for module in sorted(MODULES)
    for name in dict.fromkeys(full.partition(".")[0] for full in timm.list_models(module=module, pretrained=True))
]
WAYS = ("bare.pth", "state_dict.pth", "flat.safetensors", "hub", "folder")


def small(name: str) -> torch.nn.Module | None:
    """The architecture with two blocks (one where it is wide) and at most 8 patches a side, or one block a stage; None
    where it is of another kind.
    """
    resnets = timm.list_models(module="resnet")
    arguments = {"layers": (1, 1, 1, 1)} if name in resnets else {"depth": 2}
    with torch.device("meta"):
        try:
            model = timm.create_model(name, **arguments)
        except (TypeError, AssertionError, RuntimeError, ValueError):
            return None
    if name not in resnets and min(model.patch_embed.grid_size) > 8:
        arguments["img_size"] = 8 * model.patch_embed.patch_size[0]
    if type(model).__name__ not in KINDS:
        return None
    if "depth" in arguments and sum(p.numel() for p in model.parameters()) > 40_000_000:
        arguments["depth"] = 1
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.arguments = arguments
    return model


def save(model, name: str, way: str, folder):
    """Writes the model in one of the ways; the path to convert."""
    state = {key: value.clone().contiguous() for key, value in model.state_dict().items()}
    folder.mkdir(parents=True)
    if way == "bare.pth":
        torch.save(state, folder / way)
    elif way == "state_dict.pth":
        torch.save({"state_dict": state, "epoch": 3}, folder / way)
    else:
        save_file(state, folder / ("flat.safetensors" if way == "flat.safetensors" else "model.safetensors"))
    if way in ("hub", "folder"):
        cfg = {key: list(model.pretrained_cfg[key]) for key in ("mean", "std")}
        config = {"architecture": name, "pretrained_cfg": cfg, "model_args": {k: v for k, v in model.arguments.items()}}
        (folder / "config.json").write_text(json.dumps(config))
    return folder if way == "folder" else next(path for path in folder.iterdir() if path.name != "config.json")


def features(model, spec, image):
    """Final tokens of timm's own forward pass, or the last map."""
    found = model.forward_features(image)
    return found if spec.family == "resnet" else found[:, -((image.shape[-1] // spec.patch_size) ** 2) :]


def verdict(model, name: str, way: str, folder) -> str:
    try:
        made = conversion.convert(save(model, name, way, folder / way), folder / "e.safetensors")
    except UserError:
        return "refused"
    loaded = encoder.load(folder / "e.safetensors")
    spec = loaded.spec
    image = torch.randn(1, 3, spec.img_size, spec.img_size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        theirs, tokens = features(model, spec, image), loaded.forward_tokens(image)
        ours = tokens.map if spec.family == "resnet" else tokens.patches
        ours = loaded.model.norm(ours) if spec.final_norm else ours
        largest = max(1.0, float(theirs.abs().max()))
        equal = theirs.shape == ours.shape and float((theirs - ours).abs().max()) < 1e-4 * largest
    equal &= (spec.mean, spec.std) == (tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"]))
    return "right" if equal else "assumed aloud" if made.assumed else f"WRONG ({made.source_format})"


@pytest.mark.skipif(not NAMES, reason="timm's registry is empty")
def test_no_architecture_of_timm_is_wrong_in_silence(tmp_path) -> None:
    counts: Counter[str] = Counter()
    wrong, seen = [], 0
    for index, name in enumerate(NAMES[::STEP]):
        model = small(name)
        if model is None:
            continue
        seen += 1
        for way in WAYS:
            found = verdict(model, name, way, tmp_path / str(index))
            counts[f"{way}: {found.split(' (')[0]}"] += 1
            if found.startswith("WRONG"):
                wrong.append(f"{name} as {way}: {found}")
                print(wrong[-1], flush=True)
        for path in sorted((tmp_path / str(index)).rglob("*.*")):
            if path.is_file():
                path.unlink()
    print(seen, "architectures;", dict(sorted(counts.items())))
    assert not wrong, "\n".join(wrong)
    assert seen
