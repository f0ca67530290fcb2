"""Where each traced part waits for the GPU, and the most memory it may need, as the test of the steps demands it.

A new task or pretraining method adds its parts here. A wait that is not listed fails the test.
"""

from collections import Counter
from typing import Any

GIB = 2**30
# part of a trace, up to the colon: file and number of waits; those of loop.py are at the end of an epoch, not of a step
WAITS: dict[str, dict[str, int]] = {
    "finetune": {"evaluate/classification/loop.py": 3},
    # one look a micro-batch at whether the frozen features are finite
    "linear_probe": {"evaluate/classification/loop.py": 1, "evaluate/classification/finite.py": 2},
    "sweep": {"evaluate/classification/loop.py": 1, "evaluate/classification/finite.py": 2},
    "features": {"evaluate/classification/finite.py": 1, "evaluate/classification/features.py": 8},  # results
    "predictions": {"evaluate/classification/finite.py": 1, "evaluate/classification/predictions.py": 4},  # results
    # one look a block at whether fp16 held the nearest
    "knn": {"evaluate/classification/neighbors.py": 3, "evaluate/classification/search.py": 1},
}
FEATURES_OF_A_RESNET = {"evaluate/classification/finite.py": 1, "evaluate/classification/features.py": 1}
# of a pretraining with two blocks and 8 images
PRETRAINING = {"views of a micro-batch": 0, "views, forward and backward": 0, "optimizer": 1}
# the scaler of fp16 reads a flag for each group of an optimizer that is not fused (LARS)
PRETRAINING_OF_A_RESNET = {**PRETRAINING, "optimizer": 2}
# of a dense step: ours is the look at whether its gradients are finite; mmdet's and mmseg's are theirs
DENSE = {"evaluate/mm/mixed_precision.py": 1}
OF_LIBRARIES = {"detection": 45, "segmentation": 4}  # of mmdet an image, of mmseg a step (its accuracy)
PEAKS = {  # GiB of the tasks' own micro-batches, at ViT-B's width and four blocks
    "finetune": 3.3,
    "linear_probe": 2.5,
    "sweep": 1.8,
    "features": 0.65,
    "predictions": 0.7,
    "knn": 6.2,
    "detection": 4.2,  # of two images; a bias of all pairs of patches would make it 5.3
    "segmentation": 3.3,  # of two crops
}


def check(part: dict[str, Any], encoder: str) -> None:
    """Fails where a part waits for the GPU where it must not, or needs more memory than it may."""
    name = part["part"].partition(":")[0]
    places: Counter[str] = Counter()
    for entry in part["found"]:
        if entry["kind"].startswith(("wait", "to the CPU")):
            places[entry["place"].partition(":")[0]] += entry["count"]
    if name in OF_LIBRARIES:
        own = {place: count for place, count in places.items() if place.startswith("evaluate/")}
        images = part["images"] if name == "detection" else 1
        assert own == DENSE and sum(places.values()) - 1 <= OF_LIBRARIES[name] * images, (name, places)
        assert part["peak_bytes"] <= PEAKS[name] * GIB, (name, part["peak_bytes"] / GIB)
    elif name in PRETRAINING:
        allowed = PRETRAINING_OF_A_RESNET if encoder.startswith("layers=") else PRETRAINING
        assert sum(places.values()) <= allowed[name], (name, places)
    elif name in WAITS:
        wanted = FEATURES_OF_A_RESNET if (name, encoder) == ("features", "resnet50") else WAITS[name]
        assert places == Counter(wanted), (name, places)
        if encoder == "vit_short":
            assert part["peak_bytes"] <= PEAKS[name] * GIB, (name, part["peak_bytes"] / GIB)
    else:
        assert name == "a look at the features", f"{name} is not listed"
