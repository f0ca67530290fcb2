"""What a record says of its protocol beside the published one, so that a table marks its cells and knows no task.

Two things: the sets that differ from the published ones in images or classes (``subset``), and the settings that differ
in name alone (``immaterial``). A task reports of itself which settings cannot change its number:

* ``micro_batch`` where neither a BatchNorm in training nor a draw of mixup or cutmix sees the micro-batch, or where the
  processes' share is cut into the very same parts as with the paper's value: gradients are summed over all images of a
  step, however they are cut. So it matters to a ResNet that is trained (fine-tuning, detection), to fine-tuning with
  mixup or cutmix, to the linear probe's BatchNorm and to UPerNet's; not to the heads of a sweep, nor to ViTDet, which
  has LayerNorm throughout.
* settings of numbers that are measured beside the column (more neighbors, several scales, IN-C's images for IN-A), a
  solver's limit of iterations where its optimum is proven, and LARS' constant where SGD runs (which is marked itself).
* what asks for the very numbers that a recipe has: its own name, iterations, batch and rate.

Here, for all tasks alike: an allowance of unreadable images (those that were left out mark the cell by their number),
and a precision that the protocol allows. The official codes train in float16 on GPUs and round differently on every
machine: where the paper's setting is ``auto``, float32 and float16 are its protocol, and bfloat16 is not; where it is a
type, that type alone.
"""

from typing import Any

from evaluate.data import published_counts
from evaluate.runtime import precision

ALWAYS = ("max_unreadable_images",)


def complete(entry: dict[str, Any]) -> None:
    """Adds ``subset`` and the settings that are immaterial in every task to a record."""
    entry["subset"] = published_counts.differences(entry["sizes"])
    names = [name for name in ALWAYS if name in entry["config"]]
    own, resolved = entry["config"].get("precision"), entry["protocol"].get("precision")
    if own and resolved and precision.is_allowed(resolved, entry["paper_config"].get("precision", "")):
        names.append("precision")
    entry["immaterial"][""] = sorted({*entry["immaterial"].get("", []), *names})
