"""Checks whether a released fine-tuned checkpoint reaches its published accuracy on this data. If it does not, the data
or their preprocessing are at fault, not the model that you want to measure.

    python -m evaluate.calibrate --ckpt sim_base_1600ep_finetune.pth --data-root DIR      (SiameseIM ViT-B: 84.118)
    python -m evaluate.calibrate --ckpt mae_finetuned_vit_base.pth --data-root DIR        (MAE ViT-B: 83.664)
    python -m evaluate.calibrate --ckpt FILE --expected 83.1 --data-root DIR              (any other in that layout)

MAE's other fine-tuned files give 85.952 (ViT-L) and 86.928 (ViT-H).
The checkpoint must have the official fine-tuned layout: {"model": encoder, fc_norm, head}. Nothing is trained: Resize
256 bicubic, CenterCrop 224, mean of the patch tokens, fc_norm, head; top-1 over all of val. The accuracy counts as
reproduced if it differs by at most 0.1 points: the same weights have given 83.746 instead of 83.664 with other versions
of the libraries (github.com/facebookresearch/mae/issues/90), while wrong data or preprocessing costs more.
Cost: one pass over val, minutes on a GPU. Exit status: 0 reproduced, 1 not reproduced, 2 bad input, 3 no ImageNet.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from evaluate import encoder
from evaluate.checkpoints import conversion, reader
from evaluate.classification import metrics
from evaluate.classification.classifier import Classifier, predictor
from evaluate.data import layouts
from evaluate.data.imagenet import FULL_CLASSES, val_set
from evaluate.data.transforms import CenterCrop
from evaluate.runtime import devices, distributed
from evaluate.runtime import precision as precisions
from evaluate.runtime.cli import (
    EXIT_FAILED,
    EXIT_SKIPPED,
    EXIT_USER,
    at_least_one,
    at_least_zero,
    loading_processes,
    make_folder,
)
from evaluate.runtime.env import Env
from evaluate.runtime.errors import Skip, UserError, in_one_sentence
from results.comparison import binomial
from results.ending import leave

# top-1 in percent of released files, by a part of their name: SiameseIM docs/finetune.md; MAE FINETUNE.md
RELEASED = {
    "sim_base_1600ep_finetune": 84.118,
    "mae_finetuned_vit_base": 83.664,
    "mae_finetuned_vit_large": 85.952,
    "mae_finetuned_vit_huge": 86.928,
}
VAL_IMAGES = 50_000
TOLERANCE = 0.1  # points
ROUNDING = 1e-3  # of a published number and of a difference of floats
DEVIATIONS = 3.0  # standard errors allowed besides, where only a part of val is read


@dataclass(frozen=True)
class Verdict:
    """What was measured beside what was expected; top-1 in percent, ``tolerance`` in points."""

    measured: float
    expected: float
    tolerance: float
    images: int
    whole: bool  # all of val

    @property
    def reproduced(self) -> bool:
        return abs(self.measured - self.expected) <= self.tolerance + ROUNDING

    def __str__(self) -> str:
        difference = self.measured - self.expected
        found = (
            f"top-1 {self.measured:.3f} on {self.images} images of val, expected {self.expected:.3f}: "
            f"{difference:+.3f} points"
        )
        within = f"within {self.tolerance:.2f}"
        part = "" if self.whole else "; only a part of val was read, which shows gross faults alone"
        if self.reproduced:
            return f"REPRODUCED: {found}, {within}{part}"
        return f"NOT REPRODUCED: {found}, not {within}{part}. {self._likely()}"

    def _likely(self) -> str:
        if self.measured < min(5.0, self.expected / 2):
            return (
                "So low a number means labels: check that val's images lie in the folders of their own classes, "
                "named by wnid"
            )
        if self.measured > self.expected:
            return (
                "More than published means that it is another checkpoint or another set of images than --expected "
                "is for"
            )
        return (
            "Check that val is complete and original (no resized copies), and the versions of Pillow, torchvision "
            "and torch"
        )


def load(path: Path, device: str) -> Classifier:
    """The classifier of a fine-tuned checkpoint in the official layout, its encoder converted and certified.

    Raises UserError for any other file, or a head that does not fit its encoder.
    """
    content = reader.read(path)
    group = next((name for name in ("model", "") if "fc_norm.weight" in content.state_dicts.get(name, {})), None)
    wanted = {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    if group is None or not wanted <= content.state_dicts[group].keys():
        raise UserError(
            f"{path} is not a fine-tuned classifier in the official layout: it lacks fc_norm or head; give a "
            f"fine-tuned checkpoint"
        )
    state = content.state_dicts[group]
    with TemporaryDirectory() as folder:
        converted = Path(folder) / "encoder.safetensors"
        conversion.convert(path, converted)
        loaded = encoder.load(converted)
    width, classes = loaded.spec.embed_dim, len(state["head.weight"])
    shapes = {
        "fc_norm.weight": (width,),
        "fc_norm.bias": (width,),
        "head.weight": (classes, width),
        "head.bias": (classes,),
    }
    for name, shape in shapes.items():
        if tuple(state[name].shape) != shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(state[name].shape)}, expected {shape}; the file is damaged"
            )
    model = Classifier(loaded, classes)
    for name in shapes:
        layer, _, kind = name.rpartition(".")
        getattr(getattr(model, layer), kind).data.copy_(state[name])
    return model.eval().to(device)


def expected_of(path: Path) -> float:
    """The published top-1 of a released file, told by its name. Raises UserError for any other."""
    for name, value in RELEASED.items():
        if name in path.name:
            return value
    raise UserError(
        f"the published accuracy of {path.name} is not known, since its name holds none of {', '.join(RELEASED)}; give "
        f"--expected PERCENT"
    )


def calibrate(
    path: Path,
    env: Env,
    expected: float,
    tolerance: float = TOLERANCE,
    precision: str = "auto",
    crop: CenterCrop | None = None,
) -> Verdict:
    """Measures a fine-tuned checkpoint on val.

    Raises Skip without ImageNet, UserError where classes and head differ.
    """
    layouts.require(env.data_root, "imagenet")
    val = val_set(env.data_root, env.limit, env.identities)
    model = load(path, env.device)
    if len(val.classes) == FULL_CLASSES and val.asked != VAL_IMAGES:
        raise UserError(f"imagenet/val holds {val.asked} images instead of ImageNet-1k's {VAL_IMAGES}; unpack it again")
    if model.head.out_features != len(val.classes):
        raise UserError(
            f"the head of {path} has {model.head.out_features} classes, but imagenet/train has {len(val.classes)}; "
            f"give the data that the checkpoint was fine-tuned on"
        )
    crop = crop or CenterCrop(224, 256, "bicubic")
    right = predictor(model, path, precisions.resolve(precision, env.device), env)(val, crop).answers.correct()
    whole = len(val) == val.asked
    slack = 0.0 if whole else DEVIATIONS * binomial(expected, len(val))
    return Verdict(metrics.percent(right), expected, tolerance + slack, len(val), whole)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = parse(argv)
    try:
        device = distributed.start(devices.resolve_device(arguments.device))
        expected = arguments.expected if arguments.expected is not None else expected_of(arguments.ckpt)
        if not 0 < expected <= 100 or arguments.tolerance < 0:
            raise UserError(
                f"--expected {expected} must be above 0 and at most 100 percent, and --tolerance "
                f"{arguments.tolerance} must not be negative; correct the value"
            )
        crop = CenterCrop(arguments.img_size, arguments.resize, "bicubic")
        workers = loading_processes(arguments.workers, device, side_by_side=1)
        env = Env(
            layouts.root(arguments.data_root),
            make_folder(arguments.out / "calibrate"),
            device,
            workers,
            limit=arguments.limit,
        )
        verdict = calibrate(arguments.ckpt, env, expected, arguments.tolerance, arguments.precision, crop)
    except (UserError, PermissionError) as error:
        print(f"evaluate.calibrate: {in_one_sentence(error)}", file=sys.stderr)
        return distributed.end(EXIT_SKIPPED if isinstance(error, Skip) else EXIT_USER)
    if distributed.rank() == 0:
        print(json.dumps({**asdict(verdict), "reproduced": verdict.reproduced}) if arguments.json else verdict)
    return distributed.end(0 if verdict.reproduced else EXIT_FAILED)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluate.calibrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", type=Path, required=True, help="a fine-tuned checkpoint in the official layout")
    parser.add_argument(
        "--data-root", type=Path, required=True, help="folder that holds imagenet/ (README, data layout)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out"),
        help="predictions are kept below OUT/calibrate, so that it can be interrupted (default: out)",
    )
    parser.add_argument(
        "--expected", type=float, help="top-1 it should give, in percent (default: by the name of a released file)"
    )
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help=f"largest difference, in points (default: {TOLERANCE})"
    )
    parser.add_argument(
        "--limit", type=at_least_one, help="read at most so many images of val; shows gross faults only"
    )
    parser.add_argument("--img-size", type=int, default=224, help="pixels, side of the crop (default: 224)")
    parser.add_argument("--resize", type=int, default=256, help="pixels, short side before the crop (default: 256)")
    parser.add_argument(
        "--precision", choices=precisions.CHOICES, default="auto", help="auto is fp16 on CUDA and fp32 on a CPU"
    )
    devices.add_option(parser)
    parser.add_argument(
        "--workers",
        type=at_least_zero,
        help="data loading processes (default: the cores of a GPU's machine, none on a CPU)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    leave(main)
