"""Compares this package with numbers that detectron2 and mmseg gave, recorded in files such as tests/golden/dense/*.

    python -m evaluate.mm.parity FILE.json [FILE.json ...] [--device cuda]

Networks compute on the device; rules and formulas (losses, schedules, cuts, boxes) are compared on the CPU. Prints the
largest difference of each compared value. Exit status: 0 within bounds, 1 above a bound, 2 bad input.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

from evaluate.mm import operators
from evaluate.mm.parity.samples import Result
from evaluate.runtime import devices
from evaluate.runtime.errors import UserError
from results.ending import leave

FORMS = {  # a key that only this form has: the module and the function that compare; mmdet is imported with them
    "roi_level_assignment": ("heads", "roi_heads"),
    "pyramid_config": ("backbones", "simple_feature_pyramid"),
    "last_feat": ("backbones", "vitdet_backbone"),
    "fed_loss_num_classes": ("training", "federated"),
    "function_on_single_names": ("training", "lr_decay"),
    "thresholds": ("training", "repeat_factors"),
    "test_resize": ("training", "large_scale_jitter"),
    "outputs": ("backbones", "mmseg_mae_backbone"),
}
NETWORKS = ("backbones", "heads")  # modules whose functions compute on a device


def compare(path: Path, device: str = "cpu") -> Result:
    """All comparisons of one file, its networks on a device.

    Raises:
        UserError: a file of no known form.
    """
    operators.provide()
    try:
        content = json.loads(Path(path).read_text())
        keys = set(content) | set((content.get("cases") or [{}])[0])
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read as reference numbers ({error}); give one like those in tests/golden/dense/"
        ) from error
    for key, (module, form) in FORMS.items():
        if key in keys:
            function = getattr(importlib.import_module(f"evaluate.mm.parity.{module}"), form)
            return function(content, device) if module in NETWORKS else function(content)
    raise UserError(f"{path} is of no known form; a file has one of the keys {', '.join(FORMS)}")


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit status (0 within bounds, 1 above one, 2 bad input)."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluate.mm.parity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="numbers of detectron2 or mmseg")
    devices.add_option(parser)
    arguments = parser.parse_args(argv)
    status = 0
    try:
        device = devices.resolve_device(arguments.device)
        for path in arguments.files:
            for name, (difference, bound) in compare(path, device).items():
                wrong = not difference <= bound  # also where the difference is not a number
                status |= wrong
                print(f"{path.name}: {name}: {difference:.3g} (bound {bound:.3g}){' ABOVE' if wrong else ''}")
    except UserError as error:
        print(f"evaluate.mm.parity: {error}", file=sys.stderr)
        return 2
    return int(status)


if __name__ == "__main__":
    leave(main)
