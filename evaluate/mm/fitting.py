"""How many images a dense training takes at once, so that it fits a GPU without changing the protocol.

Where no BatchNorm is trained (detection with a ViT) any divisor of a process's share gives the same training, since
gradients are summed. Where one is, the share is the paper's number, and only the user may change it.
"""

import sys
from typing import TYPE_CHECKING

import torch

from evaluate.encoder.spec import EncoderSpec
from evaluate.mm import memory
from evaluate.mm.recipes import normalized_together
from evaluate.runtime import distributed
from evaluate.runtime.env import Env
from evaluate.runtime.errors import UserError

if TYPE_CHECKING:
    from mmengine.config import Config

USABLE = 0.85  # of the memory: the rest is for the context, workspaces and fragmentation


def choose(cfg: "Config", asked: int | None, spec: EncoderSpec, env: Env) -> int | None:
    """Images that a process takes at once: as asked, or on a GPU the largest divisor of its share that is predicted to
    fit; ``None`` is the whole share.

    Asked after ``share_out``.
    """
    if asked is not None or not env.device.startswith("cuda") or normalized_together(cfg, env) is not None:
        return asked
    memory = torch.cuda.get_device_properties(env.device).total_memory / 2**30
    share = cfg.train_dataloader.batch_size
    fitting = [count for count in divisors(share) if predicted(cfg, spec, count) <= USABLE * memory]
    chosen = max(fitting, default=1)
    if distributed.rank() == 0:
        print(f"takes {chosen} of its {share} images at once, for a GPU of {memory:.0f} GiB", file=sys.stderr)
    return chosen


def predicted(cfg: "Config", spec: EncoderSpec, count: int) -> float:
    """GiB of a training step of so many images at once."""
    return memory.of_detection(spec, cfg.image_size, count, bool(cfg.model.backbone.get("checkpointing")))


def divisors(share: int) -> list[int]:
    """Of a number, from 1 up."""
    return [count for count in range(1, share + 1) if share % count == 0]


def after_out_of_memory(cfg: "Config", taken: int | None, env: Env) -> int:
    """The next smaller number of images at once, with which the same training goes on; says so.

    Args:
        cfg: the recipe as it was before it was split into parts.

    Raises:
        UserError: fewer images would be another protocol, there are several processes, or it was one image.
    """
    share = cfg.batch_size // distributed.world_size()
    taken = min(taken or share, share)
    problem = f"the device's memory does not hold a training step of {taken} images at once"
    remedy = "set grad_checkpointing=true, or take more or larger GPUs"
    if taken == 1:
        raise UserError(f"{problem}; {remedy}")
    smaller = max(count for count in divisors(share) if count < taken)
    if normalized_together(cfg, env) is not None:
        raise UserError(
            f"{problem}; {remedy}; micro_batch={smaller} would fit better, but then BatchNorm sees fewer images "
            f"together, which is another protocol"
        )
    if distributed.world_size() > 1:
        raise UserError(f"{problem}; set micro_batch={smaller}, which gives the same training, or {remedy[4:]}")
    print(f"{problem}; goes on with {smaller} at once, which gives the same training", file=sys.stderr)
    return smaller
