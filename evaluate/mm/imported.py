"""All that detection and segmentation import, for a process that forks them (``evaluate.harness.fork_server``)."""

from evaluate.mm import operators

operators.provide()

import mmdet.datasets.transforms  # noqa: E402
import mmdet.models  # noqa: E402
import mmseg.datasets.transforms  # noqa: E402
import mmseg.models  # noqa: E402

from evaluate.mm import detector, frozen, heads, optimizer, pictures, runner, segmenter  # noqa: E402

__all__ = ["detector", "frozen", "heads", "mmdet", "mmseg", "optimizer", "pictures", "runner", "segmenter"]
