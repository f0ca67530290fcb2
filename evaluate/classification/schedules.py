"""Learning rates over a training."""

import math
from collections.abc import Sequence


def warmup_cosine(epoch: float, warmup_epochs: float, epochs: float, peak: float, minimum: float = 0.0) -> float:
    """Rate at a fractional epoch: linear from 0 to ``peak`` over the warm-up, then half a cosine down to ``minimum``.

    As in MAE's and SiameseIM's ``util/lr_sched.py``; a parameter group's layer-decay factor multiplies the result,
    minimum included.
    """
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    done = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * done))


def step_decay(epoch: float, milestones: Sequence[int], peak: float, factor: float = 0.1) -> float:
    """Rate at a fractional epoch: ``peak``, times ``factor`` from each epoch of ``milestones`` on (MoCo's
    ``main_lincls.py``).
    """
    return peak * factor ** sum(epoch >= milestone for milestone in milestones)
